# SPDX-License-Identifier: Apache-2.0
"""Time each command on the way from an empty environment to a scheduled run on a worker.

    python benchmarks/first_run.py [--report docs/benchmarks.md]

The script builds the wheel and installs it with its dependencies into an empty environment. Then it
runs the commands of docs/production.md, word for word, against a Prefect server and a stand-in for
CometAPI.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from prefect_cometapi.sandbox import Sandbox
from tests.chaos.harness import markdown
from tests.first_run import COMMANDS, first_day, own_server
from tests.installation import ROOT, build_wheel
from tests.limits import usual_signals

PATIENCE = 600
"""Longest acceptable installation, in seconds."""


def install(wheel: Path, home: Path) -> float:
    """Install the wheel as a user does and return the seconds that it took."""
    subprocess.run([sys.executable, "-m", "venv", home], check=True, timeout=PATIENCE)
    begun = time.monotonic()
    pip = [home / "bin" / "python", "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, wheel], check=True, stderr=subprocess.DEVNULL, timeout=PATIENCE)
    return time.monotonic() - begun


def main() -> None:
    """Measure and print the results."""
    usual_signals()
    parser = argparse.ArgumentParser()
    parser.add_argument("--report", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, Sandbox() as sandbox:
        folder = Path(name)
        installing = install(build_wheel(folder), folder / "venv")
        os.environ |= {"COMETAPI_BASE_URL": sandbox.url, "COMETAPI_KEY": "sk-of-the-benchmark"}
        with own_server(folder) as api:
            took = {COMMANDS[0]: installing} | first_day(folder / "venv" / "bin", api, folder)
    rows = [f"| `{command}` | {seconds:.0f} s |" for command, seconds in took.items()]
    total = f"| until a schedule has made a video | {sum(took.values()):.0f} s |"
    machine = markdown.machine("prefect")
    head = [
        "## From nothing to a schedule",
        "",
        "`python benchmarks/first_run.py`",
        "",
        machine,
    ]
    text = "\n".join([*head, "", "| | |", "| --- | --- |", *rows, total, ""])
    print(text)
    if options.report:
        markdown.put_section(ROOT / options.report, "first run", text)


if __name__ == "__main__":
    main()
