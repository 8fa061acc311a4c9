# SPDX-License-Identifier: Apache-2.0
"""Opening of the ledger that the settings name, by a URL or a block."""

from contextlib import suppress
from urllib.parse import quote

from ...runway.environment import read_settings
from ...runway.errors import LedgerUnavailable
from ...runway.ledger.store import Ledger, get_ledger
from ...runway.settings import CometAPISettings
from .block_loading import is_block_name, load_block
from .prefect_home import prefect_home


async def open_ledger(settings: CometAPISettings | None = None) -> Ledger:
    """Return the ledger that the settings name.

    The ledger connects to its database when it is first used.

    Raises:
        LedgerUnavailable: The block cannot be loaded or is not a ledger block, or the URL is not a
            valid database URL.
    """
    secret = (settings or read_settings()).ledger_url
    location = secret.get_secret_value() if secret else _default_url()
    if secret is None:
        with suppress(OSError):  # the ledger reports that its folder is missing
            prefect_home().mkdir(mode=0o700, parents=True, exist_ok=True)
    if not is_block_name(location):
        return get_ledger(location)
    from ...blocks.ledger import GenerationLedger

    block = await load_block(location, LedgerUnavailable)
    if not isinstance(block, GenerationLedger):
        raise LedgerUnavailable(f"the block {location} is not a Generation Ledger block")
    return block.get_ledger()


def _default_url() -> str:
    # A question mark in the path would begin the query of the URL.
    return f"sqlite:///{quote(str(prefect_home()))}/cometapi-ledger.db"
