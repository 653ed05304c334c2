"""``python -m benchmarks``: all of them."""

from __future__ import annotations

from benchmarks import attacks

if __name__ == "__main__":
    attacks.main()
