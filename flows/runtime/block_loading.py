# SPDX-License-Identifier: Apache-2.0
"""Loading of Prefect blocks that a setting or a ledger entry names as ``type-slug/name``."""

import re
from typing import Any

from ...runway.errors import CometAPIError
from ...runway.redact import scrub

_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*/[A-Za-z0-9][A-Za-z0-9 _-]*")


def is_block_name(location: str) -> bool:
    """Return whether a location is the name of a Prefect block, such as ``s3-bucket/prod``."""
    return bool(_NAME.fullmatch(location))


async def load_block(name: str, lack: type[CometAPIError], hint: str = "") -> Any:
    """Load a saved block by its name.

    Args:
        name: Name of the block, as ``type-slug/name``.
        lack: Type of the error to raise if the block cannot be loaded.
        hint: Text to append to the error message.
    """
    from prefect.blocks.core import Block  # the name alone needs no Prefect

    try:
        return await Block.aload(name)
    except Exception as error:  # noqa: BLE001 -- Prefect raises many kinds
        why = scrub(str(error), limit=120)
        # The error is not chained: for a block that is no longer valid, Prefect's error contains
        # the decrypted block.
        raise lack(f"the block {name} cannot be loaded ({why}){hint}") from None
