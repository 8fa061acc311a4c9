# SPDX-License-Identifier: Apache-2.0
"""Stored sources of a request, read right before it is submitted.

They are read before the key is claimed, so a source that cannot be used costs nothing. Each attempt
reads them again, and gets new signatures.
"""

from functools import partial

from ...runway.errors import InvalidSource, SourceUnavailable
from ...runway.models.requests import GenerationRequest
from ...runway.sources.preparation import (
    PreparedRequest,
    SourceProblem,
    for_purchase,
    prepare,
    validity,
)
from ..runtime import log
from ..runtime.block_sources import open_source
from ..runtime.run_context import RunContext


async def prepare_sources(
    context: RunContext, request: GenerationRequest, key: str, *, adopts: bool
) -> PreparedRequest:
    """Return a request with what its submission sends, and the versions of its stored sources.

    A request that is bought already needs no sources any more (``for_purchase``).

    Args:
        context: Context of the run.
        request: Request to submit.
        key: Idempotency key of the generation.
        adopts: Whether a task id is adopted, so that nothing is sent.

    Raises:
        InvalidSource: The service does not accept a source, and nothing is bought yet.
        SourceUnavailable: A source cannot be read, and nothing is bought yet.
        LedgerUnavailable: The ledger cannot be used.
    """
    if not request.stored_sources():
        return PreparedRequest(request)
    entry = await (await context.ledger()).get(key)
    is_bought = entry is not None and not entry.is_free() and entry.is_of(request)
    versions = entry.source_versions if entry and is_bought else None
    if adopts:
        return PreparedRequest(request, versions or {})
    seconds = validity(context.settings.generation_timeout)
    read: PreparedRequest | SourceProblem
    try:
        read = await prepare(request, partial(open_source, context=context), seconds)
    except (InvalidSource, SourceUnavailable) as error:
        read = error
    prepared = for_purchase(request, versions, read)
    if not isinstance(prepared, PreparedRequest):
        raise prepared
    if prepared.problem:
        log.logger().warning(
            "%s; this key has a submission already, which no longer needs the source",
            prepared.problem.message,
        )
    for path, summary in prepared.summaries.items():
        log.log_progress("Source %s: %s", path, summary)
    return prepared
