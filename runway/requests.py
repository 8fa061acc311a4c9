# SPDX-License-Identifier: Apache-2.0
"""What a user may ask for, checked before any money moves.

Fields, limits and defaults are those of CometAPI's docs ("Create a Runway image-to-video task",
"Create a Runway video-to-video task"). They hold strictly for the models documented there; models
drift, so for any other one only the form is checked and the service has the last word. A field
that is not set is not sent.
"""

import base64
import binascii
import hashlib
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationInfo,
    model_validator,
)
from pydantic.alias_generators import to_camel

from .redact import is_loopback, is_shortened, shown_source, shown_url

MAX_URL_LENGTH = 2048
MAX_DATA_BYTES = {"image": 5_000_000, "video": 16_000_000}
"""Bytes of a decoded data URI (Runway's docs, Inputs)."""

RATIOS = (
    "1280:720",
    "720:1280",
    "1104:832",
    "832:1104",
    "960:960",
    "1584:672",
    "1280:768",
    "768:1280",
)

_DATA_URI = re.compile(r"data:(\w+)/[\w.+-]+;base64,([A-Za-z0-9+/]+={0,2})", re.IGNORECASE)


@dataclass(frozen=True)
class Limits:
    """What the docs allow for one model."""

    prompt_length: int
    seed: int
    durations: tuple[int, ...] = ()
    ratios: tuple[str, ...] = ()
    references: int | None = None


def _check_source(value: object, info: ValidationInfo) -> object:
    if not isinstance(value, str):
        return value
    kind = "video" if "video" in (info.field_name or "") else "image"
    if is_shortened(value):
        raise ValueError(
            "this is only the shortened form that is shown in place of a data URI; "
            "pass the original, or better a https:// URL"
        )
    if value[:5].lower() == "data:":
        return _checked_data_uri(value, kind)
    return _checked_url(value)


def _checked_data_uri(uri: str, kind: str) -> str:
    match = _DATA_URI.fullmatch(uri)
    if not match or match[1].lower() != kind:
        raise ValueError(f"a data URI must read data:{kind}/<type>;base64,<data>")
    try:
        size = len(base64.b64decode(match[2], validate=True))
    except binascii.Error:
        raise ValueError("the data URI's base64 is broken") from None
    if size > MAX_DATA_BYTES[kind]:
        raise ValueError(
            f"a data URI may carry {MAX_DATA_BYTES[kind]:,} bytes of {kind}, this one has "
            f"{size:,}; pass a https:// URL"
        )
    return uri


def _checked_url(url: str) -> str:
    if len(url) > MAX_URL_LENGTH:
        raise ValueError(f"a URL may have {MAX_URL_LENGTH} characters, this one has {len(url)}")
    if re.search(r"[\s\x00-\x1f\x7f]", url):
        raise ValueError("a URL contains no spaces or control characters")
    try:
        parts = urlsplit(url)
        host = parts.hostname
        _ = parts.port
    except ValueError:
        raise ValueError("this is no URL") from None
    if parts.scheme == "http" and is_loopback(url):
        return url
    if parts.scheme != "https" or not host:
        raise ValueError(
            f"must be a https:// URL that CometAPI can fetch (got {shown_url(url)!r}); "
            "http:// is allowed for this machine only"
        )
    return url


Source = Annotated[
    str,
    BeforeValidator(_check_source),
    PlainSerializer(
        lambda source: shown_source(source) if source[:5].lower() == "data:" else source,
        when_used="json",
        return_type=str,
    ),
]
"""A https URL, or a base64 data URI. As JSON a data URI is written shortened, so that a picture
never ends in the run history."""


class _WireModel(BaseModel):
    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        alias_generator=to_camel,
        populate_by_name=True,
        hide_input_in_errors=True,
    )


class Reference(_WireModel):
    """An image that shows the style or the subject wanted."""

    type: Literal["image"] = Field(default="image", description="Kind of reference.")
    uri: Source = Field(description="HTTPS URL of the image.")


class ContentModeration(_WireModel):
    """How strictly public figures are recognised."""

    public_figure_threshold: Literal["auto", "low"] = Field(
        default="auto", description="'low' is less strict about recognisable public figures."
    )


class GenerationRequest(_WireModel):
    """What both routes have in common."""

    route: ClassVar[str]
    documented: ClassVar[dict[str, Limits]]

    if TYPE_CHECKING:  # each route declares it itself, in the order of its form
        model: str

    def to_wire(self) -> dict[str, Any]:
        """The JSON body to send: the wire's names, and only what was set."""
        return self.model_dump(mode="python", by_alias=True, exclude_none=True)

    def fingerprint(self) -> str:
        """SHA-256 over route and body, in hex: equal for equal requests."""
        content = json.dumps([self.route, self.to_wire()], sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()

    def shown(self) -> dict[str, Any]:
        """The body as it may be shown: signed URLs and data URIs shortened."""
        return _shorten_sources(self.to_wire())

    def __repr_args__(self) -> Any:
        return [(name, value) for name, value in self.shown().items()]

    @model_validator(mode="after")
    def _keep_documented_limits(self) -> "GenerationRequest":
        limits = self.documented.get(self.model)
        if limits:
            for field, problem in _exceeded(self, limits):
                raise ValueError(f"{to_camel(field)}: {problem} (model {self.model})")
        return self


def _exceeded(request: GenerationRequest, limits: Limits) -> "list[tuple[str, str]]":
    """Each documented limit that the request passes, as (field, what is allowed)."""
    asked = {name: value for name, value in request if value is not None}
    prompt, seed, ratio = asked.get("prompt_text", ""), asked.get("seed"), asked.get("ratio")
    duration, references = asked.get("duration"), asked.get("references", ())
    problems: list[tuple[str, str]] = []
    if len(prompt) > limits.prompt_length:
        problems.append(
            ("prompt_text", f"at most {limits.prompt_length} characters, got {len(prompt)}")
        )
    if seed is not None and seed > limits.seed:
        problems.append(("seed", f"0 to {limits.seed}, got {seed}"))
    if duration is not None and duration not in limits.durations:
        allowed = " or ".join(map(str, limits.durations))
        problems.append(("duration", f"{allowed} seconds, got {duration}"))
    if ratio is not None and limits.ratios and ratio not in limits.ratios:
        problems.append(("ratio", f"one of {', '.join(limits.ratios)}, got {ratio}"))
    if limits.references is not None and len(references) > limits.references:
        problems.append(("references", f"at most {limits.references}, got {len(references)}"))
    return problems


def _check_ratio(value: object) -> object:
    if isinstance(value, str) and not re.fullmatch(r"[1-9][0-9]{0,4}:[1-9][0-9]{0,4}", value):
        raise ValueError(f"write width:height with a colon, as {RATIOS[0]}, got {value[:40]!r}")
    return value


Ratio = Annotated[str, BeforeValidator(_check_ratio)]


def _documented_limits_schema(documented: dict[str, Limits]) -> Any:
    """JSON schema of the limits, so that Prefect's server refuses a bad run before it exists."""

    def add(schema: dict[str, Any]) -> None:
        schema["allOf"] = [
            {
                "if": {"properties": {"model": {"const": model}}},
                "then": {"properties": _limited_properties(limits)},
            }
            for model, limits in documented.items()
        ]

    return add


def _limited_properties(limits: Limits) -> dict[str, Any]:
    properties: dict[str, Any] = {
        "promptText": {"maxLength": limits.prompt_length},
        "seed": {"maximum": limits.seed},
    }
    if limits.durations:
        properties["duration"] = {"enum": [*limits.durations, None]}
    if limits.ratios:
        properties["ratio"] = {"enum": [*limits.ratios, None]}
    if limits.references is not None:
        properties["references"] = {"maxItems": limits.references}
    return properties


IMAGE_TO_VIDEO_MODELS = {
    "gen3a_turbo": Limits(prompt_length=512, seed=999_999_999, durations=(5, 10), ratios=RATIOS)
}
VIDEO_TO_VIDEO_MODELS = {"gen4_aleph": Limits(prompt_length=1000, seed=4_294_967_295, references=1)}


class ImageToVideoRequest(GenerationRequest):
    """A video made from an image (CometAPI docs, Create a Runway image-to-video task)."""

    model_config = ConfigDict(json_schema_extra=_documented_limits_schema(IMAGE_TO_VIDEO_MODELS))
    route: ClassVar[str] = "image_to_video"
    documented: ClassVar[dict[str, Limits]] = IMAGE_TO_VIDEO_MODELS

    prompt_image: Source = Field(
        title="Image",
        description="Stable HTTPS URL of the image to animate, or a base64 data URI of it.",
        examples=["https://upload.wikimedia.org/wikipedia/commons/3/3a/Cat03.jpg"],
    )
    model: str = Field(
        default="gen3a_turbo", min_length=1, max_length=100, description="Runway model to use."
    )
    prompt_text: str | None = Field(
        default=None,
        title="Prompt",
        description="What should happen, in at most 512 characters for gen3a_turbo.",
        examples=["slow zoom, soft light"],
    )
    duration: Annotated[int, Field(ge=1, le=60)] | None = Field(
        default=None, description="Seconds of video: 5 or 10 for gen3a_turbo; 5 where not set."
    )
    ratio: Ratio | None = Field(
        default=None,
        description="Width and height in pixels as width:height; the service may normalise it.",
        examples=list(RATIOS),
    )
    seed: Annotated[int, Field(ge=0)] | None = Field(
        default=None, description="Same seed, similar video; at most 999999999 for gen3a_turbo."
    )
    watermark: bool | None = Field(default=None, description="Whether to draw a watermark.")


class VideoToVideoRequest(GenerationRequest):
    """A video restyled from another (CometAPI docs, Create a Runway video-to-video task)."""

    model_config = ConfigDict(json_schema_extra=_documented_limits_schema(VIDEO_TO_VIDEO_MODELS))
    route: ClassVar[str] = "video_to_video"
    documented: ClassVar[dict[str, Limits]] = VIDEO_TO_VIDEO_MODELS

    video_uri: Source = Field(
        title="Video",
        description="HTTPS URL of the video to restyle, or a base64 data URI of it.",
        examples=["https://media.w3.org/2010/05/sintel/trailer.mp4"],
    )
    prompt_text: str = Field(
        title="Prompt",
        min_length=1,
        description="What should change, in at most 1000 characters for gen4_aleph.",
        examples=["Make the motion feel cinematic."],
    )
    model: str = Field(
        default="gen4_aleph", min_length=1, max_length=100, description="Runway model to use."
    )
    references: list[Reference] | None = Field(
        default=None, description="At most one image that shows the style wanted."
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
        default=None, description="How strictly public figures are recognised."
    )


def _shorten_sources(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _shorten_sources(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_shorten_sources(item) for item in value]
    is_source = isinstance(value, str) and re.match(r"data:|https?://", value, re.IGNORECASE)
    return shown_source(value) if is_source else value
