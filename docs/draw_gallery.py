# SPDX-License-Identifier: Apache-2.0
"""Take docs/images/gallery.png: the gallery of a small batch, in a real browser.

Run it with ``python docs/draw_gallery.py [FOLDER]``; it needs Chromium and the ``test`` extra. The
clips are real: the sandbox renders them from lakes that are drawn here.
"""

import hashlib
import io
import math
import random
import shutil
import sys
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from PIL import Image, ImageChops, ImageDraw, ImageFilter
from playwright.sync_api import Browser, sync_playwright

from prefect_cometapi.flows.batch.gallery import NAME, gallery
from prefect_cometapi.runway.batch.models import ItemResult, Outcome
from prefect_cometapi.runway.media.inspector import examine_output
from prefect_cometapi.sandbox.clips.render import Recipe, render

IMAGES = Path(__file__).parent / "images"
COMET = Path(__file__).parent.parent / "deployments" / "commands" / "comet.jpg"
WIDTH, HEIGHT, HORIZON = 1280, 768, 500
SEED = 13
"""Seed of the camera's motion; with this one, the comet stays in the picture."""
WRITTEN = datetime(2026, 11, 21, 14, 3, tzinfo=UTC)

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Scene:
    """Lake at a time of day: colours from zenith to shore, and the position of sun or moon."""

    id: str
    prompt: str
    sky: tuple[Colour, Colour, Colour]
    shore: Colour
    light: Colour
    at: tuple[int, int, int]
    stars: int = 0


SCENES = (
    Scene(
        "lake-dawn",
        "First light over the lake, mist rises from the water, the camera glides forward.",
        ((88, 116, 170), (236, 170, 150), (255, 214, 170)),
        (92, 88, 120),
        (255, 240, 214),
        (860, 246, 30),
    ),
    Scene(
        "lake-noon",
        "High summer, a still lake, one slow pan from the left to the right.",
        ((58, 128, 196), (126, 182, 222), (214, 232, 238)),
        (44, 96, 104),
        (255, 253, 236),
        (930, 130, 40),
    ),
    Scene(
        "lake-evening",
        "The sun touches the ridge, long reflections, soft wind on the water.",
        ((70, 52, 110), (214, 92, 92), (255, 176, 98)),
        (74, 38, 66),
        (255, 226, 150),
        (860, 408, 62),
    ),
    Scene(
        "lake-moon",
        "A full moon above the hills, the camera holds still, only the water moves.",
        ((8, 14, 34), (22, 44, 80), (58, 92, 128)),
        (16, 28, 52),
        (232, 240, 255),
        (420, 170, 46),
        stars=260,
    ),
    Scene(
        "lake-storm",
        "Green light before the storm, clouds hurry over the lake.",
        ((40, 62, 66), (84, 118, 106), (190, 200, 160)),
        (30, 50, 50),
        (226, 232, 196),
        (760, 230, 30),
    ),
)

NOT_STORED = (
    ItemResult(
        id="lake-poster",
        outcome=Outcome.FAILED,
        idempotency_key="lakes/lake-poster",
        task_id="7c1f7a52-1f0e-4d0b-8f34-2f1f0b6f8d11",
        model="gen4_turbo",
        prompt="The lake as a film poster, with the name of a famous actor.",
        error="GenerationFailed",
        message="Runway refused the prompt (SAFETY.INPUT.TEXT).",
        waited=21.4,
        polls=4,
    ),
    ItemResult(
        id="lake-rain",
        outcome=Outcome.UNCERTAIN,
        idempotency_key="lakes/lake-rain",
        model="gen4_turbo",
        prompt="Rain on the lake, close to the surface, rings spread and fade.",
        error="SubmissionUncertain",
        message="The request was sent, and no answer came within 60 s.",
    ),
    ItemResult(
        id="lake-snow",
        outcome=Outcome.NOT_BOUGHT,
        idempotency_key="lakes/lake-snow",
        model="gen4_turbo",
        prompt="First snow, no wind, the far shore fades to white.",
        message="The batch may cost 30 s of video, and 30 s are spent.",
    ),
)


def blend(low: Colour, high: Colour, share: float) -> Colour:
    """Return a mixture of two colours."""
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(low, high, strict=True))
    return red, green, blue


def draw(scene: Scene) -> bytes:
    """Return the picture of a scene as JPEG."""
    picture = Image.new("RGB", (WIDTH, HEIGHT))
    pen = ImageDraw.Draw(picture)
    zenith, middle, low = scene.sky
    for y in range(HORIZON):
        share = 2 * y / HORIZON
        colour = blend(zenith, middle, share) if share < 1 else blend(middle, low, share - 1)
        pen.line([(0, y), (WIDTH, y)], fill=colour)
    dice = random.Random(scene.id)
    for _ in range(scene.stars):
        x, y, light = dice.uniform(0, WIDTH), HORIZON * dice.random() ** 1.5, dice.randint(90, 240)
        pen.ellipse([x - 1, y - 1, x + 1, y + 1], fill=(light, light, 255))
    picture = ImageChops.screen(picture, glow(scene))
    ridges(picture, scene, dice)
    mirror(picture, scene)
    data = io.BytesIO()
    picture.save(data, "JPEG", quality=88)
    return data.getvalue()


def glow(scene: Scene) -> Image.Image:
    """Return sun or moon with its halo, to add to the sky."""
    x, y, size = scene.at
    halo = Image.new("RGB", (WIDTH, HEIGHT))
    pen = ImageDraw.Draw(halo)
    for part, light in ((4.5, 0.16), (2.6, 0.22), (1.6, 0.34)):
        box = [x - part * size, y - part * size, x + part * size, y + part * size]
        pen.ellipse(box, fill=blend((0, 0, 0), scene.light, light))
    halo = halo.filter(ImageFilter.GaussianBlur(size * 0.9))
    ImageDraw.Draw(halo).ellipse([x - size, y - size, x + size, y + size], fill=scene.light)
    return halo.filter(ImageFilter.GaussianBlur(1.6))


def ridges(picture: Image.Image, scene: Scene, dice: random.Random) -> None:
    """Return four ridges; nearer ones are darker."""
    pen = ImageDraw.Draw(picture)
    for layer in range(4):
        height = 190 - 44 * layer
        colour = blend(blend(scene.sky[2], scene.shore, 0.45), scene.shore, layer / 3)
        waves = [(dice.uniform(0.3, 1) / n, dice.uniform(0, 6.3), n) for n in (1, 2, 3, 5, 8, 13)]
        ridge = []
        for x in range(0, WIDTH + 4, 4):
            wave = sum(size * math.sin(turn + n * x * 5 / WIDTH) for size, turn, n in waves)
            ridge.append((x, HORIZON - height * (0.6 + 0.28 * wave)))
        pen.polygon([(0, HORIZON), *ridge, (WIDTH, HORIZON)], fill=colour)


def mirror(picture: Image.Image, scene: Scene) -> None:
    """Draw the reflection of the scene in the water, darker and rippled."""
    above = picture.crop((0, 2 * HORIZON - HEIGHT, WIDTH, HORIZON))
    water = above.transpose(Image.Transpose.FLIP_TOP_BOTTOM).filter(ImageFilter.GaussianBlur(2))
    water = Image.blend(water, Image.new("RGB", water.size, scene.sky[0]), 0.3)
    for y in range(water.height):
        shift = round(3 * math.sin(y / 2.7) + 6 * math.sin(y / 8.3) * y / water.height)
        row = water.crop((0, y, WIDTH, y + 1))
        picture.paste(ImageChops.offset(row, shift, 0), (0, HORIZON + y))


def make_clip(folder: Path, at: int, item: str, prompt: str, picture: bytes) -> ItemResult:
    """Render one video and its poster into the folder, and return its result."""
    video, poster = folder / f"{item}.mp4", folder / f"{item}.jpg"
    recipe = Recipe("image_to_video", item, prompt, SEED, WIDTH, HEIGHT, 5)
    video.write_bytes(render(recipe, picture))
    info, picture = examine_output(video, "video")
    poster.write_bytes(picture)
    return ItemResult(
        id=item,
        outcome=Outcome.STORED,
        idempotency_key=f"lakes/{item}",
        task_id=f"3d957031-9a2a-45e2-9dc7-{at:012d}",
        route="image_to_video",
        model="gen4_turbo",
        prompt=prompt,
        uri=str(video),
        poster=str(poster),
        sha256=hashlib.sha256(video.read_bytes()).hexdigest(),
        size=video.stat().st_size,
        width=info.width,
        height=info.height,
        duration=info.duration,
        billed_seconds=5,
        submitted_at=WRITTEN - timedelta(minutes=9 - at),
        waited=48.2 + 7.3 * at,
        polls=9 + at,
    )


def make_gallery(folder: Path) -> Path:
    """Write videos, posters and the page into the folder; return the path of the page."""
    words = "The comet drifts over the lake, slow zoom."
    pictures = [("lake-comet", words, COMET.read_bytes())]
    pictures += [(scene.id, scene.prompt, draw(scene)) for scene in SCENES]
    clips = [make_clip(folder, at, *each) for at, each in enumerate(pictures)]
    failed, uncertain, left = NOT_STORED
    results = [*clips[:3], failed, *clips[3:5], uncertain, clips[5], left]
    page = folder / NAME
    text = gallery(results, title="Lakes, November", base=str(folder), written_at=WRITTEN)
    page.write_text(text, encoding="utf-8")
    return page


def take(browser: Browser, images: Path) -> None:
    """Take a picture of the upper part of the page, once every poster is loaded."""
    with tempfile.TemporaryDirectory() as folder:
        page = browser.new_page(viewport={"width": 1360, "height": 1080})
        page.goto(make_gallery(Path(folder)).as_uri())
        for poster in page.locator("img").all()[:4]:
            poster.evaluate("image => image.decode()")
        page.screenshot(path=images / "gallery.png")
        page.close()


def main() -> None:
    """Take the picture."""
    images = Path(sys.argv[1]) if len(sys.argv) > 1 else IMAGES
    images.mkdir(exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        take(browser, images)
        browser.close()


if __name__ == "__main__":
    main()
