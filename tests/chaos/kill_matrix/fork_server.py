# SPDX-License-Identifier: Apache-2.0
"""Server that has imported everything and forks processes, each within milliseconds.

``python -m tests.chaos.kill_matrix.fork_server`` reads one JSON object per line and forks a process
for each. When a process ends, the server writes a line with its exit status. The server has no
threads, because a fork keeps only one.
"""

import gc
import importlib
import json
import os
import select
import signal
import sys
import threading
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from ..harness.processes import run_fork
from . import victim

Spec = dict[str, Any]


class Forks:
    """Running forks, and the pipe by which the kernel reports the end of one."""

    def __init__(self) -> None:
        self.children: dict[int, Spec] = {}
        self.ended, wakeup = os.pipe()
        os.set_blocking(wakeup, False)
        os.set_blocking(self.ended, False)
        signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def fork(self, spec: Spec) -> None:
        """Start a process for a specification."""
        threads = list(Path("/proc/self/task").iterdir())
        assert len(threads) == 1, f"threads before a fork: {threading.enumerate()}"
        pid = os.fork()
        if pid == 0:
            run(spec)
        self.children[pid] = spec

    def kill(self, job: int) -> None:
        """Kill the process of a job if it is still alive."""
        for pid, spec in self.children.items():
            if spec["job"] == job:
                os.kill(pid, signal.SIGKILL)

    def reap(self) -> None:
        """Report each process that has ended."""
        with suppress(BlockingIOError):
            os.read(self.ended, 4096)
        for pid in list(self.children):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if not ended:
                continue
            spec = self.children.pop(pid)
            if spec["do"] == "warm up" and status == 0:
                preload(Path(spec["outcome"]))
            code = os.waitstatus_to_exitcode(status)
            print(json.dumps({"job": spec["job"], "status": code}), flush=True)


def run(spec: Spec) -> NoReturn:
    """Run the work of a fork, write its outcome to a file, and exit."""

    def act() -> None:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        outcome = victim.perform(spec)
        Path(spec["outcome"]).write_text(json.dumps(outcome), encoding="utf-8")

    run_fork(act, Path(spec["log"]))


def preload(outcome: Path) -> None:
    """Import everything that a first run needed, so that no later run has to."""
    for name in json.loads(outcome.read_text(encoding="utf-8")).get("modules", []):
        if name not in sys.modules and not name.startswith("__"):
            with suppress(Exception), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                importlib.import_module(name)
    gc.collect()
    gc.freeze()


def serve() -> None:
    """Fork for each line of the input until the input ends."""
    from prefect_cometapi.runway.http_clients import tls_context

    tls_context()
    forks = Forks()
    waiting = b""
    print(json.dumps({"job": 0, "status": 0}), flush=True)
    while True:
        readable, _, _ = select.select([0, forks.ended], [], [])
        forks.reap()
        if 0 not in readable:
            continue
        read = os.read(0, 65536)
        if not read:
            break
        *lines, waiting = (waiting + read).split(b"\n")
        for line in lines:
            spec = json.loads(line)
            forks.kill(spec["job"]) if spec["do"] == "kill" else forks.fork(spec)
    for pid in forks.children:
        os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    serve()
