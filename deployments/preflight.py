# SPDX-License-Identifier: Apache-2.0
"""Checks of a command before it creates a flow run: a mistake leaves no failed run behind.

What this machine knows by itself is checked first, before Prefect is imported or started. The flows
check the same again, since most of their runs come from no command.
"""

import asyncio
from pathlib import Path

from ..flows.runtime.block_loading import is_block_name
from ..runway.batch.errors import InvalidManifest
from ..runway.batch.manifest import read_rows
from ..runway.batch.rows import batch_keys, check_rows
from ..runway.batch.table_files import FileFormat
from ..runway.environment import read_settings, require_api_key
from ..runway.errors import InvalidRequest, StorageError, StorageUnavailable
from ..runway.settings import CometAPISettings
from ..runway.storage.factory import open_storage
from ..runway.storage.paths import local_path


def check_settings() -> CometAPISettings:
    """Check the settings, and return them.

    Raises:
        InvalidEnvironment: One of them is not valid.
        LedgerUnavailable: The ledger's URL is not valid.
    """
    settings = read_settings()
    _check_ledger(settings)
    return settings


def check_purchase(storage: str | None, credentials: str | None = None) -> CometAPISettings:
    """Check what a generation needs of this machine, and return the settings.

    An object store is not asked, since the flow does that, and each question takes its time.

    Args:
        storage: Location for the videos, or None for that of the settings.
        credentials: Name of the block with the API key, or None for the key of the settings.

    Raises:
        AuthenticationError: There is no API key.
        StorageUnavailable: The folder for the videos is not writable.
        CometAPIError: As by `check_settings`.
    """
    settings = read_settings()
    if credentials is None:
        require_api_key(settings)
    location = storage or settings.storage
    if not is_block_name(location) and local_path(location) is not None:
        try:
            open_storage(location).check()
        except StorageError as error:
            raise StorageUnavailable(error.message) from error
    _check_ledger(settings)
    return settings


def check_spending_limit(max_spend: float | None, settings: CometAPISettings) -> None:
    """Check that a limit in money has any price; the flow checks the price of each model.

    Args:
        max_spend: Spending limit in the currency of the prices, or None.
        settings: Settings with the prices.

    Raises:
        InvalidRequest: There is a limit, and no price.
    """
    if max_spend is not None and not settings.prices:
        raise InvalidRequest(
            "max_spend needs prices. Set COMETAPI_PRICES to your own, or to catalogue for those of "
            "CometAPI, or use max_seconds"
        )


def check_every_row(manifest: str, file_format: FileFormat | None, encoding: str | None) -> None:
    """Check that each row of a local file is a valid request; other manifests are read only once.

    Args:
        manifest: Path or URL of the manifest.
        file_format: Format of the manifest, whatever its suffix is.
        encoding: Encoding of the manifest, if it is named.

    Raises:
        InvalidManifest: A row is not valid.
    """
    path = local_path(manifest)
    if path is None or not Path(path).is_file():  # what is read from a pipe is gone
        return
    rows = read_rows(manifest, file_format=file_format, encoding=encoding)
    _, bad = check_rows(rows, batch_keys("batch"))
    if bad:
        raise InvalidManifest("not every row is valid", rows=bad)


def _check_ledger(settings: CometAPISettings) -> None:
    url = settings.ledger_url.get_secret_value() if settings.ledger_url else ""
    if url and not is_block_name(url):
        from ..runway.ledger.store import get_ledger

        get_ledger(url)


def check_blocks(
    settings: CometAPISettings, storage: str | None, credentials: str | None = None
) -> None:
    """Check that the saved blocks which a command names can be loaded; Prefect has them.

    Blocks of sources are not checked: a request that is bought already needs its sources no more.

    Args:
        settings: Settings, which may name a block as the ledger.
        storage: Location for the videos, or None if the command needs none.
        credentials: Name of the block with the API key, or None if the command needs none.

    Raises:
        AuthenticationError: There is no such block for the credentials.
        StorageUnavailable: There is no such block for the storage.
        LedgerUnavailable: There is no such block for the ledger.
        RuntimeError: Prefect does not answer.
    """
    location = storage or ""
    ledger = settings.ledger_url.get_secret_value() if settings.ledger_url else ""
    if not (credentials or is_block_name(location) or is_block_name(ledger)):
        return
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        client.raise_for_api_version_mismatch_once()  # as a flow does: if it is away, this says so
    if credentials:
        from ..flows.runtime.caller_arguments import as_credentials

        as_credentials(credentials)
    asyncio.run(_load_blocks(settings, location, ledger))


async def _load_blocks(settings: CometAPISettings, location: str, ledger: str) -> None:
    from ..flows.runtime.block_storage import resolve_storage
    from ..flows.runtime.ledger_access import open_ledger

    if is_block_name(location):
        try:
            await resolve_storage(location)
        except StorageError as error:
            raise StorageUnavailable(error.message) from error
    if is_block_name(ledger):
        await open_ledger(settings)
