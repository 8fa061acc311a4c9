# SPDX-License-Identifier: Apache-2.0
"""Check of the stored sources of a batch before it is run; sends nothing."""

import asyncio
from collections.abc import Sequence

from ...runway.batch.models import BatchItem
from ...runway.errors import InvalidSource, SourceUnavailable
from ...runway.models.sources import StoredSource
from ...runway.sources.preparation import MIN_VALIDITY, SourceProblem, named, read_source
from ..runtime.block_sources import open_source
from ..runtime.run_context import RunContext

MAX_CONCURRENT_READS = 8
"""Maximum number of sources that are read at the same time."""


async def check_sources(
    items: Sequence[BatchItem], context: RunContext
) -> dict[str, SourceProblem]:
    """Return the problem with a source of each item that has one, by the ids of the items.

    A source that several items share is read once.
    """
    slots = asyncio.Semaphore(MAX_CONCURRENT_READS)
    checks: dict[tuple[str, str], asyncio.Task[SourceProblem | None]] = {}

    async def check(source: StoredSource) -> SourceProblem | None:
        async with slots:
            try:
                file = await open_source(source, context)
                await asyncio.to_thread(read_source, file, source, MIN_VALIDITY)
            except (InvalidSource, SourceUnavailable) as error:
                return error
        return None

    async with asyncio.TaskGroup() as group:
        for item in items:
            for source in item.request.stored_sources().values():
                name = (str(source), source.kind)
                checks[name] = checks.get(name) or group.create_task(check(source))
    problems: dict[str, SourceProblem] = {}
    for item in items:
        for path, source in item.request.stored_sources().items():
            if problem := checks[str(source), source.kind].result():
                problems.setdefault(item.id, named(problem, path))
    return problems
