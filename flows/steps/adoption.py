# SPDX-License-Identifier: Apache-2.0
"""Adoption of task ids that the user provides.

An id is looked up in the ledger. A new id is checked with the service and then recorded.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from ...blocks.credentials import CometAPICredentials
from ...runway.errors import AuthenticationError
from ...runway.ledger.entry import Entry, Intent
from ...runway.models.requests import GenerationRequest
from ...runway.settings import CometAPISettings
from ..runtime import log
from ..runtime.block_loading import load_block
from ..runtime.identity import resolve_key
from ..runtime.run_context import RunContext

if TYPE_CHECKING:
    from ...runway.api.adoption import Check
    from ...runway.ledger.store import Ledger

ATTACHED_GRACE = 4
"""Grace time for the id of an older generation, in poll intervals.

The service may not know the id during this time.
"""


async def credentials_of(
    entry: Entry,
    credentials: CometAPICredentials | None,
    settings: CometAPISettings | None = None,
) -> CometAPICredentials:
    """Return the given credentials, or those of the block that the entry was bought with.

    Without either, the credentials come from the settings.

    Args:
        entry: Entry of the generation.
        credentials: Credentials that the run was given, or None.
        settings: Settings that the run has read; read anew by default.

    Raises:
        AuthenticationError: There are no credentials, or the block cannot be loaded.
    """
    if credentials or not entry.credentials:
        return credentials or CometAPICredentials.from_settings(settings)
    return await load_block(entry.credentials, AuthenticationError)


async def check_id(context: RunContext, task_id: str) -> "Check":
    """Check with the service that it knows a task id.

    An unknown id is checked again until the grace time of an older generation is over.
    """
    from ...runway.api.adoption import check_task

    interval = context.settings.poll_interval
    async with context.open_client() as client:
        return await check_task(client, task_id, polls=ATTACHED_GRACE, interval=interval)


async def adopt_id(context: RunContext, intent: Intent, task_id: str) -> Entry:
    """Record a task id that was given to a run, once the service knows it.

    Raises:
        IdempotencyKeyConflict: The key has another id, or the id belongs to another key.
        UnknownTaskId: The service does not know the id.
        LedgerUnavailable: The ledger cannot be used.
    """
    from ...runway.api.adoption import adopt

    async def ask() -> "Check":
        return await check_id(context, task_id)

    return await adopt(await context.ledger(), intent, task_id, ask, warn=log.logger().warning)


async def adopt_by_hand(
    ledger: "Ledger", entry: Entry, task_id: str, warn: Callable[[str], None]
) -> Entry:
    """Record a task id that a person found for an entry.

    The id is checked with the credentials of the entry.

    Raises:
        IdempotencyKeyConflict: The key has another id, or the id belongs to another key.
        UnknownTaskId: The service does not know the id.
        LedgerUnavailable: The ledger cannot be used.
    """
    from ...runway.api.adoption import Check, adopt, check_task

    async def ask() -> Check:
        try:
            credentials = await credentials_of(entry, None)
        except AuthenticationError as error:
            return Check(known=None, why=error.message)
        if credentials.base_url != entry.base_url:
            elsewhere = f"the API key is for {credentials.base_url}, not {entry.base_url}"
            return Check(known=None, why=elsewhere)
        async with credentials.get_client() as client:
            return await check_task(client, task_id)

    return await adopt(ledger, entry, task_id, ask, warn=warn)


async def key_for(
    context: RunContext,
    request: GenerationRequest,
    idempotency_key: str | None,
    *,
    task_id: str | None,
    variation: int,
) -> str:
    """Return the user's own idempotency key, or the key of this request in the current run.

    A task id that an earlier run recorded for the same request keeps its key.
    """
    if idempotency_key is None and task_id is not None:
        known = await (await context.ledger()).find_by_task_id(task_id, context.base_url)
        if known and known.is_of(request):
            return known.idempotency_key
    return resolve_key(idempotency_key, request, variation, task_id)
