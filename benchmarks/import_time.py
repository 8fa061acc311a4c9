# SPDX-License-Identifier: Apache-2.0
"""Measure the cost of importing this package on top of importing Prefect.

    python benchmarks/import_time.py [ROUNDS]

Each import is timed in a fresh interpreter. The statements take turns, so that a busy machine slows
all of them alike. The output shows the median over the rounds and its difference to the baseline.
The package loads its flows on first use, so this is measured too, against the names of Prefect that
any flow needs.
"""

import subprocess
import sys
from statistics import median

ROUNDS = 15
GOAL = 50.0
"""Milliseconds above `import prefect`."""

PAIRS = {
    "import prefect, prefect_cometapi.flows": "import prefect",
    "from prefect_cometapi.flows import image_to_video": "from prefect import flow, task",
}
_TIMED = "import time; began = time.perf_counter(); {}; print(time.perf_counter() - began)"


def milliseconds(statement: str) -> float:
    """Return the milliseconds that a statement takes in a fresh interpreter."""
    done = subprocess.run(
        [sys.executable, "-c", _TIMED.format(statement)], capture_output=True, text=True, check=True
    )
    return 1000 * float(done.stdout)


def measure(rounds: int) -> dict[str, float]:
    """Return the median of each statement in milliseconds."""
    statements = [statement for pair in PAIRS.items() for statement in reversed(pair)]
    for statement in statements:
        milliseconds(statement)  # The first import writes byte code and warms the disk cache.
    times = [[milliseconds(statement) for statement in statements] for _ in range(rounds)]
    return dict(zip(statements, map(median, zip(*times, strict=True)), strict=True))


def main() -> None:
    """Measure and print the results."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS
    medians = measure(rounds)
    print(f"| median of {rounds} fresh interpreters | ms | above | ratio |")
    print("| --- | ---: | ---: | ---: |")
    for ours, base in PAIRS.items():
        print(f"| `{base}` | {medians[base]:.0f} | | |")
        above, ratio = medians[ours] - medians[base], medians[ours] / medians[base]
        print(f"| `{ours}` | {medians[ours]:.0f} | {above:+.0f} | {ratio:.2f} |")
    ours, base = next(iter(PAIRS.items()))
    met = "met" if medians[ours] - medians[base] <= GOAL else "missed"
    print(f"\nGoal: at most {GOAL:.0f} ms above `{base}`; {met}.")


if __name__ == "__main__":
    main()
