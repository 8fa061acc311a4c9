# SPDX-License-Identifier: Apache-2.0
"""Prefect for a terminal: its own output kept out, its server started.

Prefect reads its settings while it is imported, so this is called before, and it only sets what
the user did not. Log records still go to the run history.
"""

import os
import warnings

_QUIET = {
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    "PREFECT_SERVER_LOGGING_LEVEL": "CRITICAL",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    "DO_NOT_TRACK": "1",
}


def quieten_prefect() -> None:
    """Silence Prefect's console output and its telemetry."""
    warnings.filterwarnings("ignore", module="prefect.*")
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)


def use_embedded_server() -> None:
    """Let Prefect start its own server for this process, whatever the profile says."""
    for name in ("PREFECT_API_URL", "PREFECT_API_KEY"):
        os.environ.pop(name, None)
    os.environ["PREFECT_PROFILE"] = "ephemeral"  # one of Prefect's own, there on every machine


def start_prefect() -> None:
    """Have Prefect's server answer before the first flow; an embedded one is started by this."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        client.api_healthcheck()
