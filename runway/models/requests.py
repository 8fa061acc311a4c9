# SPDX-License-Identifier: Apache-2.0
"""Requests for generations, validated before any money is spent.

Fields, limits and defaults are those of CometAPI's docs ("Create a Runway image-to-video task",
"Create a Runway video-to-video task"). They apply strictly to the models documented there. Models
change, so for any other model only the form is checked, and the service decides. A field that is
not set is not sent.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel

from ..redact import redact_payload
from .model_limits import (
    IMAGE_TO_VIDEO_MODELS,
    RATIOS,
    VIDEO_TO_VIDEO_MODELS,
    Limits,
    LimitsExceeded,
    exceeded,
    limits_schema,
)
from .sources import Source, StoredSource, stored_sources


class _WireModel(BaseModel):
    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        alias_generator=to_camel,
        populate_by_name=True,
        hide_input_in_errors=True,
    )


class Reference(_WireModel):
    """Image that shows the desired style or subject."""

    type: Literal["image"] = Field(default="image", description="Kind of reference.")
    uri: Source = Field(description="Image: an HTTPS URL, a path, or an s3:// address.")


class ContentModeration(_WireModel):
    """Strictness of the recognition of public figures."""

    public_figure_threshold: Literal["auto", "low"] = Field(
        default="auto", description="'low' is less strict about recognisable public figures."
    )


class GenerationRequest(_WireModel):
    """Base of the requests of both routes."""

    route: ClassVar[str]
    documented: ClassVar[dict[str, Limits]]

    if TYPE_CHECKING:  # each route declares it at its own position in the form
        model: str

    def to_wire(self) -> dict[str, Any]:
        """Return the JSON body to send: the API's field names, and only the fields that are set."""
        return self.model_dump(mode="python", by_alias=True, exclude_none=True)

    def fingerprint(self, versions: Mapping[str, str] | None = None) -> str:
        """Return the SHA-256 of route and body in hex; equal requests have equal fingerprints.

        Args:
            versions: Versions of the stored sources, by their paths in the body. The body has
                only their addresses, and what is at an address may change.
        """
        parts = [self.route, self.to_wire(), *([dict(versions)] if versions else [])]
        content = json.dumps(parts, sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()

    def shown(self, versions: Mapping[str, str] | None = None) -> dict[str, Any]:
        """Return the body as it is safe to show, with signed URLs and data URIs redacted.

        Args:
            versions: Versions of the stored sources, which are added as ``sources``.
        """
        shown = redact_payload(self.to_wire())
        return {**shown, "sources": dict(versions)} if versions else shown

    def stored_sources(self) -> dict[str, StoredSource]:
        """Return the sources that are read at the submission, by their paths in the body."""
        return dict(stored_sources(self.to_wire()))

    def billed_seconds(self) -> float | None:
        """Return the seconds of video to be billed, or None if they depend on the result."""
        limits = self.documented.get(self.model)
        seconds = getattr(self, "duration", None) or (limits and limits.default_duration)
        return float(seconds) if seconds else None

    def __repr_args__(self) -> Any:
        return [(name, value) for name, value in self.shown().items()]

    @model_validator(mode="after")
    def _keep_documented_limits(self) -> "GenerationRequest":
        limits = self.documented.get(self.model)
        fields = {name: value for name, value in self if value is not None}
        if limits and (problems := exceeded(fields, limits)):
            raise LimitsExceeded(problems, self.model)
        return self


def _check_ratio(value: object) -> object:
    if isinstance(value, str) and not re.fullmatch(r"[1-9][0-9]{0,4}:[1-9][0-9]{0,4}", value):
        raise ValueError(f"must be width:height, for example {RATIOS[0]}, got {value[:40]!r}")
    return value


Ratio = Annotated[str, BeforeValidator(_check_ratio)]


class ImageToVideoRequest(GenerationRequest):
    """Video made from an image (CometAPI docs, Create a Runway image-to-video task)."""

    model_config = ConfigDict(json_schema_extra=limits_schema(IMAGE_TO_VIDEO_MODELS))
    route: ClassVar[str] = "image_to_video"
    documented: ClassVar[dict[str, Limits]] = IMAGE_TO_VIDEO_MODELS

    prompt_image: Source = Field(
        title="Image",
        description="Image to animate: a stable HTTPS URL, a base64 data URI, a path, an address "
        "of an object store (s3://, gs://, az://), or a file in a storage block "
        "(type-slug/name/file).",
        examples=["https://upload.wikimedia.org/wikipedia/commons/3/3a/Cat03.jpg"],
    )
    model: str = Field(
        default="gen3a_turbo", min_length=1, max_length=100, description="Runway model to use."
    )
    prompt_text: str | None = Field(
        default=None,
        title="Prompt",
        description="Description of the motion, in at most 512 characters for gen3a_turbo.",
        examples=["slow zoom, soft light"],
    )
    duration: Annotated[int, Field(ge=1, le=60)] | None = Field(
        default=None, description="Seconds of video: 5 or 10 for gen3a_turbo; 5 if not set."
    )
    ratio: Ratio | None = Field(
        default=None,
        description="Width and height in pixels, which the service may normalise. For gen3a_turbo: "
        f"{', '.join(RATIOS)}.",
        examples=list(RATIOS),
    )
    seed: Annotated[int, Field(ge=0)] | None = Field(
        default=None, description="Same seed, similar video; at most 999999999 for gen3a_turbo."
    )
    watermark: bool | None = Field(default=None, description="True to draw a watermark.")


class VideoToVideoRequest(GenerationRequest):
    """Video restyled from another one (CometAPI docs, Create a Runway video-to-video task)."""

    model_config = ConfigDict(json_schema_extra=limits_schema(VIDEO_TO_VIDEO_MODELS))
    route: ClassVar[str] = "video_to_video"
    documented: ClassVar[dict[str, Limits]] = VIDEO_TO_VIDEO_MODELS

    video_uri: Source = Field(
        title="Video",
        description="Video to restyle: a stable HTTPS URL, a base64 data URI, a path, an address "
        "of an object store (s3://, gs://, az://), or a file in a storage block "
        "(type-slug/name/file).",
        examples=["https://media.w3.org/2010/05/sintel/trailer.mp4"],
    )
    prompt_text: str = Field(
        title="Prompt",
        min_length=1,
        description="Description of the change, in at most 1000 characters for gen4_aleph.",
        examples=["Make the motion feel cinematic."],
    )
    model: str = Field(
        default="gen4_aleph", min_length=1, max_length=100, description="Runway model to use."
    )
    references: list[Reference] | None = Field(
        default=None, description="At most one image that shows the desired style."
    )
    ratio: Ratio | None = Field(
        default=None,
        description="Width and height as width:height; gen4_aleph follows its input instead.",
        examples=list(RATIOS),
    )
    seed: Annotated[int, Field(ge=0)] | None = Field(
        default=None, description="Same seed, similar video; at most 4294967295 for gen4_aleph."
    )
    content_moderation: ContentModeration | None = Field(
        default=None,
        title="Content moderation",
        description="Strictness of the recognition of public figures.",
    )


def as_request(given: object) -> GenerationRequest:
    """Return a request, given as such or as its fields; a source video means video-to-video.

    Raises:
        pydantic.ValidationError: The fields are not a valid request.
    """
    if isinstance(given, GenerationRequest):
        return given
    has_video = isinstance(given, Mapping) and bool({"videoUri", "video_uri"} & set(given))
    return (VideoToVideoRequest if has_video else ImageToVideoRequest).model_validate(given)
