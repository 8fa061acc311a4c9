# SPDX-License-Identifier: Apache-2.0
"""Bugs that are put into the product on purpose, to prove that the checks find them."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prefect_cometapi.flows import collector
from prefect_cometapi.runway.ledger.claim_history import ClaimHistory
from prefect_cometapi.runway.ledger.entry import Entry, Intent, State
from prefect_cometapi.runway.ledger.held_leases import HeldLeases
from prefect_cometapi.runway.ledger.store import Ledger
from prefect_cometapi.runway.storage.folder import FolderStorage

from .crash_points import around


def unclaimed() -> None:
    """Write and read no claim before the POST, so that a killed run leaves no trace."""

    @around(Ledger, "insert_claim")
    async def _(
        _original: Any, _ledger: Ledger, intent: Intent, claim: str, _owner: str, **_values: Any
    ) -> Entry | None:
        now = datetime.now(UTC)
        new = {"state": State.CLAIMED, "claim": claim, "created_at": now, "changed_at": now}
        return Entry.model_validate(intent.columns() | new)

    @around(ClaimHistory, "check_claim")
    def _(_original: Any, _history: ClaimHistory, _claimed: Entry, _newest_before: int) -> None:
        """Check nothing, as the claim has no number."""

    @around(HeldLeases, "is_valid")
    def _(_original: Any, _held: HeldLeases, _key: str, _owner: str) -> bool:
        return True


def unrecorded() -> None:
    """Keep the id of a purchase in memory only."""

    @around(Ledger, "mark_submitted")
    async def _(
        _original: Any, ledger: Ledger, claimed: Entry, task_id: str, *_values: Any
    ) -> Entry | None:
        entry = await ledger.get(claimed.idempotency_key)
        update = {"state": State.SUBMITTED, "task_id": task_id}
        return entry.model_copy(update=update) if entry else None


def partial_files() -> None:
    """Write files in place, so that an incomplete one is visible."""

    @around(FolderStorage, "staging")
    def _(original: Any, storage: FolderStorage) -> Path:
        return original(storage).parent


def uncollected() -> None:
    """Make a collector find nothing to do."""
    setattr(collector, "UNFINISHED", ())  # noqa: B010 -- the module only imports it


MUTANTS: dict[str, Callable[[], None]] = {
    "unclaimed": unclaimed,
    "unrecorded": unrecorded,
    "partial-files": partial_files,
    "uncollected": uncollected,
}
