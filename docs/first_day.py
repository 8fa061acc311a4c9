# SPDX-License-Identifier: Apache-2.0
"""Run the commands of docs/first-day.md in their order, and write down how long each one takes.

    python docs/first_day.py [--installed FOLDER] [--report docs/first-day.md] [--pictures FOLDER]

The script builds the wheel, installs it with the locked dependencies into an empty environment, and
works in an empty folder, as a new user does. It needs the ``test`` extra, and Chromium for the
pictures. Only the ports differ from the page, so that the script does not disturb other servers.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import httpx
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from screenshots import HEIGHT, WIDTH, take

from tests.chaos.harness import markdown
from tests.cluster import free_port
from tests.first_day import COMMANDS, PORTS, Shell, walk
from tests.installation import build_wheel


def install(folder: Path) -> tuple[Path, float]:
    """Install the wheel and the locked dependencies; return the scripts and the seconds."""
    wheel = build_wheel(folder)
    begun = time.monotonic()
    subprocess.run([sys.executable, "-m", "venv", folder / ".venv"], check=True)
    scripts = folder / ".venv" / "bin"
    pip = [scripts / "pip", "install", "--quiet", "--no-deps"]
    for what in (["-r", str(ROOT / "constraints.txt")], [str(wheel)]):
        subprocess.run([*pip, *what], check=True, stderr=subprocess.DEVNULL)
    return scripts, time.monotonic() - begun


class Photographer:
    """Takes pictures of what the user sees in the UI of Prefect.

    Args:
        server: Address of the server.
        folder: Folder for the pictures.
    """

    def __init__(self, server: str, folder: Path) -> None:
        """Remember where to look, and where to write."""
        self._server = server
        self._folder = folder

    def _read(self, path: str, body: Mapping[str, object]) -> list[dict[str, str]]:
        return httpx.post(f"{self._server}/api/{path}", json=body).raise_for_status().json()

    def _take(self, name: str, path: str, height: int, *texts: str) -> None:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(
                executable_path=shutil.which("chromium"), args=["--no-sandbox"]
            )
            page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
            page.goto(f"{self._server}/{path}")
            take(page, self._folder / f"walk-{name}.png", *texts, height=height)
            browser.close()

    def take_schedule(self) -> None:
        """Take a picture of the deployment, its schedules and its runs."""
        address = f"{self._server}/api/deployments/name/image-to-video/daily"
        daily = httpx.get(address).raise_for_status().json()["id"]
        self._take("schedule", f"deployments/deployment/{daily}", 700, "Every 30 seconds")

    def take_runs(self) -> None:
        """Take pictures of the run of the demo, and of the batch and its failed task."""
        ended = {"state": {"type": {"any_": ["COMPLETED"]}}}
        runs = self._read("flow_runs/filter", {"sort": "START_TIME_ASC", "flow_runs": ended})
        self._take("demo", f"runs/flow-run/{runs[0]['id']}", HEIGHT, "Completed", "Stored ")
        (batch,) = [run["id"] for run in runs if run["state_name"] == "PartlyStored"]
        of_batch = {"flow_runs": {"id": {"any_": [batch]}}}
        found = self._read("artifacts/filter", of_batch)
        titles = {item["id"]: item["description"] or "" for item in found}
        (results,) = [id_ for id_, title in titles.items() if title.startswith("### Results of")]
        self._take("batch", f"artifacts/artifact/{results}", 560, "sku-4", "uncertain")
        failed = {"task_runs": {"state": {"type": {"any_": ["FAILED"]}}}}
        (task, *_) = self._read("task_runs/filter", failed | of_batch)
        self._take("failed", f"runs/task-run/{task['id']}", 520, "Failed", "SubmissionUncertain")


def report(took: list[tuple[str, float]]) -> str:
    """Return the table of commands and times."""
    rows = [f"| `{command}` | {seconds:.0f} s |" for command, seconds in took]
    total = f"| all commands | {sum(seconds for _, seconds in took):.0f} s |"
    head = ["`python docs/first_day.py`", "", markdown.machine("prefect"), ""]
    return "\n".join([*head, "| command | time |", "| --- | --- |", *rows, total])


def main() -> None:
    """Make the walk, print the times, and write them and the pictures where they are wanted."""
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "--installed", type=Path, help="environment with the wheel; nothing is installed"
    )
    parser.add_argument("--report", type=Path, help="page that gets the table of times")
    parser.add_argument("--pictures", type=Path, help="folder for the pictures")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        took: list[tuple[str, float]] = []
        if options.installed:
            scripts = options.installed.absolute() / "bin"
        else:
            scripts, seconds = install(folder)
            took.append((COMMANDS[0], seconds))
        ports = {shown: str(free_port()) for shown in PORTS}
        (folder / "work").mkdir()
        shell = Shell(scripts, folder / "work", ports, stack, took=took)
        photographer = Photographer(f"http://127.0.0.1:{ports['4200']}", options.pictures)
        try:
            for command in walk(shell):
                if options.pictures and command.startswith("prefect worker start"):
                    photographer.take_schedule()
        except Exception:
            for log in shell.folder.glob("*.log"):
                print(log.name, log.read_text(encoding="utf-8")[-3000:], file=sys.stderr)
            raise
        text = report(shell.took)
        print(text)
        if options.report:
            markdown.put_section(options.report, "times", text)
        if options.pictures:
            photographer.take_runs()


if __name__ == "__main__":
    main()
