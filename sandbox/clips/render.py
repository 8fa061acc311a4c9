# SPDX-License-Identifier: Apache-2.0
"""Renderer of the clips: H.264 in an MP4 that players can start before all of it has arrived.

FFmpeg's filters do all the work through PyAV, so neither NumPy nor Pillow is needed. On two slow
cores, five seconds at 1280x720 take well under a second. The picture of a clip depends on its
recipe alone: the same recipe gives the same picture.

- For an image, the camera pans and zooms. The image is drawn at twice the size first, so that the
  camera moves by half pixels and does not jitter.
- A video keeps its size and its length (up to ten seconds) and gets other colours: hue, gamma and a
  tint. The tint also shows on black-and-white material.
- A picture is the image in other colours, as a PNG of the requested size.
- Without a source, a gradient is drawn with colours that depend on the address of the source.
"""

import hashlib
import io
import math
import random
import tempfile
from collections.abc import Iterator
from colorsys import hsv_to_rgb
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice, pairwise
from pathlib import Path
from typing import Literal

import av
from av.error import FFmpegError
from av.filter import Graph
from av.filter.context import FilterContext
from av.video.frame import VideoFrame

from .sources import InvalidSourceError

FRAMES_PER_SECOND = 24
LONGEST_VIDEO = 10
STAND_IN_SECONDS = 5
ENCODER = {"preset": "ultrafast", "crf": "25", "threads": "2"}

IMAGES = {"format_whitelist": "png_pipe,jpeg_pipe,webp_pipe"}
VIDEOS = {"format_whitelist": "mov,matroska,webm,avi,mpegts,ogg"}
"""Formats that are read as an image or as a video.

Playlists are in neither list, because they make FFmpeg open other files.
"""

Filter = tuple[str, str]


@dataclass(frozen=True)
class Recipe:
    """Complete description of a clip's picture.

    Attributes:
        route: Route of the request.
        uri: Address of the source; a stand-in derives its colours from it.
        prompt: Prompt of the request; it varies the camera movement or the colours.
        seed: Number that makes one clip of a source differ from the next.
        width: Pixels. A video that could be read keeps its own width.
        height: Pixels. A video that could be read keeps its own height.
        seconds: Length of a clip made from an image.
        draws: What is drawn: a camera movement over an image, a video in other colours, or a
            picture. By default the route decides between the first two.
    """

    route: str
    uri: str
    prompt: str
    seed: int
    width: int
    height: int
    seconds: int
    draws: Literal["camera", "video", "picture"] | None = None

    def dice(self) -> random.Random:
        """Return a random generator that depends on the seed and the prompt alone."""
        return random.Random(f"{self.seed}:{self.prompt}")  # noqa: S311 - drawing, no secrets


def render(recipe: Recipe, source: bytes | None) -> bytes:
    """Return the finished MP4, or the finished PNG of a picture.

    Raises:
        InvalidSourceError: FFmpeg cannot read `source` as a picture or a video.
    """
    draws = recipe.draws or ("video" if recipe.route == "video_to_video" else "camera")
    if draws == "picture":
        return _render_picture(recipe, source)
    if draws == "camera":
        return _encode(_camera(recipe, source), recipe.width, recipe.height)
    return _render_video(recipe, source)


def _render_picture(recipe: Recipe, source: bytes | None) -> bytes:
    picture = _first_frame(source) if source is not None else _drawn_frame(recipe)
    picture.pts, picture.time_base = 0, Fraction(1, FRAMES_PER_SECOND)
    size = f"{recipe.width}:{recipe.height}"
    filters = [
        ("scale", f"{size}:force_original_aspect_ratio=increase"),
        ("crop", size),
        *grading_filters(recipe),
    ]
    frame = next(_through(iter([picture]), filters)).reformat(format="rgb24")
    encoder = av.VideoCodecContext.create("png", "w")
    encoder.width, encoder.height, encoder.pix_fmt = frame.width, frame.height, "rgb24"
    encoder.time_base = Fraction(1, FRAMES_PER_SECOND)
    return b"".join(bytes(packet) for packet in [*encoder.encode(frame), *encoder.encode(None)])


def _camera(recipe: Recipe, source: bytes | None) -> Iterator[VideoFrame]:
    picture = _first_frame(source) if source is not None else _drawn_frame(recipe)
    picture.pts, picture.time_base = 0, Fraction(1, FRAMES_PER_SECOND)
    frames = recipe.seconds * FRAMES_PER_SECOND
    return islice(_through(iter([picture]), camera_filters(recipe, frames)), frames)


def camera_filters(recipe: Recipe, frames: int) -> list[Filter]:
    """Return filters that move the camera over a picture, eased, from one framing to another."""
    dice = recipe.dice()
    angle = dice.uniform(0, 2 * math.pi)
    near, far = dice.uniform(1.30, 1.45), dice.uniform(1.05, 1.12)
    start, end = (far, near) if dice.random() < 0.7 else (near, far)
    time = f"(on/{frames - 1})"
    eased = f"({time}*{time}*(3-2*{time}))"
    size = f"{2 * recipe.width}:{2 * recipe.height}"
    way = (
        f"z={start:.4f}+{end - start:.4f}*{eased}"
        f":x=(iw-iw/zoom)*(0.5+{math.cos(angle) / 2:.4f}*(2*{eased}-1))"
        f":y=(ih-ih/zoom)*(0.5+{math.sin(angle) / 2:.4f}*(2*{eased}-1))"
        f":d={frames}:s={recipe.width}x{recipe.height}:fps={FRAMES_PER_SECOND}"
    )
    return [
        ("scale", f"{size}:force_original_aspect_ratio=increase:flags=bilinear"),
        ("crop", size),
        ("setsar", "1"),
        ("format", "yuv420p"),
        ("zoompan", way),
    ]


def _render_video(recipe: Recipe, source: bytes | None) -> bytes:
    if source is None:
        width, height, frames = recipe.width, recipe.height, _drawn_clip(recipe)
        return _encode(_through(frames, grading_filters(recipe)), width, height)
    try:
        with av.open(io.BytesIO(source), "r", options=VIDEOS) as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 2
            width, height = _even(stream.width), _even(stream.height)
            frames = _from_zero(container.decode(stream))
            graded = _through(frames, [("scale", f"{width}:{height}"), *grading_filters(recipe)])
            return _encode(islice(graded, LONGEST_VIDEO * FRAMES_PER_SECOND), width, height)
    except (FFmpegError, IndexError, ValueError) as error:
        raise InvalidSourceError("The video could not be decoded.") from error


def grading_filters(recipe: Recipe) -> list[Filter]:
    """Return filters that change the colours of a video enough to be seen."""
    dice = recipe.dice()
    hue, saturation = dice.uniform(40, 320), dice.uniform(1.1, 1.6)
    gamma, tint = dice.choice([0.75, 0.85, 1.2, 1.35]), dice.uniform(0, 2 * math.pi)
    blue, red = 18 * math.cos(tint), 18 * math.sin(tint)
    return [
        ("fps", str(FRAMES_PER_SECOND)),
        ("setsar", "1"),
        ("format", "yuv420p"),
        ("hue", f"h={hue:.2f}:s={saturation:.3f}"),
        ("lutyuv", f"y=gammaval({gamma}):u=clipval{blue:+.1f}:v=clipval{red:+.1f}"),
    ]


def _drawn_frame(recipe: Recipe) -> VideoFrame:
    return next(_gradient(recipe))


def _drawn_clip(recipe: Recipe) -> Iterator[VideoFrame]:
    return islice(_gradient(recipe), STAND_IN_SECONDS * FRAMES_PER_SECOND)


def _gradient(recipe: Recipe) -> Iterator[VideoFrame]:
    """Draw a moving gradient; the hash of the source's address picks its colours and pattern.

    It is drawn at a quarter of the size, because it is soft anyway and the filter is slow.
    """
    digest = hashlib.sha256(recipe.uri.encode()).digest()
    width, height = recipe.width // 4, recipe.height // 4
    pattern, (x, y) = _PATTERNS[digest[8] % len(_PATTERNS)]
    colours = ":".join(f"c{n}=0x{colour}" for n, colour in enumerate(_palette(digest)))
    drawing = (
        f"size={width}x{height}:rate={FRAMES_PER_SECOND}:nb_colors=4:{colours}:type={pattern}"
        f":x0={int(width * x)}:y0={int(height * y)}:x1={width - 1}:y1={height - 1}:speed=0.01"
    )
    return _source(
        [
            ("gradients", drawing),
            ("format", "yuv444p"),
            ("scale", f"{recipe.width}:{recipe.height}:flags=bicubic"),
        ]
    )


_PATTERNS = (("spiral", (0.5, 0.5)), ("radial", (0.35, 0.6)), ("linear", (0.0, 0.0)))


def _palette(digest: bytes) -> list[str]:
    """Return four matching colours: neighbours on the colour wheel, some dark and some light."""
    hue = digest[0] / 256
    step = 0.06 + digest[1] / 256 * 0.1
    return [
        bytes(round(255 * part) for part in hsv_to_rgb((hue + n * step) % 1, 0.7, shade)).hex()
        for n, shade in enumerate((0.25, 0.95, 0.55, 0.85))
    ]


def _first_frame(source: bytes) -> VideoFrame:
    try:
        with av.open(io.BytesIO(source), "r", options=IMAGES) as container:
            return next(container.decode(video=0))
    except (FFmpegError, StopIteration, IndexError, ValueError) as error:
        raise InvalidSourceError("The image could not be decoded.") from error


def _from_zero(frames: Iterator[VideoFrame]) -> Iterator[VideoFrame]:
    """Yield the frames with times that start at zero; many files start later."""
    first: int | None = None
    for frame in frames:
        if frame.pts is None:
            continue
        first = frame.pts if first is None else first
        frame.pts -= first
        yield frame


def _through(frames: Iterator[VideoFrame], filters: list[Filter]) -> Iterator[VideoFrame]:
    """Push `frames` through a chain of filters and yield its output."""
    first = next(frames)
    graph = _new_graph()
    source = graph.add_buffer(
        width=first.width,
        height=first.height,
        format=first.format,
        time_base=first.time_base,
    )
    _link(graph, [source, *(graph.add(name, arguments) for name, arguments in filters)])
    source.push(first)
    yield from _pulled(graph)
    for frame in frames:
        source.push(frame)
        yield from _pulled(graph)
    source.push(None)
    yield from _pulled(graph)


def _source(filters: list[Filter]) -> Iterator[VideoFrame]:
    """Yield the frames that a chain of filters without an input draws."""
    graph = _new_graph()
    _link(graph, [graph.add(name, arguments) for name, arguments in filters])
    return _pulled(graph)


def _new_graph() -> Graph:
    graph = Graph()
    graph.threads = 2
    return graph


def _link(graph: Graph, chain: list[FilterContext]) -> None:
    chain = [*chain, graph.add("buffersink")]
    for one, following in pairwise(chain):
        one.link_to(following)
    graph.configure()


def _pulled(graph: Graph) -> Iterator[VideoFrame]:
    while True:
        try:
            yield graph.vpull()
        except (BlockingIOError, EOFError):
            return


def _encode(frames: Iterator[VideoFrame], width: int, height: int) -> bytes:
    """Encode frames as H.264 in an MP4 with its index at the front.

    FFmpeg can move the index to the front only in a real file.
    """
    with tempfile.TemporaryDirectory(prefix="cometapi-sandbox-") as folder:
        file = Path(folder) / "clip.mp4"
        with av.open(str(file), "w", format="mp4", options={"movflags": "+faststart"}) as clip:
            stream = clip.add_stream("libx264", rate=FRAMES_PER_SECOND, options=ENCODER)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            time_base = Fraction(1, FRAMES_PER_SECOND)
            for number, frame in enumerate(frames):
                frame.pts, frame.time_base = number, time_base
                clip.mux(stream.encode(frame))
            clip.mux(stream.encode(None))
        return file.read_bytes()


def _even(pixels: int) -> int:
    """Round a size down to an even number, because H.264 in yuv420p has no odd sizes."""
    return max(2, pixels - pixels % 2)
