# SPDX-License-Identifier: Apache-2.0
"""Opening of the ledger that the settings name, by a URL or a block."""

from typing import TYPE_CHECKING

from prefect.settings import get_current_settings

from ...blocks.ledger import GenerationLedger
from ...runway.errors import LedgerUnavailable
from ...runway.settings import CometAPISettings
from .block_loading import is_block_name, load_block

if TYPE_CHECKING:
    from ...runway.ledger.store import Ledger


async def open_ledger(settings: CometAPISettings | None = None) -> "Ledger":
    """Return the ledger that the settings name.

    The ledger connects to its database when it is first used.

    Raises:
        LedgerUnavailable: The block cannot be loaded or is not a ledger block, or the URL is not a
            valid database URL.
    """
    # The import is here so that SQLAlchemy is loaded only when a ledger is first used.
    from ...runway.ledger.store import get_ledger

    secret = (settings or CometAPISettings()).ledger_url
    location = secret.get_secret_value() if secret else _default_url()
    if not is_block_name(location):
        return get_ledger(location)
    block = await load_block(location, LedgerUnavailable)
    if not isinstance(block, GenerationLedger):
        raise LedgerUnavailable(f"the block {location} is not a Generation Ledger block")
    return block.get_ledger()


def _default_url() -> str:
    return f"sqlite:///{get_current_settings().home.expanduser().absolute()}/cometapi-ledger.db"
