# SPDX-License-Identifier: Apache-2.0
"""The walk of a new user: the commands of docs/first-day.md in their order, each with its time."""

import os
import re
import shlex
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from .cluster import wait_for
from .waiting import stop, until

PAGE = (Path(__file__).parents[1] / "docs" / "first-day.md").read_text(encoding="utf-8")
PORTS = ("4200", "8777", "8778")
"""Ports on the page: Prefect's server, and the two sandboxes."""

PATIENCE = 600
"""Longest acceptable time of one command, in seconds."""

EXITS_WITH_1 = ("prefect-cometapi batch catalogue.csv",)
"""Commands that report a failure until the failure is fixed."""


COMMANDS = "".join(re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)).splitlines()


def example(language: str) -> str:
    """Return the only file of a language on the page."""
    (found,) = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    return found


@dataclass
class Shell:
    """Terminals of a new user in one folder.

    Attributes:
        scripts: Folder of scripts of the environment with the installed package.
        folder: Working folder.
        ports: Port that is used in place of each port on the page.
        stack: Stops the servers at its end.
        environment: Environment variables, with those that were exported.
        servers: Processes that keep running, by their program and subcommand.
        took: Each command with its duration in seconds.
        output: Text that the last command printed.
        fixed: True once the user has corrected the failed batch.
    """

    scripts: Path
    folder: Path
    ports: dict[str, str]
    stack: ExitStack
    environment: dict[str, str] = field(default_factory=dict)
    servers: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    took: list[tuple[str, float]] = field(default_factory=list)
    output: str = ""
    fixed: bool = False

    def __post_init__(self) -> None:
        """Keep of the environment what does not concern Python, Prefect or CometAPI."""
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("PYTHON", "PREFECT_", "COMETAPI_"))
        }
        self.environment = kept | {
            "PATH": f"{self.scripts}{os.pathsep}{kept['PATH']}",
            "PREFECT_HOME": str(self.folder / "home"),
            # The UI looks for its server at the port of the page if it is given no other.
            "PREFECT_UI_API_URL": f"http://127.0.0.1:{self.ports['4200']}/api",
            "COLUMNS": "120",
        }

    def type(self, command: str) -> None:
        """Run a command, or start it if it is a server, and record how long the user waits."""
        begun = time.monotonic()
        if command.startswith("export "):
            self._export(command)
            return
        if command.startswith("prefect server start"):
            self._serve(f"{command} --port {self.ports['4200']}")
            wait_for(f"http://127.0.0.1:{self.ports['4200']}/api/health")
        elif command.startswith("prefect-cometapi sandbox"):
            shown = "8778" if "--port 8778" in command else "8777"
            words = command.replace(" --port 8778", "")
            self._serve(f"{words} --port {self.ports[shown]}")
            wait_for(f"http://127.0.0.1:{self.ports[shown]}/openapi.json")
        elif command.startswith("prefect worker start"):
            before = self._videos()
            self._serve(command)
            until(lambda: self._videos() > before, "the first scheduled video", PATIENCE)
        elif command.startswith("prefect-cometapi ledger adopt"):
            # The command that was printed has the id of this purchase.
            (printed,) = re.findall(r"Next: (prefect-cometapi ledger adopt \S+ \S+)", self.output)
            self._run(printed)
        else:
            self._run(command)
        self.took.append((command, time.monotonic() - begun))
        print(f"{self.took[-1][1]:6.1f} s  {command}", flush=True)

    def _videos(self) -> int:
        return len(list((self.folder / "videos").glob("*.mp4")))

    def _export(self, command: str) -> None:
        for word in shlex.split(command)[1:]:
            name, _, value = word.partition("=")
            self.environment[name] = self._moved(value)

    def _moved(self, text: str) -> str:
        for shown, used in self.ports.items():
            text = text.replace(f":{shown}", f":{used}")
        return text

    def _words(self, command: str) -> list[str]:
        first, *rest = shlex.split(command)
        # The script of Prefect may be missing there, so Prefect runs as a module.
        prefect = [str(self.scripts / "python"), "-m", "prefect"]
        return [*(prefect if first == "prefect" else [str(self.scripts / first)]), *rest]

    def _serve(self, command: str) -> None:
        program = " ".join(shlex.split(command)[:2])
        with (self.folder / f"{program}.log").open("ab") as log:
            self.servers[program] = subprocess.Popen(
                self._words(command),
                env=self.environment,
                cwd=self.folder,
                stdout=log,
                stderr=log,
            )
        self.stack.callback(stop, self.servers[program], 5)

    def _run(self, command: str) -> None:
        done = subprocess.run(
            self._words(self._moved(command)),
            env=self.environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        self.output = done.stdout + done.stderr
        expected = int(command.startswith(EXITS_WITH_1) and not self.fixed)
        assert done.returncode == expected, f"{command}: {done.returncode}\n{self.output}"


def walk(shell: Shell) -> Iterator[str]:
    """Write the files of the page, run its commands after the installation, and yield each."""
    (shell.folder / "teaser.py").write_text(example("python"), encoding="utf-8")
    manifest = shell.folder / "catalogue.csv"
    manifest.write_text(example("csv"), encoding="utf-8")
    for command in COMMANDS[1:]:
        shell.type(command)
        yield command
        if command.startswith("prefect deployment schedule clear"):
            stop(shell.servers["prefect worker"])
        elif command.startswith("prefect-cometapi ledger adopt"):
            faulty = manifest.read_text(encoding="utf-8")
            manifest.write_text(faulty.replace("left,7,", "left,5,"), encoding="utf-8")
            shell.fixed = True
