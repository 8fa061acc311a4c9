# SPDX-License-Identifier: Apache-2.0
"""Environment variables of Prefect for commands: no console output, no telemetry.

Prefect reads its settings while it is imported, so commands change the environment before the
import. `quieten_prefect` sets only variables that the user has not set. Log records still reach the
log of the run in Prefect's UI.
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
    """Turn off Prefect's console output and its telemetry."""
    warnings.filterwarnings("ignore", module="prefect.*")
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)


def use_embedded_server() -> None:
    """Make Prefect start a server for this process, and ignore the user's profile."""
    for name in ("PREFECT_API_URL", "PREFECT_API_KEY"):
        os.environ.pop(name, None)
    os.environ["PREFECT_PROFILE"] = "ephemeral"  # Prefect ships this profile


def start_prefect() -> None:
    """Wait until Prefect's server answers; without a configured one, this starts one."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        client.api_healthcheck()
