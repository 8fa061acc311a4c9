# SPDX-License-Identifier: Apache-2.0
"""Requests for generations, validated before any money is spent.

One class declares one route. Its flow, its command, its deployment, the rows of batches and the
union of all requests follow from the class and from the table of models (models.json), which holds
the fields and limits of each known model. Models change, so for any other model only the form is
checked, and the service decides. A field that is not set is not sent. A field that this package
does not know is sent with ``extra``.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Union

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    PlainSerializer,
    TypeAdapter,
    WrapValidator,
    field_validator,
    model_validator,
)
from pydantic.alias_generators import to_camel
from pydantic_core import CoreSchema

from ..plain_help import PlainHelp
from ..redact import is_redacted, redact_payload
from ..signatures import unsigned
from .field_names import accept_names
from .model_limits import (
    LimitsExceeded,
    Makes,
    ModelLimits,
    Position,
    exceeded,
    known_models,
    limits_schema,
    model_table,
)
from .sources import Source, StoredSource, stored_sources

_RATIO = "1280:720"


class _WireModel(BaseModel, metaclass=PlainHelp):
    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        alias_generator=to_camel,
        populate_by_name=True,
        serialize_by_alias=True,
        hide_input_in_errors=True,
    )

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """Return the JSON schema, which accepts the fields by both of their names."""
        described = handler(core_schema)
        names = {str(info.alias): name for name, info in cls.model_fields.items()}
        others = {alias: name for alias, name in names.items() if alias != name}
        accept_names(handler.resolve_ref_schema(described), others)
        return described


class Reference(_WireModel):
    """Image that shows the desired style or subject."""

    type: Literal["image"] = Field(default="image", description="Kind of reference.")
    uri: Source = Field(description="Image: an HTTPS URL, a path, or an s3:// address.")


class PositionedImage(_WireModel):
    """Image at a position of the video."""

    uri: Source = Field(description="Image: an HTTPS URL, a path, or an s3:// address.")
    position: Position = Field(description="Frame of the video that the image becomes.")


class TaggedImage(_WireModel):
    """Image that a picture is based on."""

    uri: Source = Field(description="Image: an HTTPS URL, a path, or an s3:// address.")
    tag: Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]{2,15}$")] | None = Field(
        default=None, description="Name by which the prompt refers to the image, as @name."
    )


def _as_image(value: object) -> object:
    """Validate one image or several with positions, with errors that do not name a union."""
    return (_IMAGES if isinstance(value, list) else _IMAGE).validate_python(value)


_IMAGE: TypeAdapter[str] = TypeAdapter(Source)
_IMAGES: TypeAdapter[list[PositionedImage]] = TypeAdapter(
    Annotated[list[PositionedImage], Field(min_length=1, max_length=2)]
)
PromptImage = Annotated[
    Source | Annotated[list[PositionedImage], Field(min_length=1, max_length=2)],
    WrapValidator(lambda value, _handler: _as_image(value)),
]


class KeyframeRange(_WireModel):
    """Part of a video to which a keyframe applies."""

    # Runway names these two fields in snake case, unlike all others.
    start_seconds: Annotated[int, Field(ge=0)] = Field(
        alias="start_seconds", description="First second."
    )
    end_seconds: Annotated[int, Field(ge=1)] = Field(
        alias="end_seconds", description="Second before which it ends."
    )


class Keyframe(_WireModel):
    """Image that guides the change of a video at one time."""

    uri: Source = Field(description="Image: an HTTPS URL, a path, or an s3:// address.")
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = Field(
        default=None, description="Time in the video in seconds."
    )
    at: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = Field(
        default=None, description="Time in the video as a share of it, from 0 to 1."
    )
    range: KeyframeRange | None = Field(
        default=None, description="Part of the video to which the change is limited."
    )

    @model_validator(mode="after")
    def _have_one_time(self) -> "Keyframe":
        if (self.seconds is None) == (self.at is None):
            raise ValueError("needs either seconds or at")
        return self


class ContentModeration(_WireModel):
    """Strictness of the recognition of public figures."""

    public_figure_threshold: Literal["auto", "low"] = Field(
        default="auto", description="'low' is less strict about recognisable public figures."
    )


class Character(_WireModel):
    """Image or video of the character that performs."""

    type: Literal["image", "video"] = Field(description="Kind of source.")
    uri: Source = Field(description="Image or video: an HTTPS URL, a path, or an s3:// address.")


class Performance(_WireModel):
    """Video of the person whose performance the character takes over."""

    type: Literal["video"] = Field(default="video", description="Kind of source.")
    uri: Source = Field(
        description="Video of 3 to 30 seconds: an HTTPS URL, a path, or an s3:// address."
    )


Extra = Annotated[
    dict[Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]{0,99}$")], Any],
    PlainSerializer(partial(redact_payload, urls=False), when_used="json", return_type=dict),
]
"""Fields that this package does not know, by the API's names. In JSON, data URIs are redacted."""


class GenerationRequest(_WireModel):
    """Base of the requests of all routes.

    Attributes:
        route: Name of the route at CometAPI.
        summary: Sentence that says what the route does.
        arguments: Fields that the command takes by position; all others are options.
    """

    route: ClassVar[str]
    summary: ClassVar[str]
    arguments: ClassVar[tuple[str, ...]] = ()

    if TYPE_CHECKING:  # each route declares it at its own position in the form
        model: str

    extra: Extra | None = Field(
        default=None,
        title="Further fields",
        description="Fields that the service knows and this package does not, by the API's names. "
        "They are sent as they are.",
    )

    @classmethod
    def makes(cls) -> Makes:
        """Return the kind of file that the route makes."""
        return model_table().routes[cls.route].makes

    @classmethod
    def known_by(cls) -> str:
        """Return the field by which a request of the route is recognised."""
        return model_table().routes[cls.route].known_by

    @classmethod
    def example(cls) -> dict[str, Any]:
        """Return the smallest request of the default model, from the examples of its fields."""
        fields = {str(info.alias): info for info in cls.model_fields.values()}
        default = cls.model_fields["model"].default
        required = known_models(cls.route)[default].required
        return {
            name: info.examples[0]
            for name, info in fields.items()
            if name in required and info.examples
        }

    @property
    def prompt(self) -> str | None:
        """Prompt, if the request has one."""
        return getattr(self, "prompt_text", None)

    def limits(self) -> ModelLimits | None:
        """Return the limits of the model, or None if the table does not have it."""
        return known_models(self.route).get(self.model)

    def fields(self) -> dict[str, Any]:
        """Return the fields that are set, by the API's names, with ``extra`` as one of them."""
        return self.model_dump(mode="python", exclude_none=True)

    def to_wire(self) -> dict[str, Any]:
        """Return the JSON body to send: the API's field names, and only the fields that are set."""
        body = self.model_dump(mode="python", exclude_none=True, exclude={"extra"})
        return {**body, **(self.extra or {})}

    def fingerprint(self, versions: Mapping[str, str] | None = None) -> str:
        """Return the SHA-256 of route and body in hex; equal requests have equal fingerprints.

        A URL counts without its signature: signed anew, it is still the same picture.

        Args:
            versions: Versions of the stored sources, by their paths in the body. The body has
                only their addresses, and what is at an address may change.
        """
        body = {
            name: value if name == "promptText" else unsigned(value)
            for name, value in self.to_wire().items()
        }
        parts = [self.route, body, *([dict(versions)] if versions else [])]
        content = json.dumps(parts, sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()

    def redacted(self, versions: Mapping[str, str] | None = None) -> dict[str, Any]:
        """Return the body as it is safe to show, with signed URLs and data URIs redacted.

        Args:
            versions: Versions of the stored sources, which are added as ``sources``.
        """
        body = redact_payload(self.to_wire())
        return {**body, "sources": dict(versions)} if versions else body

    def stored_sources(self) -> dict[str, StoredSource]:
        """Return the sources that are read at the submission, by their paths in the body."""
        return dict(stored_sources(self.to_wire()))

    def billed_seconds(self) -> float | None:
        """Return the seconds of video to be billed, or None if they depend on the result."""
        if self.makes() != "video":
            return 0.0
        limits = self.limits()
        seconds = getattr(self, "duration", None) or (limits and limits.default_duration)
        return float(seconds) if seconds else None

    def __repr_args__(self) -> Any:
        return [(name, value) for name, value in self.redacted().items()]

    @field_validator("extra")
    @classmethod
    def _add_only_unknown_fields(cls, extra: dict[str, Any] | None) -> dict[str, Any] | None:
        own = {_folded(name): str(info.alias) for name, info in cls.model_fields.items()}
        for name in extra or {}:
            if known := own.get(_folded(name)):
                raise ValueError(f"{name} is checked: set the field {known} in place of it")
        if _has_redacted(extra):
            raise ValueError("it contains only the redacted form of a data URI; pass the original")
        try:
            json.dumps(extra, allow_nan=False, ensure_ascii=False).encode()
        except (TypeError, ValueError):
            raise ValueError("it must be JSON that can be sent") from None
        return extra or None

    @model_validator(mode="after")
    def _keep_documented_limits(self) -> "GenerationRequest":
        limits = self.limits()
        if limits and (problems := exceeded(self.fields(), limits)):
            raise LimitsExceeded(problems, self.model)
        return self


def _folded(name: str) -> str:
    """Return a name in the form in which lenient services compare names."""
    return name.replace("_", "").casefold()


def _has_redacted(value: object) -> bool:
    if isinstance(value, dict):
        return any(_has_redacted(item) for item in value.values())
    if isinstance(value, list):
        return any(_has_redacted(item) for item in value)
    return isinstance(value, str) and value[:5].lower() == "data:" and is_redacted(value)


def _check_ratio(value: object) -> object:
    if isinstance(value, str) and not re.fullmatch(r"[1-9][0-9]{0,4}:[1-9][0-9]{0,4}", value):
        raise ValueError(f"must be width:height, for example {_RATIO}, got {value[:40]!r}")
    return value


Ratio = Annotated[str, BeforeValidator(_check_ratio)]
Model = Annotated[str, Field(min_length=1, max_length=100)]
Seed = Annotated[int, Field(ge=0)]
Prompt = Annotated[str, Field(min_length=1)]

_MODEL = "Runway model to use."
_SEED = "Same seed, similar result."
_MODERATION = "Strictness of the recognition of public figures."
_SIZE = "Width and height in pixels, which the service may normalise."
_CAT = "https://upload.wikimedia.org/wikipedia/commons/3/3a/Cat03.jpg"
_TRAILER = "https://media.w3.org/2010/05/sintel/trailer.mp4"


class ImageToVideoRequest(GenerationRequest):
    """Video made from an image (CometAPI docs, Create a Runway image-to-video task)."""

    model_config = ConfigDict(json_schema_extra=limits_schema("image_to_video", "gen3a_turbo"))
    route: ClassVar[str] = "image_to_video"
    summary: ClassVar[str] = "Make a video from an image"
    arguments: ClassVar[tuple[str, ...]] = ("prompt_image", "prompt_text")

    prompt_image: PromptImage = Field(
        title="Image",
        description="Image to animate: a stable HTTPS URL, a base64 data URI, a path, an address "
        "of an object store (s3://, gs://, az://), or a file in a storage block "
        "(type-slug/name/file). For models that take them, a list of images with their positions.",
        examples=[_CAT],
    )
    model: Model = Field(default="gen3a_turbo", description=_MODEL)
    prompt_text: str | None = Field(
        default=None,
        title="Prompt",
        description="Description of the motion.",
        examples=["slow zoom, soft light"],
    )
    duration: Annotated[int, Field(ge=1, le=60)] | None = Field(
        default=None, description="Seconds of video.", examples=[5]
    )
    ratio: Ratio | None = Field(
        default=None,
        description=_SIZE,
        examples=["1280:768", "768:1280", "1280:720", "720:1280"],
    )
    seed: Seed | None = Field(default=None, description=_SEED)
    watermark: bool | None = Field(default=None, description="True to draw a watermark.")
    content_moderation: ContentModeration | None = Field(
        default=None, title="Content moderation", description=_MODERATION
    )


class VideoToVideoRequest(GenerationRequest):
    """Video restyled from another one (CometAPI docs, Create a Runway video-to-video task)."""

    model_config = ConfigDict(json_schema_extra=limits_schema("video_to_video", "gen4_aleph"))
    route: ClassVar[str] = "video_to_video"
    summary: ClassVar[str] = "Restyle a video"
    arguments: ClassVar[tuple[str, ...]] = ("video_uri", "prompt_text")

    video_uri: Source = Field(
        title="Video",
        description="Video to restyle: a stable HTTPS URL, a base64 data URI, a path, an address "
        "of an object store (s3://, gs://, az://), or a file in a storage block "
        "(type-slug/name/file).",
        examples=[_TRAILER],
    )
    prompt_text: Prompt | None = Field(
        default=None,
        title="Prompt",
        description="Description of the change.",
        examples=["Make the motion feel cinematic."],
    )
    model: Model = Field(default="gen4_aleph", description=_MODEL)
    references: list[Reference] | None = Field(
        default=None, description="Images that show the desired style."
    )
    ratio: Ratio | None = Field(
        default=None,
        description="Width and height as width:height. Known models follow their input instead.",
        examples=[_RATIO],
    )
    seed: Seed | None = Field(default=None, description=_SEED)
    content_moderation: ContentModeration | None = Field(
        default=None, title="Content moderation", description=_MODERATION
    )
    keyframes: list[Keyframe] | None = Field(
        default=None, description="Images that guide the change at points in time."
    )
    target_aspect_ratio: str | None = Field(
        default=None,
        title="Target aspect ratio",
        description="Aspect ratio to which the video is extended.",
    )

    @field_validator("keyframes")
    @classmethod
    def _limit_all_keyframes_or_none(cls, keyframes: list[Keyframe] | None) -> Any:
        if len({keyframe.range is None for keyframe in keyframes or ()}) > 1:
            raise ValueError("either all of them have a range, or none")
        return keyframes


class CharacterPerformanceRequest(GenerationRequest):
    """Video of a character that performs like a person (CometAPI docs, Control a character)."""

    model_config = ConfigDict(json_schema_extra=limits_schema("character_performance", "act_two"))
    route: ClassVar[str] = "character_performance"
    summary: ClassVar[str] = "Let a character perform like a person in a video"
    arguments: ClassVar[tuple[str, ...]] = ("character", "reference")

    character: Character = Field(
        title="Character",
        description="Image or video of the character, whose face is visible.",
        examples=[{"type": "image", "uri": _CAT}],
    )
    reference: Performance = Field(
        title="Performance",
        description="Video of the person who performs, of 3 to 30 seconds.",
        examples=[{"type": "video", "uri": _TRAILER}],
    )
    model: Model = Field(default="act_two", description=_MODEL)
    ratio: Ratio | None = Field(default=None, description=_SIZE, examples=[_RATIO])
    body_control: bool | None = Field(
        default=None,
        title="Body control",
        description="True to take over gestures, and not only the face.",
    )
    expression_intensity: int | None = Field(
        default=None,
        title="Expression intensity",
        description="Strength of the facial expression.",
    )
    seed: Seed | None = Field(default=None, description=_SEED)
    content_moderation: ContentModeration | None = Field(
        default=None, title="Content moderation", description=_MODERATION
    )


class TextToImageRequest(GenerationRequest):
    """Picture made from a text and images (CometAPI docs, Generate an image from text)."""

    model_config = ConfigDict(json_schema_extra=limits_schema("text_to_image", "gen4_image"))
    route: ClassVar[str] = "text_to_image"
    summary: ClassVar[str] = "Make a picture from a text and reference images"
    arguments: ClassVar[tuple[str, ...]] = ("prompt_text",)

    prompt_text: Prompt = Field(
        title="Prompt",
        description="Description of the picture. It may refer to an image by its tag, as @name.",
        examples=["@cat as a lighthouse keeper, oil painting"],
    )
    model: Model = Field(default="gen4_image", description=_MODEL)
    ratio: Ratio | None = Field(default=None, description=_SIZE, examples=["1920:1080", _RATIO])
    reference_images: list[TaggedImage] | None = Field(
        default=None,
        title="Reference images",
        description="Images that the picture is based on.",
        examples=[[{"uri": _CAT, "tag": "cat"}]],
    )
    seed: Seed | None = Field(default=None, description=_SEED)
    content_moderation: ContentModeration | None = Field(
        default=None, title="Content moderation", description=_MODERATION
    )


ROUTES: Mapping[str, type[GenerationRequest]] = {
    name: globals()[facts.request] for name, facts in model_table().routes.items()
}
"""Class of the requests of each route, in the order of the table."""


def route_of(fields: Mapping[Any, Any], named: str | None = None) -> str:
    """Return the route of a request, given by its fields in either spelling; pure.

    Several routes may be recognised by the same field. The model decides between them, or else the
    order of the table.

    Args:
        fields: Fields of the request.
        named: Name of the route, if it is given.

    Raises:
        ValueError: No such route exists, or the fields belong to none or to several.
    """
    if named is not None:
        route = named.strip().lower().replace("-", "_")
        if route not in ROUTES:
            raise ValueError(f"must be one of {', '.join(ROUTES)}")
        return route
    given = {to_camel(name) for name in fields if isinstance(name, str)}
    signs = {route: request.known_by() for route, request in ROUTES.items()}
    found = [route for route, sign in signs.items() if sign in given]
    several = len({signs[route] for route in found}) > 1
    if not found or several:
        choices = [
            f"{sign} ({route})" for route, sign in signs.items() if not found or route in found
        ]
        raise ValueError(
            f"has {' and '.join(choices)}; only one is allowed"
            if several
            else f"needs {' or '.join(choices)}"
        )
    model = known_models().get(str(fields.get("model")))
    return model.route if model and model.route in found else found[0]


def as_request(given: object) -> GenerationRequest:
    """Return a request, given as such or as its fields, of which one names the route or shows it.

    Raises:
        pydantic.ValidationError: The fields are not a valid request.
    """
    if isinstance(given, GenerationRequest):
        return given
    fields = dict(given) if isinstance(given, Mapping) else given
    if not isinstance(fields, dict):
        return ImageToVideoRequest.model_validate(fields)
    named = fields.pop("route", None)
    try:
        route = route_of(fields, None if named is None else str(named))
    except ValueError:
        route = ImageToVideoRequest.route  # whose validation names what is missing
    return ROUTES[route].model_validate(fields)


def _recognise(given: object) -> object:
    """Return a mapping as a request of its route; anything else is left to the union."""
    return as_request(given) if isinstance(given, Mapping) else given


if TYPE_CHECKING:
    AnyRequest = GenerationRequest
else:
    AnyRequest = Annotated[Union[tuple(ROUTES.values())], BeforeValidator(_recognise)]  # noqa: UP007
"""Type of a field that holds a request of any route."""
