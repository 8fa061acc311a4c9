# SPDX-License-Identifier: Apache-2.0
"""Bugs that are put into the product on purpose, to prove that the checks find them."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prefect_cometapi.flows import collector
from prefect_cometapi.runway.ledger.claim_history import ClaimHistory
from prefect_cometapi.runway.ledger.entry import Entry, Intent, State
from prefect_cometapi.runway.ledger.store import Ledger
from prefect_cometapi.runway.storage.folder import FolderStorage

from .crash_points import around


def unclaimed() -> None:
    """Write and read no claim before the POST, so that a killed run leaves no trace."""

    @around(Ledger, "add")
    async def _(
        original: Any, ledger: Ledger, intent: Intent, state: State, claim: str, **values: Any
    ) -> Entry | None:
        if state is not State.CLAIMED:
            return await original(ledger, intent, state, claim, **values)
        now = datetime.now(UTC)
        new = {"state": state, "claim": claim, "created_at": now, "changed_at": now}
        return Entry.model_validate(intent.wanted() | new)

    @around(ClaimHistory, "check_claim")
    def _(_original: Any, _history: ClaimHistory, _claimed: Entry, _newest_before: int) -> None:
        """Check nothing, as the claim has no number."""

    @around(Ledger, "lease_is_valid")
    def _(_original: Any, _ledger: Ledger, _key: str, _holder: str) -> bool:
        return True


def unrecorded() -> None:
    """Keep the id of a purchase in memory only."""

    @around(Ledger, "change")
    async def _(
        original: Any, ledger: Ledger, key: str, state: State, **values: Any
    ) -> Entry | None:
        if state is not State.SUBMITTED or not values.get("of"):
            return await original(ledger, key, state, **values)
        entry = await ledger.get(key)
        update = {"state": state, "task_id": values["task_id"]}
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
