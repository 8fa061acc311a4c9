# SPDX-License-Identifier: Apache-2.0
"""Artifacts of a batch in the Prefect UI: progress, results and posters.

They have titles and no keys, like those of a single generation.
"""

import asyncio
import json
from uuid import UUID

from ...runway.batch.models import BatchResult, ItemResult, Outcome
from ...runway.ledger.figures import figures
from ...runway.media.inspector import draw_contact_sheet
from ..runtime.block_storage import resolve_storage
from ..runtime.log import best_effort
from ..ui.artifacts import read_posters
from ..ui.formatting import as_code, as_picture, escape_markdown, titled
from .progress import ProgressSnapshot

ROWS_SHOWN = 500
"""Maximum rows in the table of results; the output manifest contains all of them."""

POSTERS_SHOWN = 24
"""Maximum posters on the contact sheet."""


class BatchArtifacts:
    """Progress bar and table of counts, created once and then updated in place.

    Args:
        key: Key of the batch.
    """

    def __init__(self, key: str) -> None:
        self._key = key
        self._progress: UUID | None = None
        self._table: UUID | None = None

    @best_effort
    async def show(self, snapshot: ProgressSnapshot) -> None:
        """Create or update the artifacts with the current progress, once the items are known."""
        from prefect.artifacts import (
            acreate_progress_artifact,
            acreate_table_artifact,
            aupdate_progress_artifact,
        )
        from prefect.client.orchestration import get_client
        from prefect.client.schemas.actions import ArtifactUpdate

        if not snapshot.total:
            return
        percent = round(100 * snapshot.done / snapshot.total, 1)
        done = titled(f"Batch {self._key}", f"{snapshot.done:,} of {snapshot.total:,} items done")
        rows = [{"what": what, "value": value} for what, value in facts_of(snapshot).items()]
        if self._progress is None:
            self._progress = await acreate_progress_artifact(percent, description=done)
        else:
            await aupdate_progress_artifact(self._progress, percent, description=done)
        if self._table is None:
            self._table = await acreate_table_artifact(
                rows, description=titled(f"Counts of batch {self._key}")
            )
            return
        async with get_client() as client:
            await client.update_artifact(self._table, ArtifactUpdate(data=json.dumps(rows)))


@best_effort
async def show_batch(result: BatchResult, location: str) -> None:
    """Create a table of the results and a contact sheet of the posters.

    Args:
        result: Result of the batch.
        location: Storage location of the posters.
    """
    from prefect.artifacts import acreate_markdown_artifact, acreate_table_artifact

    shown = sorted(result.results, key=lambda item: item.outcome is Outcome.STORED)[:ROWS_SHOWN]
    rest = len(result.results) - len(shown)
    key = result.idempotency_key
    await acreate_table_artifact(
        table=[_row(item) for item in shown],
        description=titled(f"Results of batch {key}", _summary(result, rest)),
    )
    kept = [item.poster for item in result.results if item.poster][:POSTERS_SHOWN]
    posters = await read_posters(await resolve_storage(location), kept)
    if posters:
        sheet = await asyncio.to_thread(draw_contact_sheet, posters)
        count = f"The first {len(posters)} of {result.succeeded}"
        text = f"{count}; all are in {as_code(str(result.gallery))}"
        await acreate_markdown_artifact(
            markdown=as_picture(sheet),
            description=titled(f"Posters of batch {key}", text),
        )


def _summary(result: BatchResult, rest: int) -> str:
    """Return counts, spending and location of the results, in Markdown."""
    others = f"{rest:,} more results" if rest else "all results"
    lines = [f"{name}: {amount}" for name, amount in figures(result.spending).items()]
    parts = [result.sentence(), *lines, f"{others}: {as_code(str(result.output))}"]
    return "\n".join(f"- {part}" for part in parts)


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
        "stored at": as_code(item.uri or ""),
    }
