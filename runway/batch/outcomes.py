# SPDX-License-Identifier: Apache-2.0
"""Results of batch items, derived from the result or the error of each; pure functions."""

from collections.abc import Iterable, Sequence
from enum import Enum, StrEnum, auto

from ..errors import (
    AuthenticationError,
    CometAPIError,
    DeliveryError,
    GenerationCancelled,
    GenerationFailed,
    GenerationNotFound,
    InvalidRequest,
    InvalidSource,
    LedgerUnavailable,
    ProvenanceMissing,
    QuotaExceeded,
    ServiceUnavailable,
    SourceUnavailable,
    SourceUnreachable,
    StorageUnavailable,
    SubmissionUncertain,
    UnexpectedResponse,
    is_moderation,
)
from ..ledger.budget import EXCEEDS_LIMIT, seconds_of
from ..ledger.entry import Entry
from ..models.generation import GenerationResult
from ..redact import scrub
from .models import BatchItem, ItemResult, Outcome
from .rows import BadRow


def waiting(item: BatchItem) -> ItemResult:
    """Return the result of an item that was not started yet."""
    request = item.request
    return ItemResult(
        id=item.id,
        outcome=Outcome.WAITING,
        idempotency_key=item.idempotency_key,
        route=request.route,
        model=request.model,
        prompt=request.prompt,
    )


def running(item: BatchItem) -> ItemResult:
    """Return the result of an item that is being bought, polled or delivered."""
    return waiting(item).model_copy(update={"outcome": Outcome.RUNNING})


def stored(item: BatchItem, result: GenerationResult) -> ItemResult:
    """Return the result of an item whose video or picture is stored."""
    first = result.videos[0]
    made = first.provenance
    facts = {"uri", "poster", "sha256", "size", "width", "height"}
    return waiting(item).model_copy(
        update={
            "outcome": Outcome.STORED,
            "task_id": result.task_id,
            "billed_seconds": item.request.billed_seconds() or first.duration,
            "submitted_at": result.submitted_at,
            "waited": result.waited,
            "polls": result.polls,
            "duration": None if first.is_picture else first.duration,
            "c2pa": made and made.found,
            "c2pa_signer": made and made.signer,
            **first.model_dump(include=facts),
        }
    )


def with_cost(result: ItemResult, entry: Entry | None) -> ItemResult:
    """Return a result with the cost that the ledger has for it, if it was or may be charged."""
    if entry is None or not entry.charges:
        return result
    costs = {
        "cost": entry.cost,
        "currency": entry.currency,
        "cost_source": str(entry.cost_source) if entry.cost_source else None,
    }
    return result.model_copy(update=costs)


def ended(item: BatchItem, error: Exception) -> ItemResult:
    """Return the result of an item without a video, with the reason."""
    uncertain = isinstance(error, SubmissionUncertain)
    known = isinstance(error, CometAPIError)
    return waiting(item).model_copy(
        update={
            "outcome": Outcome.UNCERTAIN if uncertain else Outcome.FAILED,
            "task_id": error.task_id if known else None,
            "billed_seconds": seconds_of(item.request) if uncertain else None,
            "error": type(error).__name__,
            "failure_code": (error.code or None) if known else None,
            "message": error.message if known else scrub(str(error), limit=200),
        }
    )


def unusable(item: BatchItem, error: CometAPIError) -> ItemResult:
    """Return the result of an item that cannot be bought, because of one of its sources."""
    return ended(item, error).model_copy(update={"outcome": Outcome.INVALID})


def not_bought(item: BatchItem, why: str) -> ItemResult:
    """Return the result of an item that was not bought, with the reason."""
    return waiting(item).model_copy(update={"outcome": Outcome.NOT_BOUGHT, "message": why})


def invalid(rows: Iterable[BadRow]) -> list[ItemResult]:
    """Return one result for each unusable row, with all of its problems."""
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


_BEFORE_BUYING = {
    kind.__name__
    for kind in (
        AuthenticationError,
        InvalidRequest,  # refused, so the idempotency key is free
        InvalidSource,
        LedgerUnavailable,
        QuotaExceeded,
        ServiceUnavailable,
        SourceUnavailable,
        SourceUnreachable,
        StorageUnavailable,
        UnexpectedResponse,
    )
}
_WITHHELD = ProvenanceMissing.__name__
_AFTER_BUYING = {
    kind.__name__ for kind in (*DeliveryError.__subclasses__(), GenerationNotFound)
} | {"GenerationTimeout", "StagedFileMissing"}
_AFTER_BUYING.remove(_WITHHELD)  # the same settings withhold the file again


class Again(StrEnum):
    """Effect of running a batch again with the same arguments."""

    BUYS = "buys what is missing"
    FINISHES = "finishes what is bought, and buys nothing"
    NOTHING = "changes nothing"


def again(results: Iterable[ItemResult]) -> Again:
    """Return the effect of another run with the same limits; pure.

    The next run changes nothing for an item that failed for good, is not valid, belongs to another
    request, is uncertain, or has no room under a limit.
    """
    uses = {_use_of(result) for result in results}
    return next((use for use in (Again.BUYS, Again.FINISHES) if use in uses), Again.NOTHING)


def _use_of(result: ItemResult) -> Again:
    if result.outcome is Outcome.NOT_BOUGHT:
        has_room = not (result.message or "").startswith(EXCEEDS_LIMIT)
        return Again.BUYS if has_room else Again.NOTHING
    if not result.outcome.is_final:
        return Again.FINISHES if result.task_id else Again.BUYS
    if result.outcome is not Outcome.FAILED:
        return Again.NOTHING
    if result.task_id and result.error in _AFTER_BUYING | _BEFORE_BUYING:
        return Again.FINISHES
    return Again.BUYS if result.error in _BEFORE_BUYING else Again.NOTHING


_REFUSED = {InvalidRequest.__name__, InvalidSource.__name__}
_ENDED = {GenerationFailed.__name__, GenerationCancelled.__name__}


def corrections(results: Sequence[ItemResult]) -> list[str]:
    """Return what to change in the rows that would fail again as they are; pure."""
    invalid = [result for result in results if result.outcome is Outcome.INVALID]
    failed = [result for result in results if result.outcome is Outcome.FAILED]
    ended = [result for result in failed if result.error in _ENDED]
    moderated = [result for result in ended if is_moderation(result.failure_code or "")]
    refused = [result for result in failed if result.error in _REFUSED]
    withheld = [result for result in failed if result.error == _WITHHELD]
    sentences = {
        "invalid: correct the row or its source, and run the batch again": len(invalid),
        "moderated: change the prompt or the image and use a new id, since the same request is "
        "refused again": len(moderated),
        "failed upstream: use a new id to buy it again, since the old one reports the same error": (
            len(ended) - len(moderated)
        ),
        "refused: correct the request; its id is free": len(refused),
        "withheld without provenance: paid for and kept; COMETAPI_REQUIRE_PROVENANCE=false and "
        "another run publish them as they are": len(withheld),
    }
    return [f"{count} {sentence}" for sentence, count in sentences.items() if count]


def next_step(results: Sequence[ItemResult]) -> str:
    """Return what to do after a batch that failed; pure."""
    use = again(results)
    steps = corrections(results)
    if any(result.outcome is Outcome.UNCERTAIN for result in results):
        steps.append("prefect-cometapi ledger list --state uncertain")
    if use is not Again.NOTHING:
        steps.append(f"run the batch again with the same idempotency key; it {use}")
    return "; ".join(steps or ["correct what the messages of the items name"]) + "."


class FollowUp(Enum):
    """Reaction of a batch to the failure of an item."""

    NONE = auto()
    PAUSE = auto()
    PAUSE_AND_REPEAT = auto()


def follow_up(error: Exception, earlier: Sequence[Exception], *, is_bought: bool) -> FollowUp:
    """Return the reaction of a batch to the failure of an item; pure.

    After a submission without a reply of CometAPI, the batch pauses until CometAPI answers a free
    request. The item is sent again only if it is certain that nothing was bought. A refused API key
    counts once it is refused again, since a gateway may refuse a valid one for a moment.

    Args:
        error: Error of the item.
        earlier: Errors after which the item was sent again.
        is_bought: True if the item was bought, or possibly charged, before this run.
    """
    is_of_service = isinstance(
        error, ServiceUnavailable | AuthenticationError | SubmissionUncertain
    )
    if not is_of_service or is_bought or error.task_id:
        return FollowUp.NONE
    if isinstance(error, SubmissionUncertain):
        return FollowUp.PAUSE
    if isinstance(error, ServiceUnavailable):
        return FollowUp.PAUSE_AND_REPEAT
    is_first = not any(isinstance(one, AuthenticationError) for one in earlier)
    return FollowUp.PAUSE_AND_REPEAT if is_first and error.http_status else FollowUp.NONE


def reason_to_stop(error: Exception, failures: int, max_failures: int | None) -> str | None:
    """Return the reason not to buy further items after this one failed, or None.

    Args:
        error: Error of the item.
        failures: Number of failed items so far, including this one.
        max_failures: Maximum number of failures that the user allows, or None for no maximum.
    """
    if isinstance(error, AuthenticationError | QuotaExceeded):
        return account_refuses(error.message)
    return too_many_failures(failures, max_failures)


def account_refuses(message: str | None) -> str:
    """Return the reason to stop of an account that cannot buy; pure."""
    return f"the account cannot buy more: {message}"


def too_many_failures(failures: int, max_failures: int | None) -> str | None:
    """Return the reason to stop after too many failures, or None; pure."""
    if max_failures is not None and failures > max_failures:
        return f"{failures} items failed, but at most {max_failures} may fail"
    return None
