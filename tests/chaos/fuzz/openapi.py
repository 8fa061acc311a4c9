# SPDX-License-Identifier: Apache-2.0
"""The sandbox, held to its own OpenAPI by schemathesis.

    python -m tests.chaos.fuzz.openapi --seconds 240 [--seed 7]

Requests that the OpenAPI allows and requests that it forbids are sent to a sandbox over real
sockets, one by one at first, then as chains from a purchase to its output. Whatever comes back has
to be what the OpenAPI says: status, type, headers and body.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect_cometapi.sandbox import Sandbox

CONFIG = Path(__file__).with_name("schemathesis.toml")
HOOKS = Path(__file__).with_name("openapi_hooks.py")
SINGLY = "examples,coverage,fuzzing"
CHAINED = "stateful"
SANDBOXES: dict[str, dict[str, Any]] = {
    SINGLY: {"faults": ["create:cancelled:rate=1"]},
    CHAINED: {"faults": ["create:failed:rate=0.2"], "shapes": ["bare", "wrapped", "flat"]},
}
"""No request is so odd that a clip is drawn for it; and most chains lead to one, in the shapes in
which its address is looked for."""


@dataclass
class Findings:
    """What came of it.

    Attributes:
        ok: Whether nothing was wrong.
        said: What schemathesis printed.
        report: The same as JSON.
        answers: How often the sandbox gave which status on which route.
    """

    ok: bool
    said: str
    report: dict[str, Any]
    answers: Counter[str]


def hold(phases: str, *, seed: int, examples: int = 100, seconds: int = 0) -> Findings:
    """Let schemathesis talk to a sandbox.

    Args:
        phases: Which of its phases to run: `SINGLY` or `CHAINED`.
        seed: Decides what it thinks of.
        examples: Requests, or chains, per operation that it thinks of freely.
        seconds: Go on for so long; 0 ends after those.

    Raises:
        RuntimeError: It ended before its time; the message has what it said.
    """
    with Sandbox(**SANDBOXES[phases]) as sandbox, tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "report.json")
        command = [
            *(sys.executable, "-m", "schemathesis.cli", "--config-file", CONFIG),
            *("run", f"{sandbox.url}/openapi.json", f"--phases={phases}"),
            *(f"--seed={seed}", f"--max-examples={examples}", "--no-color", "--warnings=off"),
            *("--report=json", f"--report-json-path={file}"),
            *([f"--max-time={seconds}"] if seconds else []),
        ]
        env = {**os.environ, "SCHEMATHESIS_HOOKS": str(HOOKS), "NO_PROXY": "127.0.0.1"}
        done = subprocess.run(
            command, cwd=folder, env=env, capture_output=True, text=True, check=False
        )
        said = done.stdout + done.stderr
        if not file.exists():
            raise RuntimeError(f"schemathesis did not get to its end:\n{said}")
        report = json.loads(file.read_text(encoding="utf-8"))
        answers = Counter(f"{one.method} {one.route} {one.status}" for one in sandbox.requests)
    return Findings(done.returncode == 0, said, report, answers)


def main() -> None:
    """Hold it to its word, tell, and end with 1 where something is wrong."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=int, default=240)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 10_000)
    chosen = parser.parse_args()
    wrong = False
    for phases in (SINGLY, CHAINED):
        found = hold(phases, seed=chosen.seed, seconds=chosen.seconds // 2)
        print(found.said, *found.answers.most_common(), sep="\n")
        wrong = wrong or not found.ok
    raise SystemExit(wrong)


if __name__ == "__main__":
    main()
