# SPDX-License-Identifier: Apache-2.0
"""Contact sheet: many posters in one picture.

The posters are decoded again for it, so decoder.py runs this file by its path, in its own process.
An attacker who had taken over that process could have made a poster that attacks any program that
opens it. This module imports nothing of the package.
"""

from collections.abc import Sequence
from fractions import Fraction
from io import BytesIO
from typing import Any

import av
from av.error import FFmpegError
from av.filter import Graph

COLUMNS = 6
TILE_WIDTH = 192
TILE_HEIGHT = 108
GAP = 4
"""Pixels between tiles. TILE_WIDTH and TILE_HEIGHT are in pixels too; COLUMNS is the maximum number
of tiles in a row."""


def compose(posters: Sequence[bytes]) -> Any:
    """Return a video frame in yuvj420p with the posters side by side, each fitted into a tile.

    Args:
        posters: JPEGs; at least one. The tile of an unreadable one stays dark.
    """
    columns = min(COLUMNS, len(posters))
    rows = -(-len(posters) // columns)
    tile = ("tile", f"{columns}x{rows}:margin={GAP}:padding={GAP}:color=black")
    return _filtered([_tile(poster) for poster in posters], tile).reformat(format="yuvj420p")


def _tile(poster: bytes) -> Any:
    """Return a tile in rgb24 with the poster in its centre, or a dark one."""
    try:
        opened: Any = av.open(BytesIO(poster), format="mjpeg")
        with opened as container:
            frame = next(container.decode(video=0))
        scale = min(TILE_WIDTH / frame.width, TILE_HEIGHT / frame.height)
        width, height = max(2, int(frame.width * scale)), max(2, int(frame.height * scale))
        small = frame.reformat(width=width, height=height, format="rgb24")
        centred = f"{(TILE_WIDTH - width) // 2}:{(TILE_HEIGHT - height) // 2}"
        return _filtered([small], ("pad", f"{TILE_WIDTH}:{TILE_HEIGHT}:{centred}:color=black"))
    except (FFmpegError, StopIteration, ValueError, MemoryError):
        return _dark_tile()


def _dark_tile() -> Any:
    frame = av.VideoFrame(TILE_WIDTH, TILE_HEIGHT, "rgb24")
    frame.planes[0].update(bytes(frame.planes[0].buffer_size))
    return frame


def _filtered(frames: Sequence[Any], filter_: tuple[str, str]) -> Any:
    """Return the first frame that a filter of FFmpeg makes of frames of one size and format."""
    graph = Graph()
    graph.threads = 1
    first = frames[0]
    source = graph.add_buffer(
        width=first.width, height=first.height, format=first.format, time_base=Fraction(1, 1)
    )
    graph.link_nodes(source, graph.add(*filter_), graph.add("buffersink")).configure()
    for number, frame in enumerate(frames):
        frame.pts, frame.time_base = number, Fraction(1, 1)
        source.push(frame)
    source.push(None)
    return graph.vpull()
