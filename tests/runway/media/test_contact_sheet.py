# SPDX-License-Identifier: Apache-2.0
"""Contact sheet of many posters."""

from io import BytesIO

import pytest
from PIL import Image

from prefect_cometapi.runway.media import decoder
from prefect_cometapi.runway.media.contact_sheet import (
    COLUMNS,
    GAP,
    TILE_HEIGHT,
    TILE_WIDTH,
)
from prefect_cometapi.runway.media.inspector import draw_contact_sheet

NAMES: dict[tuple[bool, ...], str] = {
    (True, False, False): "red",
    (False, True, False): "lime",
    (False, False, True): "blue",
}


def poster(colour: str, size: tuple[int, int] = (320, 180)) -> bytes:
    """Make a JPEG of one colour."""
    file = BytesIO()
    Image.new("RGB", size, colour).save(file, "JPEG")
    return file.getvalue()


def drawn(posters: list[bytes]) -> Image.Image:
    joined, sizes = BytesIO(b"".join(posters)), [len(poster) for poster in posters]
    return Image.open(BytesIO(decoder.draw_contact_sheet(joined, sizes))).convert("RGB")


def colour_at(sheet: Image.Image, number: int) -> str:
    """Return the colour in the middle of a tile."""
    column, row = number % COLUMNS, number // COLUMNS
    x = GAP + column * (TILE_WIDTH + GAP) + TILE_WIDTH // 2
    y = GAP + row * (TILE_HEIGHT + GAP) + TILE_HEIGHT // 2
    pixel = sheet.getpixel((x, y))
    assert isinstance(pixel, tuple)
    return NAMES.get(tuple(int(part) > 128 for part in pixel), "dark")


@pytest.mark.parametrize("count", [1, 5, 6, 7, 24])
def test_posters_lie_side_by_side_in_order(count):
    """A row has six posters."""
    colours = [["red", "lime", "blue"][number % 3] for number in range(count)]
    sheet = drawn([poster(colour) for colour in colours])
    assert [colour_at(sheet, number) for number in range(count)] == colours
    columns, rows = min(count, COLUMNS), -(-count // COLUMNS)
    assert sheet.size == (
        columns * (TILE_WIDTH + GAP) + GAP,
        rows * (TILE_HEIGHT + GAP) + GAP,
    )


@pytest.mark.parametrize("size", [(720, 1280), (1584, 672), (16, 16), (2, 500), (500, 2)])
def test_a_poster_of_any_shape_fits_into_its_tile(size):
    """Each poster is complete and centred in its tile."""
    sheet = drawn([poster("blue"), poster("red", size), poster("lime")])
    assert colour_at(sheet, 0) == "blue"
    assert colour_at(sheet, 2) == "lime"
    if min(size) > 8:
        assert colour_at(sheet, 1) == "red"


def test_a_poster_that_cannot_be_read_leaves_its_tile_dark():
    """The other posters are still shown."""
    sheet = drawn([poster("red"), b"no picture", b"", poster("blue")])
    assert [colour_at(sheet, number) for number in range(4)] == ["red", "dark", "dark", "blue"]


def test_gaps_and_unused_tiles_are_dark():
    """Tiles do not touch, and the last row may be incomplete."""
    sheet = drawn([poster("red")] * 8)
    assert [colour_at(sheet, number) for number in range(6, 12)] == ["red"] * 2 + ["dark"] * 4
    for x in range(0, sheet.width, TILE_WIDTH + GAP):
        pixel = sheet.getpixel((x, TILE_HEIGHT // 2))
        assert isinstance(pixel, tuple)
        assert max(pixel) < 64


def test_it_is_drawn_by_the_process_that_has_no_key():
    """A process with the API key does not open posters, which an attacker may have made."""
    posters = [poster("red"), b"no picture", poster("blue", (720, 1280))]
    sheet = Image.open(BytesIO(draw_contact_sheet(posters))).convert("RGB")
    assert sheet.tobytes() == drawn(posters).tobytes()
