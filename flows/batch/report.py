# SPDX-License-Identifier: Apache-2.0
"""Report of a batch: the output manifest, the gallery and the artifacts.

The report is written while the batch runs and once more at its end. Each update replaces a file as
a whole, so a reader always sees a complete file. Updates are infrequent, to limit the load on the
storage and on Prefect's database.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import PurePosixPath
from types import TracebackType
from typing import Self, TypeVar, cast

from prefect.states import Completed

from ...runway.batch.models import ItemResult
from ...runway.batch.results import (
    WRITING_SHARE,
    check_location,
    next_write,
    publish_results,
    split_location,
)
from ...runway.errors import StorageError
from ...runway.ledger.figures import Spending
from ...runway.models.keys import batch_stem
from ...runway.storage.base import Storage, publish_written
from ..runtime import log
from ..runtime.run_context import RunContext
from .artifacts import BatchArtifacts
from .gallery import gallery
from .progress import BatchProgress

T = TypeVar("T")

SHOW_EVERY = 5.0
"""Seconds between two checks for new results to show."""

GALLERY_SHARE = 0.005
"""Maximum share of a batch's time that writing the gallery takes before its end. A card takes ten
times as long as a row of the output manifest, and delays the event loop meanwhile."""

_Write = Callable[[tuple[ItemResult, ...], Spending], None]


class Report:
    """Context manager that updates the report while the block runs, and completes it at the end.

    Args:
        key: Key of the batch.
        progress: Results of the batch.
        count_spent: Function that reads the spent amounts from the ledger.
        place: Storage for the output manifest and the gallery.
        name: Name of the output manifest in the storage.
        has_gallery: Whether to write a gallery; one shard of a batch has none.

    Attributes:
        output: Location of the output manifest, once it is written.
        gallery: Location of the gallery, once it is written.
    """

    def __init__(
        self,
        key: str,
        progress: BatchProgress,
        count_spent: Callable[[], Awaitable[None]],
        place: Storage,
        name: str,
        *,
        has_gallery: bool = True,
    ) -> None:
        self.output: str | None = None
        self.gallery: str | None = None
        self._key = key
        self._progress = progress
        self._count_spent = count_spent
        self._place = place
        self._name = name
        self._has_gallery = has_gallery
        self._artifacts = BatchArtifacts(key)
        self._over = asyncio.Event()
        self._showing: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._showing = asyncio.create_task(self._keep_showing())
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._over.set()
        if self._showing:
            # A cancelled task could leave a second artifact, or overwrite the final output.
            await self._showing
        if not self._progress.changes:
            return  # The items are not known: an empty report would replace that of an earlier run.
        await self._show()  # This also reads the spent amounts, which the gallery shows.
        await self._write(self._write_rows)
        await self._write(self._write_gallery)

    async def _keep_showing(self) -> None:
        seen, rows_due, gallery_due = 0, 0.0, 0.0
        while not self._over.is_set():
            if seen != self._progress.changes:
                seen = self._progress.changes
                await self._show()
                rows_due = await self._write_if_due(self._write_rows, rows_due, WRITING_SHARE)
                gallery_due = await self._write_if_due(
                    self._write_gallery, gallery_due, GALLERY_SHARE
                )
            with suppress(TimeoutError):
                async with asyncio.timeout(SHOW_EVERY):
                    await self._over.wait()

    async def _show(self) -> None:
        await self._count_spent()
        await self._artifacts.show(self._progress.snapshot())

    async def _write_if_due(self, write: _Write, due: float, share: float) -> float:
        """Write a file if the time has come, and return the time of its next write."""
        started = time.monotonic()
        if started < due:
            return due
        await self._write(write)
        ended = time.monotonic()
        return next_write(ended, ended - started, share)

    async def _write(self, write: _Write) -> None:
        results, spending = self._progress.results(), self._progress.spending()
        try:
            await asyncio.to_thread(write, results, spending)
        except StorageError as error:  # The videos are stored and recorded in the ledger.
            log.logger().warning("The report could not be written: %s", error.message)

    def _write_rows(self, results: tuple[ItemResult, ...], _spending: Spending) -> None:
        self.output = publish_results(results, self._place, self._name)

    def _write_gallery(self, results: tuple[ItemResult, ...], spending: Spending) -> None:
        if not self._has_gallery:
            return
        base = self._place.uri(self._name).rpartition("/")[0]
        page = gallery(results, title=self._key, base=base, spending=spending)
        self.gallery = publish_written(
            self._place,
            f"{_stem(self._name)}.gallery.html",
            lambda staged: staged.write_text(page, encoding="utf-8"),
        )


def _stem(name: str) -> str:
    """Return the name of an output manifest without ``.results`` and its file extensions."""
    return PurePosixPath(name.removesuffix(".gz")).stem.removesuffix(".results")


def completed(sentence: str, stored: int, total: int, data: T) -> T:
    """Return a result as Prefect's state, whose name says if every item is stored.

    Args:
        sentence: Counts of the items, in words.
        stored: Number of stored items.
        total: Number of all items.
        data: The result.
    """
    name = "Completed" if stored == total else "PartlyStored"
    return cast("T", Completed(name=name, message=sentence, data=data))


async def report_location(context: RunContext, key: str, output: str | None) -> tuple[Storage, str]:
    """Return the storage and the name of the output manifest.

    By default, the output manifest is stored beside the videos.

    Raises:
        StorageUnavailable: The output cannot be written to the user's location.
    """
    if not output:
        return await context.storage(), f"{batch_stem(key)}.results.jsonl"
    await asyncio.to_thread(check_location, output)
    return split_location(output)
