# SPDX-License-Identifier: Apache-2.0
"""Check the sandbox against its own OpenAPI with schemathesis.

    python -m tests.chaos.fuzz.openapi --seconds 240 [--seed 7]

The script sends requests that the OpenAPI allows, and requests that it forbids, to a sandbox over
real sockets: single requests first, then chains from a purchase to its output. Each response must
match the OpenAPI in status, type, headers and body.
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
SINGLE_REQUESTS = "examples,coverage,fuzzing"
CHAINS = "stateful"
SANDBOXES: dict[str, dict[str, Any]] = {
    SINGLE_REQUESTS: {"faults": ["create:cancelled:rate=1"]},
    CHAINS: {"faults": ["create:failed:rate=0.2"], "shapes": ["bare", "wrapped", "flat"]},
}
"""Limits that let no single request draw a clip, and let most chains lead to one, in the reply
shapes whose output address is linked."""


@dataclass
class Findings:
    """Result of a run of schemathesis.

    Attributes:
        ok: Whether nothing was wrong.
        output: Output of schemathesis.
        report: Report in JSON.
        statuses: Counts of each status on each route.
    """

    ok: bool
    output: str
    report: dict[str, Any]
    statuses: Counter[str]


def run_schemathesis(phases: str, *, seed: int, examples: int = 100, seconds: int = 0) -> Findings:
    """Run schemathesis against a sandbox.

    Args:
        phases: Phases to run: `SINGLE_REQUESTS` or `CHAINS`.
        seed: Seed of the generated requests.
        examples: Number of generated requests, or chains, per operation.
        seconds: Duration of the run; 0 ends after the examples.

    Raises:
        RuntimeError: schemathesis ended early; the message has its output.
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
        output = done.stdout + done.stderr
        if not file.exists():
            raise RuntimeError(f"schemathesis ended early:\n{output}")
        report = json.loads(file.read_text(encoding="utf-8"))
        statuses = Counter(f"{one.method} {one.route} {one.status}" for one in sandbox.requests)
    return Findings(done.returncode == 0, output, report, statuses)


def main() -> None:
    """Run the check, print the findings, and exit with 1 if anything is wrong."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=int, default=240)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 10_000)
    options = parser.parse_args()
    wrong = False
    for phases in (SINGLE_REQUESTS, CHAINS):
        findings = run_schemathesis(phases, seed=options.seed, seconds=options.seconds // 2)
        print(findings.output, *findings.statuses.most_common(), sep="\n")
        wrong = wrong or not findings.ok
    raise SystemExit(wrong)


if __name__ == "__main__":
    main()
