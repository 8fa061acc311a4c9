# SPDX-License-Identifier: Apache-2.0
"""Prefect blocks that a setting or an entry of the ledger names, as type-slug/name."""

import re
from typing import Any

from prefect.blocks.core import Block

from ...runway.errors import CometAPIError
from ...runway.redact import scrub

_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*/[A-Za-z0-9][A-Za-z0-9 _-]*")


def is_block_name(place: str) -> bool:
    """Whether it names a Prefect block, as s3-bucket/prod."""
    return bool(_NAME.fullmatch(place))


async def load_block(name: str, lack: type[CometAPIError], hint: str = "") -> Any:
    """The saved block of a name; a ``lack``, with a hint, where it cannot be loaded."""
    try:
        return await Block.aload(name)
    except Exception as error:  # noqa: BLE001 -- Prefect raises many kinds
        why = scrub(str(error), limit=120)
        # not chained: a block that is not valid any more is repeated in it, decrypted
        raise lack(f"the block {name} cannot be loaded ({why}){hint}") from None
