# SPDX-License-Identifier: Apache-2.0
"""Credentials and storage as a caller gives them: a block, its name, or a path.

The ledger records the name of a block, by which another run finds it. So a storage block that only
this process knows cannot be used, unless its location says the same.
"""

import os
from typing import Any

from prefect.blocks.core import Block

from ...blocks.credentials import CometAPICredentials
from ...runway.errors import AuthenticationError, CometAPIError, StorageUnavailable
from ...runway.redact import hide_secrets
from .block_loading import is_block_name, load_block
from .sync import run_sync

GivenCredentials = CometAPICredentials | str | None
"""Credentials, or the name of their block."""

GivenStorage = str | os.PathLike[str] | Block | None
"""Folder, URL, storage block, or the name of one."""


def as_credentials(given: Any) -> Any:
    """Return the credentials that a name stands for; anything else is returned unchanged.

    Raises:
        AuthenticationError: There is no such block, or it does not hold credentials.
    """
    if not isinstance(given, str):
        return given
    slug, own = CometAPICredentials.get_block_type_slug(), given.strip()
    name = own if "/" in own else f"{slug}/{own}"
    if hide_secrets(own) != own or not is_block_name(name):
        raise AuthenticationError(
            "credentials takes a CometAPICredentials block or the name of one, such as 'prod', and "
            "not an API key"
        )
    block = run_sync(load_block(name, AuthenticationError))
    if not isinstance(block, CometAPICredentials):
        raise AuthenticationError(f"the block {name} does not hold CometAPI credentials")
    return block


def as_location(given: GivenStorage, lack: type[CometAPIError] = StorageUnavailable) -> str | None:
    """Return the location that a storage block or a path stands for.

    Args:
        given: Storage in any form.
        lack: Type of the error to raise if other runs could not find the storage.

    Raises:
        CometAPIError: The block is not saved.
    """
    if given is None or isinstance(given, str):
        return given
    if isinstance(given, Block):
        return _location_of(given, lack)
    path = os.fspath(given)
    return f"./{path}" if is_block_name(path) else path


def path_as_text(given: Any) -> Any:
    """Return a path as text; anything else is returned unchanged."""
    return os.fspath(given) if isinstance(given, os.PathLike) else given


def shown_block(block: Block) -> str:
    """Return a block as it is recorded: by its name, without its content."""
    name = block._block_document_name  # noqa: SLF001 -- Prefect offers no other way to it
    return f"{block.get_block_type_slug()}/{name or '(not saved)'}"


def _location_of(block: Any, lack: type[CometAPIError]) -> str:
    slug = block.get_block_type_slug()
    if block._block_document_name:  # noqa: SLF001 -- Prefect offers no other way to it
        return shown_block(block)
    if slug == "local-file-system":
        return str(block.basepath or ".")
    if slug == "remote-file-system" and not block.settings:
        return str(block.basepath)
    raise lack(
        f"the storage block of type {slug} is not saved, so no other run could find its videos. "
        "Save it first, as in block.save('videos'), and pass it or its name"
    )
