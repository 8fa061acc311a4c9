# SPDX-License-Identifier: Apache-2.0
"""Whether a file is a whole video, and a picture of it.

A header is not enough: an MP4 with its index in front still tells its full duration after 95 % of
it was cut away. So the file is demuxed to its last packet, which costs milliseconds, and what is
really there is held against what the header promises. Only the two containers that Runway
delivers are opened, from the file alone, so a playlist in disguise reaches no network.
"""

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from .errors import InvalidOutput

POSTER_WIDTH = 640
"""Pixels."""

COMPLETE = 0.98
"""Share of the promised duration that must be there; the last frame's own length may be missing."""


@dataclass(frozen=True)
class VideoInfo:
    """What a video is: width and height in pixels, duration in seconds."""

    width: int
    height: int
    duration: float
    frames: int
    codec: str


def inspect_video(path: Path) -> VideoInfo:
    """Demux a video to its end and describe it.

    Raises:
        InvalidOutput: It is no MP4, MOV or WebM, has no video, or is not whole.
    """
    from av.error import FFmpegError

    try:
        with _open(path) as container:
            if not container.streams.video:
                raise InvalidOutput("the output holds no video")
            stream = container.streams.video[0]
            if stream.codec_context is None:
                raise InvalidOutput("the output is a video of no known codec")
            ends, frames, corrupt = {stream.index: 0.0}, 0, False
            for packet in container.demux():
                corrupt = corrupt or packet.is_corrupt
                if packet.pts is None or not packet.size or packet.time_base is None:
                    continue
                end = float((packet.pts + (packet.duration or 0)) * packet.time_base)
                index = packet.stream_index
                ends[index] = max(ends.get(index, 0.0), end)
                frames += index == stream.index
            info = VideoInfo(
                width=stream.width,
                height=stream.height,
                duration=round(ends[stream.index], 3),
                frames=frames,
                codec=stream.codec_context.name,
            )
            arrived, promised = _arrived_and_promised(ends, container, stream)
    except (FFmpegError, ValueError, EOFError) as error:
        raise InvalidOutput(f"the output is no readable video: {_reason(error)}") from None
    if corrupt or not frames or arrived < COMPLETE * promised:
        raise InvalidOutput(f"the output is cut off: {arrived:g} s of {promised:g} s are there")
    if not (info.width and info.height):
        raise InvalidOutput("the output's frames have no size")
    return info


def draw_poster(video: Path, poster: Path, width: int = POSTER_WIDTH) -> None:
    """Write a frame from the middle of a video as a JPEG of the given width in pixels.

    Raises:
        InvalidOutput: No frame can be decoded.
    """
    from av.error import FFmpegError

    try:
        with _open(video) as container:
            stream = container.streams.video[0]
            if stream.codec_context:
                stream.codec_context.thread_count = 1  # for one frame, more are but a loss
            if container.duration:
                container.seek(container.duration // 2)
            frame = next(container.decode(stream))
        height = max(2, round(frame.height * width / frame.width / 2) * 2)
        data = as_jpeg(frame.reformat(width=width, height=height, format="yuvj420p", threads=1))
    except (FFmpegError, StopIteration, ValueError) as error:
        raise InvalidOutput(f"no frame of the output can be decoded: {_reason(error)}") from None
    poster.write_bytes(data)


def as_jpeg(picture: Any) -> bytes:
    """A video frame in yuvj420p as a JPEG."""
    import av

    encoder: Any = av.CodecContext.create("mjpeg", "w")
    encoder.width, encoder.height, encoder.pix_fmt = picture.width, picture.height, "yuvj420p"
    encoder.time_base = Fraction(1, 25)
    encoder.thread_count = 1
    encoder.options = {"qmin": "3", "qmax": "5"}
    picture.pts, picture.time_base = 0, encoder.time_base
    return b"".join(bytes(packet) for packet in [*encoder.encode(picture), *encoder.encode()])


def _open(path: Path) -> Any:
    import av

    return av.open(str(path), format=_container(path), options={"protocol_whitelist": "file"})


def _container(path: Path) -> str:
    with path.open("rb") as file:
        head = file.read(12)
    if head[4:8] == b"ftyp":
        return "mp4"
    if head.startswith(b"\x1aE\xdf\xa3"):
        return "matroska"
    raise InvalidOutput(f"the output is no MP4 or WebM; it begins with {head!r}")


def _arrived_and_promised(
    ends: dict[int, float], container: Any, stream: Any
) -> tuple[float, float]:
    """Seconds that are there and seconds that the header promises, of the same thing.

    An MP4 tells the duration of each stream, a WebM only that of the whole file.
    """
    if stream.duration and stream.time_base:
        return ends[stream.index], float(stream.duration * stream.time_base)
    return max(ends.values()), container.duration / 1_000_000 if container.duration else 0.0


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
