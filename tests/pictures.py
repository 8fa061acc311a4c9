# SPDX-License-Identifier: Apache-2.0
"""Images for tests: small ones of every format, and large ones that no compression makes small."""

import io
import random
from typing import Any

from PIL import Image


def picture(kind: str = "PNG", width: int = 64, height: int = 48, **options: Any) -> bytes:
    """Return an image with a gradient."""
    content = io.BytesIO()
    Image.linear_gradient("L").resize((width, height)).convert("RGB").save(content, kind, **options)
    return content.getvalue()


def animation(kind: str) -> bytes:
    """Return an image of two frames."""
    first, second = (Image.new("RGB", (64, 48), colour) for colour in ("red", "blue"))
    content = io.BytesIO()
    first.save(content, kind, save_all=True, append_images=[second])
    return content.getvalue()


def noise(size: int) -> bytes:
    """Return a PNG of about a size in bytes, which noise makes incompressible."""
    side = int((size / 3) ** 0.5)
    pixels = random.Random(7).randbytes(side * side * 3)
    content = io.BytesIO()
    Image.frombytes("RGB", (side, side), pixels).save(content, "PNG", compress_level=0)
    return content.getvalue()
