# SPDX-License-Identifier: Apache-2.0
"""Data models of a batch: its items, and the result of each."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated

from pydantic import AfterValidator, AwareDatetime, Field, computed_field

from ..ledger.figures import Spending
from ..models.generation import Value
from ..models.requests import ImageToVideoRequest, VideoToVideoRequest
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


class BatchItem(Value):
    """Request of one generation in a batch."""

    id: str = Field(description="What the user calls it; unique in the batch.")
    idempotency_key: str = Field(description="Idempotency key of its generation.")
    request: ImageToVideoRequest | VideoToVideoRequest = Field(description="What to make.")


class ItemResult(Value):
    """Result of one item: a row of the output manifest."""

    id: str = Field(description="What the user calls it.")
    outcome: Outcome = Field(description="Where it stands.")
    idempotency_key: str | None = Field(
        default=None, description="Idempotency key of its generation."
    )
    task_id: str | None = Field(default=None, description="Id that CometAPI gave it.")
    route: str | None = Field(default=None, description="image_to_video or video_to_video.")
    model: str | None = Field(default=None, description="Runway model.")
    prompt: Annotated[str | None, AfterValidator(redact_payload)] = Field(
        default=None, description="What was asked for, in words; signed URLs and the like redacted."
    )
    uri: str | None = Field(default=None, description="Where its video is.")
    poster: str | None = Field(default=None, description="Where its poster is.")
    sha256: str | None = Field(default=None, description="SHA-256 of the video, in hex.")
    size: int | None = Field(default=None, description="Bytes.")
    width: int | None = Field(default=None, description="Pixels.")
    height: int | None = Field(default=None, description="Pixels.")
    duration: float | None = Field(default=None, description="Seconds of video.")
    billed_seconds: float | None = Field(
        default=None, description="Seconds of video that it is billed for, as far as is known."
    )
    submitted_at: AwareDatetime | None = Field(default=None, description="When it was accepted.")
    waited: float | None = Field(
        default=None, description="Seconds from submission to its detected end."
    )
    polls: int | None = Field(default=None, description="Requests that asked for its state.")
    error: str | None = Field(default=None, description="Kind of the error that ended it.")
    message: str | None = Field(default=None, description="What happened, in words.")

    def problem(self) -> str:
        """Return the kind of the error and its message, or an empty text."""
        return ": ".join(filter(None, [self.error, self.message]))


class BatchResult(Value):
    """Result of a batch."""

    idempotency_key: str = Field(description="What the keys of its items begin with.")
    results: tuple[ItemResult, ...] = Field(description="Each item, in the order asked for.")
    spending: Spending = Field(description="What it comes to, and what was bought.")
    output: str | None = Field(default=None, description="Where the output manifest is.")
    gallery: str | None = Field(default=None, description="Where the gallery is.")
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

    @computed_field(description="Items that were left, as a limit was reached.")
    @property
    def not_bought(self) -> int:
        """Items that were not bought because a limit was reached."""
        return self.count(Outcome.NOT_BOUGHT)


def counted(counts: Mapping[Outcome, int]) -> str:
    """Return counts in words, as ``480 stored, 15 failed, 5 uncertain``."""
    return ", ".join(f"{n} {outcome}" for outcome, n in counts.items() if n) or "no items"
