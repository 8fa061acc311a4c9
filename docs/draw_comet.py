# SPDX-License-Identifier: Apache-2.0
"""Draw deployments/comet.jpg, the picture that the demo animates: a comet over a lake.

Run it with ``python docs/draw_comet.py``; it needs Pillow, from the ``test`` extra.
"""

import math
import random
from pathlib import Path

from PIL import Image, ImageChops, ImageDraw, ImageFilter

WIDTH, HEIGHT, HORIZON = 1600, 960, 640
TARGET = Path(__file__).parent.parent / "deployments" / "commands" / "comet.jpg"


def blend(low: tuple[int, int, int], high: tuple[int, int, int], share: float) -> tuple[int, ...]:
    """Return a mixture of two colours."""
    return tuple(round(a + (b - a) * share) for a, b in zip(low, high, strict=True))


def sky() -> Image.Image:
    """Return a night sky with stars and the last light at the horizon."""
    picture = Image.new("RGB", (WIDTH, HEIGHT))
    draw = ImageDraw.Draw(picture)
    for y in range(HORIZON):
        share = (y / HORIZON) ** 1.6
        colour = blend((10, 14, 44), (64, 66, 130), min(1.0, share * 1.5))
        draw.line([(0, y), (WIDTH, y)], fill=blend(colour, (244, 150, 110), max(0, share - 0.45)))
    dice = random.Random(7)
    for _ in range(520):
        x, y = dice.uniform(0, WIDTH), HORIZON * dice.random() ** 1.7 * 0.95
        size, light = dice.choice([0.8, 0.8, 1.2, 1.9]), dice.randint(120, 255)
        draw.ellipse([x - size, y - size, x + size, y + size], fill=(light, light, 255))
    return picture


def comet() -> Image.Image:
    """Return a bright head with a curved, fading tail, to add to the sky."""
    glow = Image.new("RGB", (WIDTH, HEIGHT))
    draw = ImageDraw.Draw(glow)
    head = (1120, 190)
    for step in range(420, 0, -1):
        along = step / 420
        x = head[0] - 760 * along
        y = head[1] + 90 * along + 130 * along**2
        size = 5 + 62 * along
        draw.ellipse(
            [x - size, y - size * 0.62, x + size, y + size * 0.62],
            fill=blend((200, 226, 255), (0, 0, 0), along**0.5),
        )
    glow = glow.filter(ImageFilter.GaussianBlur(14))
    core = Image.new("RGB", (WIDTH, HEIGHT))
    paint = ImageDraw.Draw(core)
    for size, light in [(34, 90), (22, 160), (12, 255)]:
        paint.ellipse(
            [head[0] - size, head[1] - size, head[0] + size, head[1] + size],
            fill=(light, light, min(255, light + 20)),
        )
    return ImageChops.add(glow, core.filter(ImageFilter.GaussianBlur(7)))


def mountains(picture: Image.Image) -> None:
    """Return three ridges; nearer ones are darker."""
    draw = ImageDraw.Draw(picture)
    for layer, (height, colour) in enumerate(
        [(150, (70, 66, 112)), (110, (44, 42, 82)), (70, (22, 22, 48))]
    ):
        dice = random.Random(20 + layer)
        waves = [
            (dice.uniform(0.3, 1) / n, dice.uniform(0, 6.3), n) for n in (1, 2, 3, 5, 8, 13, 21)
        ]
        ridge = [
            (
                x,
                HORIZON
                - height
                * (
                    0.62
                    + 0.3
                    * sum(size * math.sin(turn + n * x * 5 / WIDTH) for size, turn, n in waves)
                ),
            )
            for x in range(0, WIDTH + 4, 4)
        ]
        draw.polygon([(0, HORIZON), *ridge, (WIDTH, HORIZON)], fill=colour)


def lake(picture: Image.Image) -> None:
    """Draw the reflection of the scene, darker and rippled."""
    above = picture.crop((0, 2 * HORIZON - HEIGHT, WIDTH, HORIZON))
    mirrored = above.transpose(Image.Transpose.FLIP_TOP_BOTTOM).filter(ImageFilter.GaussianBlur(2))
    mirrored = Image.blend(mirrored, Image.new("RGB", mirrored.size, (12, 18, 46)), 0.35)
    for y in range(mirrored.height):
        shift = round(3 * math.sin(y / 3.1) + 5 * math.sin(y / 9.7) * y / mirrored.height)
        row = mirrored.crop((0, y, WIDTH, y + 1))
        picture.paste(ImageChops.offset(row, shift, 0), (0, HORIZON + y))


def main() -> None:
    """Draw the picture and save it."""
    picture = sky()
    picture = ImageChops.add(picture, comet())
    mountains(picture)
    lake(picture)
    picture.resize((1280, 768), Image.Resampling.LANCZOS).save(TARGET, quality=86, optimize=True)


if __name__ == "__main__":
    main()
