# SPDX-License-Identifier: Apache-2.0
"""Requests that create a job, with the limits that CometAPI's docs state.

Only the documented model of each route is accepted, and its limits are taken literally. CometAPI's
page for image-to-video says 512 characters and seeds below 1,000,000,000, although Runway itself
allows more. Types are strict and unknown fields are rejected, because the purpose of a stand-in is
to find the mistakes of a client.
"""

import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from ..clips.render import Recipe

Ratio = Literal[
    "1280:720",
    "720:1280",
    "1104:832",
    "832:1104",
    "960:960",
    "1584:672",
    "1280:768",
    "768:1280",
]

MAX_PIXELS = 1584 * 672
"""Pixels of the largest clip that is rendered; 9999:9999 would take minutes and gigabytes."""

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


class ImageToVideoBody(_Body):
    """Body of POST /runwayml/v1/image_to_video."""

    promptImage: ImageUri  # noqa: N815 - the wire's name
    model: Literal["gen3a_turbo"]
    promptText: Annotated[str, Field(max_length=512, examples=["slow zoom"])] = ""  # noqa: N815
    seed: Annotated[
        int,
        Field(ge=0, le=999_999_999, description="Without a seed, the sandbox draws as with 0."),
        BeforeValidator(_whole),
    ] = 0
    watermark: bool = False
    duration: Annotated[Literal[5, 10], Field(description="Seconds.")] = 5
    ratio: Annotated[Ratio, Field(description="Width and height of the clip in pixels.")] = (
        "1280:720"
    )

    def recipe(self) -> Recipe:
        """Return the recipe of the clip."""
        width, height = _size(self.ratio)
        return Recipe(
            route="image_to_video",
            uri=self.promptImage,
            prompt=self.promptText,
            seed=self.seed,
            width=width,
            height=height,
            seconds=self.duration,
        )


class Reference(_Body):
    """Picture that sets the style of the video."""

    type: Literal["image"]
    uri: ImageUri


class ContentModeration(_Body):
    """Strictness with which public figures are recognised."""

    publicFigureThreshold: Literal["auto", "low"] = "auto"  # noqa: N815 - the wire's name


class VideoToVideoBody(_Body):
    """Body of POST /runwayml/v1/video_to_video."""

    videoUri: VideoUri  # noqa: N815 - the wire's name
    model: Literal["gen4_aleph"]
    promptText: Annotated[  # noqa: N815 - the wire's name
        str, Field(min_length=1, max_length=1000, examples=["Make the motion feel cinematic."])
    ]
    seed: Annotated[
        int,
        Field(ge=0, le=4_294_967_295, description="Without a seed, the sandbox draws as with 0."),
        BeforeValidator(_whole),
    ] = 0
    references: Annotated[list[Reference], Field(max_length=1)] = []
    ratio: Annotated[
        str,
        Field(
            pattern=r"^[1-9][0-9]{2,3}:[1-9][0-9]{2,3}$",
            description=(
                "Size of the stand-in if the video cannot be fetched, or its proportions if "
                "that is too large; otherwise the clip keeps the size of the video, as with Runway."
            ),
            examples=["1280:720"],
        ),
    ] = "1280:720"
    contentModeration: ContentModeration = ContentModeration()  # noqa: N815 - the wire's name

    def recipe(self) -> Recipe:
        """Return the recipe of the clip."""
        width, height = _size(self.ratio)
        return Recipe(
            route="video_to_video",
            uri=self.videoUri,
            prompt=self.promptText,
            seed=self.seed,
            width=width,
            height=height,
            seconds=5,
        )


def _size(ratio: str) -> tuple[int, int]:
    """Return an even width and height, scaled down if larger than Runway's largest clip."""
    width, height = map(int, ratio.split(":"))
    scale = min(1.0, math.sqrt(MAX_PIXELS / (width * height)))
    return int(width * scale) // 2 * 2, int(height * scale) // 2 * 2
