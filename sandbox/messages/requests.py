# SPDX-License-Identifier: Apache-2.0
"""Requests that create a job, with the limits that the docs state.

Each model has a body of its own: the fields that models.json lists for it, with their limits taken
literally. CometAPI's page for image-to-video says 512 characters and seeds below 1,000,000,000,
although Runway itself allows more. Types are strict, and unknown fields and models are rejected,
because the purpose of a stand-in is to find the mistakes of a client.
"""

import math
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal, Union

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, create_model

from ..clips.render import Recipe
from .model_table import PICTURES, ROUTES, models_of

MAX_PIXELS = 1584 * 672
"""Pixels of the largest clip that is rendered; 9999:9999 would take minutes and gigabytes."""

MAX_PICTURE_PIXELS = 1920 * 1080
"""Pixels of the largest picture that is rendered."""

STANDARD_RATIO = "1280:720"
"""Size of a clip whose request does not set one."""

_WEB = r"https://[^/\x00-\x20\x7f-\xa0]|http://(127\.0\.0\.1|localhost|\[::1\])([:/]|$)"
"""Pattern of a URL. It avoids ``\\s``, which differs between JSON Schema and pydantic."""

ImageUri = Annotated[
    str,
    Field(
        pattern=rf"^({_WEB}|data:image/)",
        description="An https URL, a data URI of an image, or plain http on loopback.",
        examples=["https://example.com/cat.jpg"],
    ),
]
VideoUri = Annotated[
    str,
    Field(
        pattern=rf"^({_WEB}|data:video/)",
        description="An https URL, a data URI of a video, or plain http on loopback.",
        examples=["https://media.w3.org/2010/05/sintel/trailer.mp4"],
    ),
]


def _whole(given: Any) -> Any:
    """Convert 5.0 to 5, because JSON has only one type of number."""
    return int(given) if isinstance(given, float) and given.is_integer() else given


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Source(_Body):
    type: Literal["image"]
    uri: ImageUri


class Reference(_Source):
    """Picture that sets the style of the video."""


class PositionedImage(_Body):
    """Picture at a position of the video."""

    uri: ImageUri
    position: Literal["first", "last"]


class TaggedImage(_Body):
    """Picture that another one is based on."""

    uri: ImageUri
    tag: Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]{2,15}$", examples=["cat"])] = "image"


class Window(_Body):
    """Part of a video."""

    start_seconds: Annotated[int, Field(ge=0)]
    end_seconds: Annotated[int, Field(ge=0)]


class KeyframeInSeconds(_Body):
    """Picture that guides the change of a video, at a time."""

    uri: ImageUri
    seconds: Annotated[float, Field(ge=0)]
    range: Window | None = None


class KeyframeAtShare(_Body):
    """Picture that guides the change of a video, at a share of its length."""

    uri: ImageUri
    at: Annotated[float, Field(ge=0, le=1)]
    range: Window | None = None


class CharacterImage(_Source):
    """Picture of the character."""


class CharacterVideo(_Body):
    """Video of the character, or of the person who performs."""

    type: Literal["video"]
    uri: VideoUri


class ContentModeration(_Body):
    """Strictness with which public figures are recognised."""

    publicFigureThreshold: Literal["auto", "low"] = "auto"  # noqa: N815 - the wire's name


AnyRatio = Annotated[
    str,
    Field(
        pattern=r"^[1-9][0-9]{2,3}:[1-9][0-9]{2,3}$",
        description=(
            "Size of the stand-in if the video cannot be fetched, or its proportions if that is "
            "too large; otherwise the clip keeps the size of the video, as with Runway."
        ),
        examples=[STANDARD_RATIO],
    ),
]

_TYPES: dict[str, Any] = {
    "promptImage": ImageUri,
    "promptText": str,
    "videoUri": VideoUri,
    "watermark": bool,
    "duration": int,
    "ratio": AnyRatio,
    "seed": int,
    "references": list[Reference],
    "contentModeration": ContentModeration,
    "keyframes": list[KeyframeInSeconds | KeyframeAtShare],
    "targetAspectRatio": str,
    "character": Annotated[CharacterImage | CharacterVideo, Field(discriminator="type")],
    "reference": CharacterVideo,
    "bodyControl": bool,
    "expressionIntensity": int,
    "referenceImages": list[TaggedImage],
}
"""Type of each field. A simple one may be given in models.json."""

_SIMPLE: dict[str, Any] = {"text": str, "whole": int, "flag": bool}


def _type_of(name: str, limits: dict[str, Any]) -> Any:
    """Return the type of a field of a model, with its limits."""
    given = _TYPES.get(name) or _SIMPLE[limits["type"]]
    if values := limits.get("values"):
        return Annotated[Literal[tuple(values)], BeforeValidator(_whole)]
    rules: list[Any] = []
    if given is int:
        rules = [Field(ge=limits.get("min", 0), le=limits.get("max")), BeforeValidator(_whole)]
    elif given is str and name == "promptText":
        required = 1 if limits.get("unit") != "characters" else 0
        rules = [Field(min_length=required, max_length=limits.get("max_length"))]
        if limits.get("unit") != "characters" and "max_length" in limits:
            rules.append(AfterValidator(_counts_utf16(limits["max_length"])))
    elif "max_items" in limits:
        rules = [Field(min_length=limits.get("min_items"), max_length=limits["max_items"])]
    if positions := limits.get("positions"):
        image = _create_model(
            "PositionedImage",
            __base__=PositionedImage,
            position=(Literal[tuple(positions)], ...),
        )
        several = Annotated[list[image], Field(min_length=1, max_length=len(positions))]
        return Union[given, several]  # noqa: UP007 - made of values
    return Annotated[given, *rules] if rules else given


def _counts_utf16(longest: int) -> Callable[[str], str]:
    def check(text: str) -> str:
        units = len(text.encode("utf-16-be", "surrogatepass")) // 2
        if units > longest:
            raise ValueError(f"must have at most {longest} UTF-16 code units, but has {units}")
        return text

    return check


class JobBody(_Body):
    """Body of a POST that creates a job; its fields depend on its model."""

    route: ClassVar[str]

    model: str

    def recipe(self) -> Recipe:
        """Return the recipe of the clip or of the picture."""
        body = self.model_dump(exclude_unset=True)
        uri, is_video = _source_of(body)
        is_picture = self.route in PICTURES
        limit = MAX_PICTURE_PIXELS if is_picture else MAX_PIXELS
        width, height = _size(body.get("ratio", STANDARD_RATIO), limit)
        return Recipe(
            route=self.route,
            uri=uri,
            prompt=body.get("promptText", ""),
            seed=body.get("seed", 0),
            width=width,
            height=height,
            seconds=body.get("duration", 5),
            draws="picture" if is_picture else "video" if is_video else "camera",
        )


def _source_of(body: dict[str, Any]) -> tuple[str, bool]:
    """Return the URI of the source that is drawn, and whether it is a video."""
    if "videoUri" in body:
        return body["videoUri"], True
    if "character" in body:
        return body["character"]["uri"], body["character"]["type"] == "video"
    images = body["promptImage"] if "promptImage" in body else body["referenceImages"]
    return images if isinstance(images, str) else images[0]["uri"], False


def _size(ratio: str, limit: int) -> tuple[int, int]:
    """Return an even width and height, scaled down if larger than Runway's largest output."""
    width, height = map(int, ratio.split(":"))
    scale = min(1.0, math.sqrt(limit / (width * height)))
    return int(width * scale) // 2 * 2, int(height * scale) // 2 * 2


_create_model: Any = create_model  # whose types do not allow for fields that are data


def _without_default(schema: dict[str, Any]) -> None:
    """Remove the default from a JSON schema: a field may be absent, but not null."""
    schema.pop("default", None)


def _body_of(route: str, model: str, its: dict[str, Any]) -> type[JobBody]:
    """Return the class of the bodies of one model."""
    required = {name: (_type_of(name, its["fields"][name]), ...) for name in its["required"]}
    optional = {
        name: (_type_of(name, limits), Field(default=None, json_schema_extra=_without_default))
        for name, limits in its["fields"].items()
        if name not in its["required"]
    }
    name = "".join(word.capitalize() for word in model.replace(".", "_").split("_"))
    made = _create_model(
        f"{name}Body",
        __base__=JobBody,
        __doc__=f"Body of POST /runwayml/v1/{route} for {model}.",
        **required,
        model=(Literal[model], ...),
        **optional,
    )
    made.route = route
    return made


BODIES: dict[str, tuple[type[JobBody], ...]] = {
    route: tuple(_body_of(route, model, its) for model, its in models_of(route).items())
    for route in ROUTES
}
"""Bodies of each route, one for each of its models."""
