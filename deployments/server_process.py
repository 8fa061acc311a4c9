# SPDX-License-Identifier: Apache-2.0
"""Program of the temporary Prefect server: it prints its port, and ends with its standard input."""

import os
import socket
import sys
from threading import Thread
from typing import Any

from ..flows.runtime.garbage_collection import pause_collections, resume_collections


def serve() -> None:
    """Serve Prefect's API on a free port of this machine until standard input ends."""
    pause_collections()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        sys.stdout.write(f"{listener.getsockname()[1]}\n")
        sys.stdout.flush()
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # nobody reads more than the port
        server = _load()
        Thread(target=_end_with_command, args=(server,), daemon=True).start()
        resume_collections()
        server.run(sockets=[listener])


def _load() -> Any:
    import uvicorn
    from prefect.server.api.server import create_app

    app = create_app(ephemeral=True, final=True)
    return uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="on"))


def _end_with_command(server: Any) -> None:
    """End the server when the command has ended, which closes its end of the pipe."""
    # sys.stdin has a lock, which this thread would hold at the exit of the interpreter.
    while os.read(sys.stdin.fileno(), 1):
        pass
    server.should_exit = True


if __name__ == "__main__":
    serve()
