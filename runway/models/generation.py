# SPDX-License-Identifier: Apache-2.0
"""One generation, from its submission to the stored video, as plain values."""

from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from ..redact import is_shortened, shown_url


class Status(StrEnum):
    """Where a generation stands upstream, in one vocabulary for all reply shapes."""

    NOT_VISIBLE = "not visible"
    PENDING = "pending"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        """Whether upstream will not change it any more."""
        return self in {Status.SUCCEEDED, Status.FAILED, Status.CANCELLED}


class AssetURL:
    """Address of a finished asset. Its query is a token: it prints, stores and pickles without."""

    __slots__ = ("_url",)

    def __init__(self, url: str) -> None:
        self._url = url

    def reveal(self) -> str | None:
        """The working address, or None where only the shortened form was kept."""
        return None if is_shortened(self._url) else self._url

    def __str__(self) -> str:
        return shown_url(self._url)

    def __repr__(self) -> str:
        return f"AssetURL({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, AssetURL) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    def __reduce__(self) -> tuple[type["AssetURL"], tuple[str]]:
        return AssetURL, (str(self),)

    @classmethod
    def __get_pydantic_core_schema__(
        cls, _source: Any, _handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        from_text = core_schema.no_info_after_validator_function(cls, core_schema.str_schema())
        return core_schema.json_or_python_schema(
            json_schema=from_text,
            python_schema=core_schema.union_schema(
                [core_schema.is_instance_schema(cls), from_text]
            ),
            serialization=core_schema.to_string_ser_schema(when_used="always"),
        )


class Value(BaseModel):
    """A plain value, which does not change."""

    model_config = ConfigDict(frozen=True)


class Submission(Value):
    """A generation that CometAPI accepted, or that was bought elsewhere and is attached."""

    key: str = Field(description="Idempotency key of the generation.")
    task_id: str = Field(description="Id that CometAPI gave it.")
    submitted_at: AwareDatetime = Field(description="When it was accepted or attached, in UTC.")
    route: str | None = Field(default=None, description="image_to_video or video_to_video.")
    model: str | None = Field(default=None, description="Runway model.")
    fingerprint: str | None = Field(default=None, description="SHA-256 of the request, in hex.")
    request: dict[str, Any] | None = Field(
        default=None, description="The body that was sent, signed URLs and data URIs shortened."
    )
    claim: str | None = Field(
        default=None, description="Which attempt in the ledger the id was given to; random."
    )
    base_url: str | None = Field(
        default=None, description="Root of the service that it was bought from."
    )

    @property
    def short_id(self) -> str:
        """The beginning of the task id, as names in the UI show it."""
        return self.task_id[:8]

    def age(self) -> float:
        """Seconds since it was accepted; never negative, whatever the clocks say."""
        return max(0.0, (datetime.now(UTC) - self.submitted_at).total_seconds())


class Generation(Value):
    """What one reply says of a generation.

    Attributes:
        progress: 0 to 1, or None where the reply names none.
        outputs: Addresses of the results; they expire.
        failure: The service's reason for a failure, or an empty text.
        word: The service's own word for the status, as it stood in the reply.
    """

    task_id: str
    status: Status
    progress: float | None = None
    outputs: tuple[AssetURL, ...] = ()
    failure: str = ""
    failure_code: str = ""
    word: str = ""


class Finished(Value):
    """A generation that succeeded, and what it took to wait for it."""

    generation: Generation
    polls: int = Field(description="Requests that asked for its state.")
    waited: float = Field(description="Seconds from submission to its detected end.")


class VideoFacts(Value):
    """What a video file is."""

    sha256: str = Field(description="SHA-256 of the file, in hex.")
    size: int = Field(description="Bytes.")
    width: int = Field(description="Pixels.")
    height: int = Field(description="Pixels.")
    duration: float = Field(description="Seconds.")
    frames: int = Field(description="Number of frames.")
    codec: str = Field(description="Codec of the video stream, as h264.")


class FetchedVideo(VideoFacts):
    """A whole and valid video on this machine, not yet in the storage."""

    path: str = Field(description="The staged file.")
    poster: str | None = Field(default=None, description="A staged JPEG of one of its frames.")
    poster_sha256: str | None = Field(default=None, description="SHA-256 of the poster, in hex.")


class StoredVideo(VideoFacts):
    """A video in the storage."""

    uri: str = Field(description="Where the video is.")
    poster: str | None = Field(default=None, description="Where its poster is.")
    sidecar: str = Field(description="Where the JSON is that tells its origin.")


class GenerationResult(Value):
    """What a flow returns: the stored videos of one generation, and what it took."""

    key: str
    task_id: str
    status: Status
    videos: tuple[StoredVideo, ...]
    polls: int = Field(description="Requests that asked for its state.")
    waited: float = Field(description="Seconds from submission to its detected end.")
    submitted_at: AwareDatetime
