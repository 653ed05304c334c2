"""``python -m benchmarks``: speed and memory. ``strength``, ``gradients``, ``gallery``, ``learning_rate`` are apart."""

from __future__ import annotations

from benchmarks import attacks, field, memory, peak, scaling, startup

if __name__ == "__main__":
    parts = {
        "The vector field": field,
        "Memory of a gradient": memory,
        "Memory of a cell": peak,
        "Start-up": startup,
        "One and two processes": scaling,
        "Attacks": attacks,
    }
    for title, part in parts.items():
        print(f"\n## {title}\n")
        part.main()
