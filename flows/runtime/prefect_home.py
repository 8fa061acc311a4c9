# SPDX-License-Identifier: Apache-2.0
"""Home folder of Prefect, in which the default ledger is.

Prefect needs a second to be imported. A command that only reads the ledger does without, if nothing
that Prefect reads can name another folder.
"""

import os
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

_NAMES_A_HOME = re.compile(r"\bhome\b|prefect_home|profiles_path", re.IGNORECASE)
_HOME, _PROFILES = "PREFECT_HOME", "PREFECT_PROFILES_PATH"


def prefect_home() -> Path:
    """Return the absolute path of Prefect's home folder."""
    # Loaded settings may be temporary ones, which only Prefect knows.
    known = None if "prefect" in sys.modules else home_without_prefect(os.environ)
    if known is None:
        from prefect.settings import get_current_settings

        known = get_current_settings().home
    return known.expanduser().absolute()


def home_without_prefect(variables: Mapping[str, str]) -> Path | None:
    """Return Prefect's home folder, or None if only Prefect itself can say where it is."""
    given = {name: value for name, value in variables.items() if name.upper() == _HOME}
    if given:  # the strongest source; the names of settings are read in any case
        return Path(given[_HOME]) if list(given) == [_HOME] and given[_HOME] else None
    try:
        usual = Path("~/.prefect").expanduser()
    except RuntimeError:  # the user has no home folder
        return None
    files = [Path(".env"), Path("prefect.toml"), Path("pyproject.toml"), usual / "profiles.toml"]
    if any(name.upper() == _PROFILES for name in variables) or _may_name_a_home(files):
        return None
    return usual


def _may_name_a_home(files: Iterable[Path]) -> bool:
    try:
        texts = [file.read_text("utf-8") for file in files if file.exists()]
    except (OSError, UnicodeDecodeError):
        return True
    return any(_NAMES_A_HOME.search(text) for text in texts)
