# SPDX-License-Identifier: Apache-2.0
"""Prefect server for one command, in a process of its own.

Prefect's client also starts one if none is configured. But first it imports the whole server into
the command, for two seconds, and its server outlives a command that is killed. This one starts at
once, while the command still loads its own modules, and ends with the command, however that ends.
"""

import atexit
import os
import subprocess
import sys
from typing import IO, Self, cast

STOP_TIMEOUT = 5.0
"""Seconds that the server has to end by itself."""

_PROGRAM = f"{__package__}.server_process"


class TemporaryServer:
    """Starting or running server, which is stopped when this process ends.

    Attributes:
        url: Address of its API.
    """

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self.url = f"http://127.0.0.1:{port}/api"
        self._process = process

    @classmethod
    def start(cls) -> Self:
        """Start a server with the settings of this process, and return when it has a port.

        Raises:
            RuntimeError: Its process has ended.
        """
        process = subprocess.Popen(  # noqa: S603 -- all words are fixed
            [sys.executable, "-P", "-m", _PROGRAM],  # -P: this folder may have a module of the name
            stdin=subprocess.PIPE,  # its end signals the end of this process
            stdout=subprocess.PIPE,
            env=os.environ | {"PREFECT_SERVER_UI_ENABLED": "false"},
            # Ctrl-C in a terminal reaches the command alone. The command reports to the server how
            # its run has ended, and then stops it.
            start_new_session=True,
        )
        with cast("IO[bytes]", process.stdout) as output:
            port = output.readline()
        server = cls(process, int(port or 0))
        atexit.register(server.stop)
        if not port:
            process.wait()
        server.check()
        return server

    def check(self) -> None:
        """Check that the server is starting or running.

        Raises:
            RuntimeError: Its process has ended.
        """
        if (status := self._process.poll()) is not None:
            raise RuntimeError(f"The temporary server has ended with status {status}")

    def stop(self) -> None:
        """Stop the server, and wait for its end."""
        with self._process:
            self._process.terminate()
            try:
                self._process.wait(STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                self._process.kill()
