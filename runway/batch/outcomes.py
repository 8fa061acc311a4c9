# SPDX-License-Identifier: Apache-2.0
"""What became of an item of a batch, told from its result or its error; pure."""

from collections.abc import Iterable
from enum import StrEnum

from ..errors import (
    AuthenticationError,
    CometAPIError,
    DeliveryError,
    GenerationNotVisible,
    InvalidRequest,
    LedgerUnavailable,
    QuotaExceeded,
    ServiceUnavailable,
    StorageUnavailable,
    SubmissionUncertain,
    UnexpectedResponse,
)
from ..ledger.budget import seconds_of
from ..models.generation import GenerationResult
from ..redact import scrub
from .models import BatchItem, ItemResult, Outcome
from .rows import BadRow


def waiting(item: BatchItem) -> ItemResult:
    """An item as it is asked for."""
    request = item.request
    return ItemResult(
        id=item.id,
        outcome=Outcome.WAITING,
        key=item.key,
        route=request.route,
        model=request.model,
        prompt=request.prompt_text,
    )


def running(item: BatchItem) -> ItemResult:
    """An item that is being bought, waited for or delivered."""
    return waiting(item).model_copy(update={"outcome": Outcome.RUNNING})


def stored(item: BatchItem, result: GenerationResult) -> ItemResult:
    """An item whose video is stored."""
    first = result.videos[0]
    facts = {"uri", "poster", "sha256", "size", "width", "height", "duration"}
    return waiting(item).model_copy(
        update={
            "outcome": Outcome.STORED,
            "task_id": result.task_id,
            "billed_seconds": item.request.billed_seconds() or first.duration,
            "submitted_at": result.submitted_at,
            "waited": result.waited,
            "polls": result.polls,
            **first.model_dump(include=facts),
        }
    )


def ended(item: BatchItem, error: Exception) -> ItemResult:
    """An item that did not get its video, and why."""
    uncertain = isinstance(error, SubmissionUncertain)
    known = isinstance(error, CometAPIError)
    return waiting(item).model_copy(
        update={
            "outcome": Outcome.UNCERTAIN if uncertain else Outcome.FAILED,
            "task_id": error.task_id if known else None,
            "billed_seconds": seconds_of(item.request) if uncertain else None,
            "error": type(error).__name__,
            "message": error.what if known else scrub(str(error), limit=200),
        }
    )


def not_bought(item: BatchItem, why: str) -> ItemResult:
    """An item that was left, and why."""
    return waiting(item).model_copy(update={"outcome": Outcome.NOT_BOUGHT, "message": why})


def invalid(rows: Iterable[BadRow]) -> list[ItemResult]:
    """Rows that cannot be used, each with all that is wrong with it."""
    problems: dict[int, list[BadRow]] = {}
    for row in rows:
        problems.setdefault(row.row, []).append(row)
    return [
        ItemResult(
            id=f"{bad[0].unit} {number}" + (f" ({bad[0].id})" if bad[0].id else ""),
            outcome=Outcome.INVALID,
            error="InvalidManifest",
            message="; ".join(row.what for row in bad),
        )
        for number, bad in problems.items()
    ]


PASSES_LIMIT = "it would pass the limit"
"""Beginning of what is said of an item that was left since there is no room under a limit."""

_BEFORE_BUYING = {
    kind.__name__
    for kind in (
        AuthenticationError,
        InvalidRequest,  # refused, so the key is free
        LedgerUnavailable,
        QuotaExceeded,
        ServiceUnavailable,
        StorageUnavailable,
        UnexpectedResponse,
    )
}
_AFTER_BUYING = {
    kind.__name__ for kind in (*DeliveryError.__subclasses__(), GenerationNotVisible)
} | {"GenerationTimeout", "StagedFileMissing"}


class Again(StrEnum):
    """Use of running a batch once more, as it was run."""

    BUYS = "buys what is missing"
    FINISHES = "finishes what is bought, and buys nothing"
    NOTHING = "changes nothing"


def again(results: Iterable[ItemResult]) -> Again:
    """Return what another run with the same limits would do; pure.

    What failed for good, is not valid, belongs to another request, is uncertain, or has no room
    under a limit is the same in the next run.
    """
    uses = {_use_of(result) for result in results}
    return next((use for use in (Again.BUYS, Again.FINISHES) if use in uses), Again.NOTHING)


def _use_of(result: ItemResult) -> Again:
    if result.outcome is Outcome.NOT_BOUGHT:
        has_room = not (result.message or "").startswith(PASSES_LIMIT)
        return Again.BUYS if has_room else Again.NOTHING
    if not result.outcome.is_final:
        return Again.FINISHES if result.task_id else Again.BUYS
    if result.outcome is not Outcome.FAILED:
        return Again.NOTHING
    if result.task_id and result.error in _AFTER_BUYING | _BEFORE_BUYING:
        return Again.FINISHES
    return Again.BUYS if result.error in _BEFORE_BUYING else Again.NOTHING


def reason_to_stop(error: Exception, failures: int, max_failures: int | None) -> str | None:
    """Why no further item should be bought after this one failed, or None.

    Args:
        error: What the item ended with.
        failures: Items that failed so far, this one included.
        max_failures: How many the user puts up with, or None for any number.
    """
    if isinstance(error, AuthenticationError | QuotaExceeded):
        return f"the account cannot buy any more: {error.what}"
    if max_failures is not None and failures > max_failures:
        return f"{failures} items failed, and at most {max_failures} may"
    return None
