# SPDX-License-Identifier: Apache-2.0
"""Artifacts of a batch in the Prefect UI: progress, results and posters."""

import asyncio
import base64
import json
from uuid import UUID

from ...runway.batch.models import BatchResult, ItemResult, Outcome
from ...runway.ledger.figures import figures
from ...runway.media.inspector import draw_contact_sheet
from ..runtime.block_storage import resolve_storage
from ..runtime.log import best_effort
from ..ui.formatting import escape_markdown
from .progress import ProgressSnapshot

ROWS_SHOWN = 500
"""Maximum rows in the table of results; the output manifest contains all of them."""

POSTERS_SHOWN = 24
"""Maximum posters on the contact sheet."""


class BatchArtifacts:
    """Progress bar and table of counts, created once and then updated in place."""

    def __init__(self) -> None:
        self._progress: UUID | None = None
        self._table: UUID | None = None

    @best_effort
    async def show(self, snapshot: ProgressSnapshot) -> None:
        """Create or update the artifacts with the current progress."""
        from prefect.artifacts import (
            acreate_progress_artifact,
            acreate_table_artifact,
            aupdate_progress_artifact,
        )
        from prefect.client.orchestration import get_client
        from prefect.client.schemas.actions import ArtifactUpdate

        percent = round(100 * snapshot.done / snapshot.total, 1) if snapshot.total else 0.0
        rows = [{"what": what, "value": value} for what, value in facts_of(snapshot).items()]
        if self._progress is None or self._table is None:
            self._progress = await acreate_progress_artifact(
                key="cometapi-batch-progress",
                progress=percent,
                description=f"{snapshot.total} videos",
            )
            self._table = await acreate_table_artifact(
                key="cometapi-batch", table=rows, description="Progress of the batch"
            )
            return
        await aupdate_progress_artifact(self._progress, progress=percent)
        async with get_client() as client:
            await client.update_artifact(self._table, ArtifactUpdate(data=json.dumps(rows)))


@best_effort
async def show_batch(result: BatchResult, place: str) -> None:
    """Create a table of the results and a contact sheet of the posters.

    Args:
        result: Result of the batch.
        place: Storage location of the posters.
    """
    from prefect.artifacts import acreate_image_artifact, acreate_table_artifact

    shown = sorted(result.results, key=lambda item: item.outcome is Outcome.STORED)[:ROWS_SHOWN]
    rest = len(result.results) - len(shown)
    output = escape_markdown(str(result.output))
    where = f"; {rest} more in {output}" if rest else f"; all in {output}"
    await acreate_table_artifact(
        table=[_row(item) for item in shown],
        key="cometapi-batch-results",
        description=f"{result.sentence()}; {result.spending.in_words()}{where}",
    )
    posters = await _posters(result.results, place)
    if posters:
        sheet = await asyncio.to_thread(draw_contact_sheet, posters)
        gallery = escape_markdown(str(result.gallery))
        await acreate_image_artifact(
            image_url=f"data:image/jpeg;base64,{base64.b64encode(sheet).decode()}",
            key="cometapi-batch-posters",
            description=f"The first {len(posters)} of {result.succeeded}; all in {gallery}",
        )


def facts_of(snapshot: ProgressSnapshot) -> dict[str, str]:
    """Return the rows of the progress table: labels and values."""
    facts = {str(outcome): str(count) for outcome, count in snapshot.counts.items() if count}
    facts["running for"] = span(snapshot.seconds)
    if snapshot.left is not None and snapshot.done < snapshot.total:
        facts["time left, about"] = span(snapshot.left)
    return facts | figures(snapshot.spending)


def span(seconds: float) -> str:
    """Return a duration in seconds as hours, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _row(item: ItemResult) -> dict[str, str]:
    name = (item.uri or "").rpartition("/")[2]
    return {
        "id": escape_markdown(item.id),
        "outcome": str(item.outcome),
        "video or problem": escape_markdown(name or item.problem()),
        "ready after": f"{item.waited:.0f} s" if item.waited is not None else "",
        "idempotency key": escape_markdown(item.idempotency_key or ""),
        "stored at": escape_markdown(item.uri or ""),
    }


async def _posters(results: tuple[ItemResult, ...], place: str) -> list[bytes]:
    """Read the first posters from the storage, without those that cannot be read."""
    storage = await resolve_storage(place)
    kept = [item.poster for item in results if item.poster][:POSTERS_SHOWN]
    names = [poster.replace("\\", "/").rpartition("/")[2] for poster in kept]
    read = (asyncio.to_thread(storage.read, name) for name in names)
    found = await asyncio.gather(*read, return_exceptions=True)
    return [poster for poster in found if isinstance(poster, bytes)]
