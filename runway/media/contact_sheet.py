# SPDX-License-Identifier: Apache-2.0
"""Contact sheet: many posters in one picture.

The posters are decoded again for it, so decoder.py runs this file by its path, in its own process.
An attacker who had taken over that process could have made a poster that attacks any program that
opens it. This module imports nothing of the package.
"""

from collections.abc import Sequence
from io import BytesIO
from typing import Any

COLUMNS = 6
TILE_WIDTH = 192
TILE_HEIGHT = 108
GAP = 4
"""Pixels between tiles. TILE_WIDTH and TILE_HEIGHT are in pixels too; COLUMNS is the maximum number
of tiles in a row."""


def side_by_side(posters: Sequence[bytes]) -> Any:
    """Return a video frame in yuvj420p with the posters side by side, each fitted into a tile.

    Args:
        posters: JPEGs; at least one. The tile of an unreadable one stays dark.
    """
    import av

    columns = min(COLUMNS, len(posters))
    rows = -(-len(posters) // columns)
    width, height = columns * (TILE_WIDTH + GAP) + GAP, rows * (TILE_HEIGHT + GAP) + GAP
    sheet = bytearray(3 * width * height)
    for number, poster in enumerate(posters):
        left = GAP + (number % columns) * (TILE_WIDTH + GAP)
        top = GAP + (number // columns) * (TILE_HEIGHT + GAP)
        _paste(sheet, width, left, top, poster)
    picture = av.VideoFrame(width, height, "rgb24")
    plane = picture.planes[0]
    padding = bytes(plane.line_size - 3 * width)
    lines = (bytes(sheet[3 * width * line : 3 * width * (line + 1)]) for line in range(height))
    plane.update(b"".join(line + padding for line in lines))
    return picture.reformat(format="yuvj420p")


def _paste(sheet: bytearray, width: int, left: int, top: int, poster: bytes) -> None:
    import av
    from av.error import FFmpegError

    try:
        opened: Any = av.open(BytesIO(poster), format="mjpeg")
        with opened as container:
            frame = next(container.decode(video=0))
    except (FFmpegError, StopIteration, ValueError, MemoryError):
        return
    scale = min(TILE_WIDTH / frame.width, TILE_HEIGHT / frame.height)
    wide, high = max(2, int(frame.width * scale)), max(2, int(frame.height * scale))
    small = frame.reformat(width=wide, height=high, format="rgb24").planes[0]
    pixels, stride = bytes(small), small.line_size
    left += (TILE_WIDTH - wide) // 2
    top += (TILE_HEIGHT - high) // 2
    for line in range(high):
        start = 3 * ((top + line) * width + left)
        sheet[start : start + 3 * wide] = pixels[stride * line : stride * line + 3 * wide]
