# SPDX-License-Identifier: Apache-2.0
"""Data models of one generation, from its submission to the stored video."""

import base64
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from ..plain_help import PlainHelp
from ..redact import is_redacted, redact_url
from . import notebook
from .prices import shown_cost


class Status(StrEnum):
    """Status of a generation upstream, with one vocabulary for all reply shapes."""

    NOT_FOUND = "not visible"
    PENDING = "pending"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        """True for a status that does not change any more."""
        return self in {Status.SUCCEEDED, Status.FAILED, Status.CANCELLED}


class AssetURL:
    """URL of a finished asset. Its query is a secret: it is never printed, stored or pickled."""

    __slots__ = ("_url",)

    def __init__(self, url: str) -> None:
        self._url = url

    def reveal(self) -> str | None:
        """Return the working URL, or None if only the redacted form was kept."""
        return None if is_redacted(self._url) else self._url

    def __str__(self) -> str:
        return redact_url(self._url)

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


class FrozenModel(BaseModel, metaclass=PlainHelp):
    """Base of the immutable data models."""

    model_config = ConfigDict(frozen=True)


class Submission(FrozenModel):
    """Generation that CometAPI accepted, or that was bought elsewhere and adopted."""

    idempotency_key: str = Field(description="Idempotency key of the generation.")
    task_id: str = Field(description="Task id from CometAPI.")
    submitted_at: AwareDatetime = Field(description="Time of its acceptance or adoption, in UTC.")
    route: str | None = Field(default=None, description="Route, such as image_to_video.")
    model: str | None = Field(default=None, description="Runway model.")
    fingerprint: str | None = Field(default=None, description="SHA-256 of the request, in hex.")
    request: dict[str, Any] | None = Field(
        default=None, description="Body that was sent, with signed URLs and data URIs redacted."
    )
    claim: str | None = Field(
        default=None, description="Random id of the claim in the ledger that received the task id."
    )
    base_url: str | None = Field(
        default=None, description="Root URL of the service that it was bought from."
    )
    request_id: str | None = Field(
        default=None, description="CometAPI's id of the call that bought it, for its support."
    )

    @property
    def ids(self) -> dict[str, str | None]:
        """Ids by which the user, CometAPI and its support find the generation."""
        return {
            "idempotency_key": self.idempotency_key,
            "task_id": self.task_id,
            "request_id": self.request_id,
        }

    @property
    def short_id(self) -> str:
        """First eight characters of the task id, as used in names in the UI."""
        return self.task_id[:8]

    def age(self) -> float:
        """Return the seconds since the submission; never negative, even if clocks disagree."""
        return max(0.0, (datetime.now(UTC) - self.submitted_at).total_seconds())


class Generation(FrozenModel):
    """State of a generation, as reported by one reply.

    Attributes:
        progress: 0 to 1, or None if the reply has no progress.
        outputs: URLs of the results; they expire.
        failure: The service's reason for a failure, or an empty text.
        raw_status: The service's own word for the status, as in the reply.
        unknown_status: Word in the reply for a status that is not known here, or an empty text.
        unread: Description of what the reply has in place of a known end or a known output, or an
            empty text. It names fields and no content.
        is_vague: True for an end by a word that does not say what happened, such as ``timeout``.
        credits: Runway's credits for it, or None if the reply does not name them.
    """

    task_id: str
    status: Status
    progress: float | None = None
    outputs: tuple[AssetURL, ...] = ()
    failure: str = ""
    failure_code: str = ""
    raw_status: str = ""
    unknown_status: str = ""
    unread: str = ""
    is_vague: bool = False
    credits: float | None = None


class CompletedGeneration(FrozenModel):
    """Generation that succeeded, with the number of polls and the time it took."""

    generation: Generation
    polls: int = Field(description="Number of polls.")
    waited: float = Field(description="Seconds from submission to its detected end.")


class Provenance(FrozenModel):
    """C2PA manifest of a file, as the file states it. Its signature is not verified."""

    found: bool = Field(description="True if the file has a C2PA manifest that can be read.")
    signer: str | None = Field(
        default=None, description="Organization in the certificate of the signature."
    )
    digital_source_type: str | None = Field(
        default=None, description="IPTC's term for how the media was made, if it is stated."
    )
    generator: str | None = Field(default=None, description="Program that wrote the manifest.")
    manifest: str | None = Field(default=None, description="Label of the active manifest.")
    problem: str | None = Field(
        default=None, description="Reason why C2PA data in the file was not read."
    )

    def in_words(self) -> str:
        """Return a short description, as ``signed by RUNWAY AI, INC. (not verified)``."""
        if self.found:
            return f"signed by {self.signer or 'an unnamed signer'} (not verified)"
        return f"none: {self.problem}" if self.problem else "none"


class VideoFacts(FrozenModel):
    """Properties of a video file, or of a picture file: one frame without a duration."""

    sha256: str = Field(description="SHA-256 of the file, in hex.")
    size: int = Field(description="Bytes.")
    width: int = Field(description="Pixels.")
    height: int = Field(description="Pixels.")
    duration: float = Field(description="Seconds.")
    frames: int = Field(description="Number of frames.")
    codec: str = Field(description="Codec of the video stream, for example h264.")
    media_type: str = Field(default="video/mp4", description="Media type of the file.")
    provenance: Provenance | None = Field(
        default=None, description="C2PA manifest of the file; None if the file was not examined."
    )

    @property
    def is_picture(self) -> bool:
        """True for a picture, False for a video."""
        return self.media_type.startswith("image/")


class FetchedVideo(VideoFacts):
    """Complete and valid video or picture on this machine, not yet in the storage."""

    path: str = Field(description="Path of the staged file.")
    poster: str | None = Field(
        default=None, description="Path of a staged JPEG of one of its frames."
    )
    poster_sha256: str | None = Field(default=None, description="SHA-256 of the poster, in hex.")
    stamp: str | None = Field(default=None, description="State of the file when it was hashed.")


class StoredVideo(VideoFacts):
    """Video or picture in the storage."""

    uri: str = Field(description="Location of the file.")
    poster: str | None = Field(default=None, description="Location of the poster.")
    sidecar: str = Field(description="Location of the JSON file that describes its origin.")

    def data_uri(self) -> str:
        """Return a file in a folder of this machine as a base64 data URI, for the next request.

        Raises:
            ValueError: The file is not in a folder of this machine, or cannot be read.
        """
        try:
            content = Path(self.uri).read_bytes()
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise ValueError(
                f"{redact_url(self.uri)} cannot be read as a file of this machine: {reason}"
            ) from None
        return f"data:{self.media_type};base64,{base64.b64encode(content).decode()}"

    def _repr_html_(self) -> str:
        """Return the HTML by which a notebook shows the video, or the picture."""
        facts = {
            "location": redact_url(self.uri),
            "duration": "" if self.is_picture else f"{self.duration:.1f} s",
            "frame": f"{self.width} × {self.height} pixels",  # noqa: RUF001 -- the sign for it
            "size": f"{self.size:,} bytes",
        }
        shown = (
            notebook.picture(self.uri, self.poster)
            if self.is_picture
            else notebook.player(self.uri, self.poster, self.media_type)
        )
        return f"<div>{shown}{notebook.table(facts)}</div>"


class GenerationResult(FrozenModel):
    """Result of a flow: the stored outputs of one generation, its polls and its waiting time."""

    idempotency_key: str
    task_id: str
    status: Status
    videos: tuple[StoredVideo, ...] = Field(
        description="Stored outputs: videos, or pictures if the route makes pictures."
    )
    polls: int = Field(description="Number of polls.")
    waited: float = Field(description="Seconds from submission to its detected end.")
    submitted_at: AwareDatetime
    cost: float | None = Field(default=None, description="Money for one submission, if known.")
    currency: str | None = Field(default=None, description="Currency of the cost.")
    cost_source: str | None = Field(
        default=None, description="Origin of the cost: estimated, listed or billed."
    )

    def _repr_html_(self) -> str:
        """Return the HTML by which a notebook shows the result."""
        facts = {
            "status": str(self.status),
            "task id": self.task_id,
            "idempotency key": self.idempotency_key,
            "cost": shown_cost(self.cost, self.currency, self.cost_source),
        }
        videos = "".join(video._repr_html_() for video in self.videos)
        return f"{videos}{notebook.table(facts)}"
