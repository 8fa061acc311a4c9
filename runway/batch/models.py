# SPDX-License-Identifier: Apache-2.0
"""Data models of a batch: its items, and the result of each."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated

from pydantic import AfterValidator, AwareDatetime, Field, computed_field

from ..ledger.figures import Spending
from ..models.generation import FrozenModel
from ..models.requests import AnyRequest
from ..redact import redact_payload


class Outcome(StrEnum):
    """Outcome of one item of a batch."""

    WAITING = "waiting"
    RUNNING = "running"
    STORED = "stored"
    FAILED = "failed"
    UNCERTAIN = "uncertain"
    NOT_BOUGHT = "not bought"
    INVALID = "invalid"

    @property
    def is_final(self) -> bool:
        """True if this run does nothing more about the item."""
        return self not in {Outcome.WAITING, Outcome.RUNNING}


class BatchItem(FrozenModel):
    """Request of one generation in a batch."""

    id: str = Field(description="Name that the user gave the item; unique in the batch.")
    idempotency_key: str = Field(description="Idempotency key of its generation.")
    request: AnyRequest = Field(description="Request of the generation.")


class ItemResult(FrozenModel):
    """Result of one item: a row of the output manifest."""

    id: str = Field(description="Name that the user gave the item.")
    outcome: Outcome = Field(description="Outcome of the item.")
    idempotency_key: str | None = Field(
        default=None, description="Idempotency key of its generation."
    )
    task_id: str | None = Field(default=None, description="Task id from CometAPI.")
    route: str | None = Field(default=None, description="Route, such as image_to_video.")
    model: str | None = Field(default=None, description="Runway model.")
    prompt: Annotated[str | None, AfterValidator(redact_payload)] = Field(
        default=None, description="Prompt, with signed URLs and other secrets redacted."
    )
    uri: str | None = Field(default=None, description="Location of the video.")
    poster: str | None = Field(default=None, description="Location of the poster.")
    sha256: str | None = Field(default=None, description="SHA-256 of the video, in hex.")
    size: int | None = Field(default=None, description="Bytes.")
    width: int | None = Field(default=None, description="Pixels.")
    height: int | None = Field(default=None, description="Pixels.")
    duration: float | None = Field(default=None, description="Seconds of video.")
    c2pa: bool | None = Field(
        default=None, description="True if the file has a C2PA manifest that can be read."
    )
    c2pa_signer: str | None = Field(
        default=None, description="Organization in the certificate of the manifest, not verified."
    )
    billed_seconds: float | None = Field(
        default=None, description="Billed seconds of video, if known."
    )
    cost: float | None = Field(default=None, description="Money for one submission, if known.")
    currency: str | None = Field(default=None, description="Currency of the cost.")
    cost_source: str | None = Field(
        default=None, description="Origin of the cost: estimated, listed or billed."
    )
    submitted_at: AwareDatetime | None = Field(default=None, description="Time of its acceptance.")
    waited: float | None = Field(
        default=None, description="Seconds from submission to its detected end."
    )
    polls: int | None = Field(default=None, description="Number of polls.")
    error: str | None = Field(default=None, description="Type of the error, if it has no video.")
    failure_code: str | None = Field(
        default=None, description="CometAPI's or Runway's code of the error, if it named one."
    )
    message: str | None = Field(default=None, description="Reason in words, if it has no video.")

    def problem(self) -> str:
        """Return the kind of the error, its code and its message, or an empty text."""
        code = f"({self.failure_code})" if self.failure_code else None
        kind = " ".join(filter(None, [self.error, code]))
        return ": ".join(filter(None, [kind, self.message]))


class BatchResult(FrozenModel):
    """Result of a batch."""

    idempotency_key: str = Field(description="Prefix of the idempotency keys of its items.")
    results: tuple[ItemResult, ...] = Field(
        description="Result of each item, in the order of the requests."
    )
    spending: Spending = Field(description="Planned and actual spending.")
    output: str | None = Field(default=None, description="Location of the output manifest.")
    gallery: str | None = Field(default=None, description="Location of the gallery.")
    seconds: float = Field(default=0.0, description="Wall time of this run, in seconds.")

    def count(self, *outcomes: Outcome) -> int:
        """Return the number of items with one of these outcomes."""
        return sum(1 for result in self.results if result.outcome in outcomes)

    def sentence(self) -> str:
        """Return the counts in words, as ``480 stored, 15 failed, 5 uncertain``."""
        return counted({outcome: self.count(outcome) for outcome in Outcome})

    @computed_field(description="Items whose video is stored.")
    @property
    def succeeded(self) -> int:
        """Items whose video is stored."""
        return self.count(Outcome.STORED)

    @computed_field(description="Items that were refused, failed, or could not be delivered.")
    @property
    def failed(self) -> int:
        """Items that were refused, failed, or could not be delivered."""
        return self.count(Outcome.FAILED, Outcome.INVALID)

    @computed_field(description="Items that were possibly charged; they wait for a decision.")
    @property
    def uncertain(self) -> int:
        """Items that were possibly charged; they wait for a decision."""
        return self.count(Outcome.UNCERTAIN)

    @computed_field(description="Items that were not bought because a limit was reached.")
    @property
    def not_bought(self) -> int:
        """Items that were not bought because a limit was reached."""
        return self.count(Outcome.NOT_BOUGHT)


def counted(counts: Mapping[Outcome, int]) -> str:
    """Return counts in words, as ``480 stored, 15 failed, 5 uncertain``."""
    return ", ".join(f"{n} {outcome}" for outcome, n in counts.items() if n) or "no items"
