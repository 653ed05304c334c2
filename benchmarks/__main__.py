"""``python -m benchmarks``: speed and memory. ``strength``, ``gradients``, ``gallery``, ``learning_rate`` are apart."""

from __future__ import annotations

from benchmarks import attacks, field, memory

if __name__ == "__main__":
    for title, part in (("The vector field", field), ("Memory of a gradient", memory), ("Attacks", attacks)):
        print(f"\n## {title}\n")
        part.main()
