# SPDX-License-Identifier: Apache-2.0
"""Environment variables of Prefect for commands: no console output, no telemetry.

Prefect reads its settings while it is imported, so commands change the environment before the
import. `quieten_prefect` sets only variables that the user has not set. Log records still reach the
log of the run in Prefect's UI.
"""

import os
import warnings
from importlib.metadata import version
from pathlib import Path
from urllib.parse import quote

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
    _name_database()


def _name_database() -> None:
    """Name the database of Prefect's own server, if its home has characters of URLs.

    Prefect writes the path of its home into a URL as it is. From 2.1 on, SQLAlchemy decodes that
    path, so a server in a home with ``%41`` would not find it.
    """
    home = os.environ.get("PREFECT_HOME", "")
    if set("?#%").intersection(home) and not version("sqlalchemy").startswith("2.0."):
        path = quote(str(Path(home).expanduser().absolute()))
        url = f"sqlite+aiosqlite:///{path}/prefect.db"
        os.environ.setdefault("PREFECT_SERVER_DATABASE_CONNECTION_URL", url)


def use_embedded_server() -> None:
    """Make Prefect start a server for this process, and ignore the user's profile."""
    for name in ("PREFECT_API_URL", "PREFECT_API_KEY"):
        os.environ.pop(name, None)
    os.environ["PREFECT_PROFILE"] = "ephemeral"  # Prefect ships this profile
