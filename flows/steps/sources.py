# SPDX-License-Identifier: Apache-2.0
"""Stored sources of a request, read right before it is submitted.

They are read before the key is claimed, so a source that cannot be used costs nothing. Each attempt
reads them again, and gets new signatures.
"""

from ...runway.errors import InvalidSource, SourceUnavailable
from ...runway.models.requests import GenerationRequest
from ...runway.sources.preparation import PreparedRequest, prepare, validity
from ..runtime import log
from ..runtime.block_sources import open_source
from ..runtime.run_context import RunContext


async def prepare_sources(
    context: RunContext, request: GenerationRequest, key: str, *, adopts: bool
) -> PreparedRequest:
    """Return a request with what its submission sends, and the versions of its stored sources.

    A request that is bought already needs no sources any more. So if they are gone, the versions
    are those that were bought. If they have changed, the versions are the new ones, and the
    purchase ends as an ``IdempotencyKeyConflict``.

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
    bought = entry if entry and not entry.is_free() and entry.is_of(request) else None
    if adopts:
        return PreparedRequest(request, bought.source_versions if bought else {})
    try:
        prepared = await prepare(
            request, open_source, validity(context.settings.generation_timeout)
        )
    except (InvalidSource, SourceUnavailable) as error:
        if bought is None:
            raise
        log.logger().warning(
            "%s; this key has a submission already, which needs the source no more", error.message
        )
        return PreparedRequest(request, bought.source_versions, problem=error)
    for path, summary in prepared.summaries.items():
        log.log_progress("Source %s: %s", path, summary)
    if bought and not bought.source_versions:  # adopted, when nothing was known of its sources
        return PreparedRequest(request, {}, prepared.sent)
    return prepared
