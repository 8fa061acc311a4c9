# SPDX-License-Identifier: Apache-2.0
"""Ledger entry of a generation, its states, and the allowed changes between them.

::

    claimed ───► submitted ──► succeeded ──► stored
       │  │          ├──► failed, cancelled        (upstream's decision)
       │  │          │       └──► succeeded        (upstream corrected itself; `finish` polls again)
       │  │          └──► abandoned                (the user's decision; collect skips it)
       │  └──► rejected                            (certainly not bought: the key is free)
       └──► uncertain                              (possibly charged: only the user decides)
               ├──► submitted                      (its task id was found and adopted; until the
               │                                    service has confirmed the id, it can be
               │                                    replaced or withdrawn)
               ├──► written_off                    (written off: nothing is sent under this key)
               └──► resubmit_allowed               (one more submission is allowed)

``claimed`` is the claim, which is written before the paid POST. ``submitted`` is written right
after its answer. So a process may die at any time: the state that it leaves says if a charge is
possible. Every change lists the states that it may follow, and the database makes the change in one
statement. So if two changes conflict, only one of them happens.
"""

from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, NamedTuple, Self
from uuid import uuid4

from pydantic import AwareDatetime, Field

from ..errors import (
    CometAPIError,
    GenerationCancelled,
    GenerationFailed,
    IdempotencyKeyConflict,
    SubmissionUncertain,
)
from ..models.generation import (
    AssetURL,
    CompletedGeneration,
    FrozenModel,
    Generation,
    GenerationResult,
    Status,
    StoredVideo,
    Submission,
)
from ..models.requests import GenerationRequest


class State(StrEnum):
    """State of a generation in the ledger."""

    CLAIMED = "claimed"
    SUBMITTED = "submitted"
    SUCCEEDED = "succeeded"
    STORED = "stored"
    FAILED = "failed"
    CANCELLED = "cancelled"
    REJECTED = "rejected"
    UNCERTAIN = "uncertain"
    WRITTEN_OFF = "written_off"
    RESUBMIT_ALLOWED = "resubmit_allowed"
    ABANDONED = "abandoned"


UNFINISHED = (State.SUBMITTED, State.SUCCEEDED)
"""States of generations that are bought and not delivered yet; ``collect`` finishes them."""

_BOUGHT = {State.SUBMITTED, State.ABANDONED}
_OPEN = {State.CLAIMED, State.UNCERTAIN, State.WRITTEN_OFF}  # a task id may still arrive
_FREE = {State.REJECTED, State.RESUBMIT_ALLOWED}
_GIVEN_UP = {State.FAILED, State.CANCELLED}  # upstream may still correct itself

ALLOWED_PREDECESSORS: dict[State, frozenset[State]] = {
    State.CLAIMED: frozenset({*_FREE, State.UNCERTAIN}),
    State.SUBMITTED: frozenset({*_BOUGHT, *_OPEN, *_FREE}),
    State.SUCCEEDED: frozenset({*_BOUGHT, *_OPEN, *_GIVEN_UP, State.SUCCEEDED}),
    State.STORED: frozenset({*_BOUGHT, *_OPEN, *_GIVEN_UP, State.SUCCEEDED, State.STORED}),
    State.FAILED: frozenset({*_BOUGHT, *_OPEN, State.SUCCEEDED, State.FAILED}),
    State.CANCELLED: frozenset({*_BOUGHT, *_OPEN, State.SUCCEEDED, State.CANCELLED}),
    State.REJECTED: frozenset({State.CLAIMED}),
    State.UNCERTAIN: frozenset({State.CLAIMED}),
    State.WRITTEN_OFF: frozenset({State.UNCERTAIN, State.WRITTEN_OFF}),
    State.RESUBMIT_ALLOWED: frozenset(
        {State.UNCERTAIN, State.WRITTEN_OFF, State.FAILED, State.CANCELLED, State.RESUBMIT_ALLOWED}
    ),
    State.ABANDONED: frozenset({*UNFINISHED, State.ABANDONED}),
}
"""Allowed predecessors of each state. A state that may follow itself is a repeated write."""


class CostSource(StrEnum):
    """Origin of a cost."""

    ESTIMATED = "estimated"
    LISTED = "listed"
    BILLED = "billed"


class Intent(FrozenModel):
    """Generation that is about to be bought or adopted, as first recorded in the ledger."""

    idempotency_key: str = Field(description="Idempotency key of the generation.")
    base_url: str = Field(description="Base URL of the service that sells it.")
    route: str | None = Field(default=None, description="Route, such as image_to_video.")
    model: str | None = Field(default=None, description="Runway model.")
    fingerprint: str | None = Field(default=None, description="SHA-256 of the request, in hex.")
    request: dict[str, Any] | None = Field(
        default=None, description="Body of the request, with signed URLs and data URIs redacted."
    )
    billed_seconds: float | None = Field(
        default=None, description="Seconds of video that are billed, if known."
    )
    cost: float | None = Field(default=None, description="Money for one submission.")
    currency: str | None = Field(default=None, description="Currency of the cost, such as USD.")
    cost_source: CostSource | None = Field(
        default=None,
        description="Origin of the cost: estimated (COMETAPI_PRICES), listed (Runway's list price) "
        "or billed (by CometAPI).",
    )
    storage: str | None = Field(default=None, description="Location for the video.")
    credentials: str | None = Field(
        default=None, description="Name of the credentials block, if one is used."
    )
    flow_run_id: str | None = Field(default=None, description="Prefect flow run that requested it.")
    deployment_id: str | None = Field(
        default=None, description="Deployment of the flow run that requested it."
    )
    deployment: str | None = Field(default=None, description="Name of that deployment, if known.")
    tags: tuple[str, ...] | None = Field(
        default=None, description="Tags of the flow run and of the call; None if not recorded."
    )
    list_cost: float | None = Field(
        default=None, description="Cost of one submission at the price known when it was sent."
    )
    list_currency: str | None = Field(default=None, description="Currency of the list cost.")

    def columns(self, *, only_known: bool = False) -> dict[str, Any]:
        """Return the columns of the intent; for an entry, leave out its other columns."""
        fields = set(Intent.model_fields)
        return self.model_dump(mode="json", include=fields, exclude_none=only_known)


class Entry(Intent):
    """Ledger entry of one generation."""

    state: State
    task_id: str | None = Field(default=None, description="Task id at CometAPI.")
    claim: str = Field(description="Random id of the attempt that owns the submission.")
    attempts: int = Field(default=0, description="POSTs that may have been sent.")
    owner: str | None = Field(default=None, description="Owner of the lease, if there is one.")
    leased_until: float | None = Field(
        default=None, description="End of the lease on the database's clock."
    )
    lease_left: float | None = Field(
        default=None, description="Seconds until the lease ends; negative after its end."
    )
    created_at: AwareDatetime = Field(description="Time of the first claim or adoption.")
    changed_at: AwareDatetime = Field(description="Time of the last change of the state.")
    submitted_at: AwareDatetime | None = Field(
        default=None, description="Time at which the service accepted it."
    )
    finished_at: AwareDatetime | None = Field(
        default=None, description="Time at which its end at the service was detected."
    )
    stored_at: AwareDatetime | None = Field(
        default=None, description="Time at which it was stored."
    )
    polls: int = Field(default=0, description="Number of polls.")
    outputs: tuple[AssetURL, ...] = Field(
        default=(), description="URLs of the results, without their tokens."
    )
    videos: dict[str, tuple[StoredVideo, ...]] = Field(
        default={}, description="Stored videos, by location."
    )
    failure_code: str = Field(default="", description="Failure code of the service.")
    note: str = Field(default="", description="Description of the last event.")
    charges: int = Field(
        default=0,
        description="Number of submissions that were or may have been charged.",
    )
    claimed_at: AwareDatetime | None = Field(
        default=None, description="Time of the latest claim, just before its request was sent."
    )
    unresolved_since: AwareDatetime | None = Field(
        default=None,
        description="Time of the earliest claim whose request has an unknown outcome; the claim in "
        "progress counts.",
    )
    evidence: str = Field(
        default="", description="What the account's list showed about it, and when."
    )
    resubmitted_by: tuple[str, ...] = Field(
        default=(), description="Runs that sent it again after an unknown outcome, each once."
    )
    task_id_checked: bool = Field(
        default=True, description="True if the service has confirmed the task id."
    )
    serial: int | None = Field(
        default=None,
        description="Serial number of the latest claim; later claims have higher ones.",
    )
    request_id: str | None = Field(
        default=None, description="CometAPI's id of the latest submission, for its support."
    )

    @property
    def has_ended(self) -> bool:
        """True if the generation is stored, or failed or was cancelled upstream."""
        return self.state in {State.STORED, State.FAILED, State.CANCELLED}

    @property
    def source_versions(self) -> dict[str, str]:
        """Versions of the stored sources at the submission, by their paths in the request."""
        recorded = (self.request or {}).get("sources")
        return recorded if isinstance(recorded, dict) else {}

    def is_of(self, request: GenerationRequest) -> bool:
        """Return True if this is the entry of a request, whatever is at its sources by now."""
        return self.fingerprint == request.fingerprint(self.source_versions)

    @property
    def waited(self) -> float:
        """Seconds from the submission to the detected end, or 0.0 before the end."""
        if not (self.submitted_at and self.finished_at):
            return 0.0
        return max(0.0, (self.finished_at - self.submitted_at).total_seconds())

    def submission(self) -> Submission:
        """Return the submission of the entry, which the steps pass on.

        Raises:
            SubmissionUncertain: The task id is not known.
        """
        if self.task_id is None:
            raise SubmissionUncertain("the ledger has no task id for this key").with_context(
                idempotency_key=self.idempotency_key, request_id=self.request_id
            )
        return Submission(
            idempotency_key=self.idempotency_key,
            task_id=self.task_id,
            submitted_at=self.submitted_at or self.created_at,
            route=self.route,
            model=self.model,
            fingerprint=self.fingerprint,
            request=self.request,
            claim=self.claim,
            base_url=self.base_url,
            request_id=self.request_id,
        )

    @classmethod
    def of_submission(cls, submission: Submission, storage: str | None) -> Self | None:
        """Return an entry for a purchase that only its run knows, or None without a base URL.

        Args:
            submission: Submission that the run holds.
            storage: Location for its videos.
        """
        if submission.base_url is None:
            return None
        return cls(
            **submission.model_dump(exclude={"claim"}),
            claim=submission.claim or uuid4().hex,
            storage=storage,
            state=State.SUBMITTED,
            attempts=1,
            charges=1,
            created_at=submission.submitted_at,
            changed_at=datetime.now(UTC),
        )

    def finished(self) -> CompletedGeneration | None:
        """Return the completed generation, or None unless it succeeded.

        The output URLs have lost their tokens.
        """
        if self.task_id is None or self.state not in {State.SUCCEEDED, State.STORED}:
            return None
        if not self.outputs:  # rebuilt from stored videos: only the service knows the URLs
            return None
        generation = Generation(
            task_id=self.task_id, status=Status.SUCCEEDED, outputs=self.outputs, progress=1.0
        )
        return CompletedGeneration(generation=generation, polls=self.polls, waited=self.waited)

    def result(self, location: str | None = None) -> GenerationResult:
        """Return the result for a flow, with the videos at a location, if there are any."""
        submission = self.submission()
        return GenerationResult(
            idempotency_key=self.idempotency_key,
            task_id=submission.task_id,
            status=_STATUS.get(self.state, Status.PENDING),
            videos=self.videos.get(location or "", ()),
            polls=self.polls,
            waited=round(self.waited, 3),
            submitted_at=submission.submitted_at,
            cost=self.cost,
            currency=self.currency,
            cost_source=self.cost_source,
        )

    def failure(self) -> CometAPIError | None:
        """Return the error with which the generation ended upstream, or None."""
        error: CometAPIError | None = None
        if self.state is State.FAILED:
            error = GenerationFailed(self.note or "the generation failed", code=self.failure_code)
        elif self.state is State.CANCELLED:
            error = GenerationCancelled(self.note or "it was cancelled", code=self.failure_code)
        return (
            error.with_context(
                idempotency_key=self.idempotency_key,
                task_id=self.task_id,
                request_id=self.request_id,
            )
            if error
            else None
        )

    def is_free(self) -> bool:
        """Return True if nothing is bought under the key, so that any request may use it."""
        return self.state in _FREE


_STATUS = {
    State.SUCCEEDED: Status.SUCCEEDED,
    State.STORED: Status.SUCCEEDED,
    State.FAILED: Status.FAILED,
    State.CANCELLED: Status.CANCELLED,
}


class GenerationKind(NamedTuple):
    """Group of generations that take about the same time.

    Attributes:
        base_url: Root of the service.
        route: Route, such as image_to_video.
        model: Runway model.
        seconds: Seconds of video, or None if the request does not say.
    """

    base_url: str
    route: str
    model: str
    seconds: float | None


def key_conflict(
    entry: Entry, intent: Intent, task_id: str | None = None
) -> IdempotencyKeyConflict | None:
    """Return the error if the key belongs to another purchase, or None; pure.

    The error lists the differences.

    Args:
        entry: Present entry of the key.
        intent: Intent under the same key. An intent without a request (only a task id is known)
            matches any request.
        task_id: Task id to adopt, or None. It may replace an id that the service has not
            confirmed.
    """
    if entry.is_free():
        return None
    pairs: list[tuple[str, Any, Any]] = [("base URL", entry.base_url, intent.base_url)]
    replaced = task_id is not None and not entry.task_id_checked
    if entry.task_id and task_id and not replaced:
        pairs.append(("task id", entry.task_id, task_id))
    if intent.fingerprint and entry.fingerprint and intent.fingerprint != entry.fingerprint:
        before, now = entry.request or {}, intent.request or {}
        fields = [(name, before.get(name), now.get(name)) for name in sorted({*before, *now})]
        hidden = [("request", entry.fingerprint[:12], intent.fingerprint[:12])]
        pairs.append(("route", entry.route, intent.route))
        pairs += [pair for pair in fields if pair[1] != pair[2]] or hidden
    elif intent.fingerprint and not (entry.fingerprint or replaced or task_id == entry.task_id):
        pairs.append(("request", "unknown", "another"))
    differing = [f"{name} was {old!r}, is {new!r}" for name, old, new in pairs if old != new]
    if not differing:
        return None
    return IdempotencyKeyConflict(f"the key belongs to another request: {', '.join(differing)}")


def is_another_purchase(there: Entry, entry: Entry) -> bool:
    """Return True if the ledger has another purchase under a key than the run; pure.

    A claim of the run without an outcome is not a purchase yet: its outcome is recorded as soon as
    it is known. A task id that the service has not confirmed is not one either, since a person may
    have replaced it.

    Args:
        there: Entry of the key in the ledger.
        entry: Entry of the key as the run knows it.
    """
    if there.claim == entry.claim:
        return False
    if entry.task_id:
        return entry.task_id_checked and there.task_id != entry.task_id
    return entry.state is State.UNCERTAIN


def is_outdated(there: Entry, entry: Entry) -> bool:
    """Return True if a purchase may replace the key's entry in the ledger; pure.

    It may if the key is free. It may also if the entry is uncertain and older than the purchase,
    because the ledger is then an older copy.

    Args:
        there: Entry of the key in the ledger.
        entry: Entry of the purchase.
    """
    older = (there.serial or 0) < (entry.serial or 0)
    return there.is_free() or (there.state is State.UNCERTAIN and older)
