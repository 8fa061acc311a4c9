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
import traceback
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from . import victim

Spec = dict[str, Any]


class Forks:
    """Living forks, and the pipe by which the kernel reports the end of one."""

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
            live(spec)
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
            found, status = os.waitpid(pid, os.WNOHANG)
            if not found:
                continue
            spec = self.children.pop(pid)
            if spec["do"] == "warm up" and status == 0:
                preload(Path(spec["outcome"]))
            code = os.waitstatus_to_exitcode(status)
            print(json.dumps({"job": spec["job"], "status": code}), flush=True)


def live(spec: Spec) -> NoReturn:
    """Run the work of a fork, write its outcome to a file, and exit."""
    code = 70
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        log = os.open(spec["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((nothing, 0), (log, 1), (log, 2)):
            os.dup2(source, target)
        outcome = victim.perform(spec)
        Path(spec["outcome"]).write_text(json.dumps(outcome), encoding="utf-8")
        code = 0
    except BaseException:  # noqa: BLE001 -- nothing may return into the parent's loop
        traceback.print_exc()
    finally:
        os._exit(code)


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
