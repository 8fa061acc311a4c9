# SPDX-License-Identifier: Apache-2.0
"""Connection of a command to Prefect's server, which is started if none is configured."""

import os
import time
from collections.abc import Callable
from typing import TypeVar

from ..flows.runtime.garbage_collection import resume_collections
from .temporary_server import TemporaryServer

T = TypeVar("T")

_INTERVAL = 0.1
"""Seconds between two health checks of a server that is starting."""


def uses_temporary_server() -> bool:
    """Return True if no Prefect server is configured, so that `connect` starts one."""
    from prefect.settings import get_current_settings

    settings = get_current_settings()
    return not settings.api.url and settings.server.ephemeral.enabled


def connect(load: Callable[[], T], say: Callable[[str], object]) -> T:
    """Import Prefect and what a command needs from it; start a server if none is configured.

    Modules are loaded while the server starts. A server that is configured is asked by the first
    flow, before its run is created.

    Args:
        load: Function that imports the rest, and whose value is returned.
        say: Function that shows what is waited for.

    Raises:
        RuntimeError: The server that was started does not answer.
    """
    from prefect.context import refresh_global_settings_context
    from prefect.settings import get_current_settings

    settings = get_current_settings()
    if not uses_temporary_server():
        loaded = load()
    else:
        say("starting a Prefect server")
        server = TemporaryServer.start()
        os.environ["PREFECT_API_URL"] = server.url
        refresh_global_settings_context()
        loaded = load()
        _wait(server, settings.server.ephemeral.startup_timeout_seconds)
    resume_collections()
    return loaded


def _wait(server: TemporaryServer, timeout: float) -> None:
    from prefect.client.orchestration import get_client

    end = time.monotonic() + timeout
    with get_client(sync_client=True) as client:
        while client.api_healthcheck() is not None:
            server.check()
            if time.monotonic() > end:
                raise RuntimeError(f"The temporary server did not start within {timeout} s")
            time.sleep(_INTERVAL)
