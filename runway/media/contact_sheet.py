# SPDX-License-Identifier: Apache-2.0
"""Many posters as one picture.

They are decoded once more for it, so decoder.py runs this by its path, in its own process: who took
that over could have made a picture that breaks whoever opens it. It imports nothing of the package.
"""

from collections.abc import Sequence
from io import BytesIO
from typing import Any

COLUMNS = 6
TILE_WIDTH = 192
TILE_HEIGHT = 108
GAP = 4
"""Pixels, all of them; COLUMNS are the most tiles in a row."""


def side_by_side(posters: Sequence[bytes]) -> Any:
    """A video frame in yuvj420p with the posters side by side, each fitted into a tile.

    Args:
        posters: JPEGs; at least one. One that cannot be read leaves its tile dark.
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
