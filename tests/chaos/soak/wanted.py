# SPDX-License-Identifier: Apache-2.0
"""Requests whose source is named after the key that they are bought for."""

from typing import Any
from urllib.parse import quote


def image_request(pictures: str, key: str) -> dict[str, Any]:
    """Return a request to animate the picture of a key."""
    return {"promptImage": f"{pictures}/{quote(key, safe='')}.jpg", "promptText": "slow zoom"}


def video_request(videos: str, key: str) -> dict[str, Any]:
    """Return a request to restyle the video of a key."""
    return {"videoUri": f"{videos}/{quote(key, safe='')}.mp4", "promptText": "a warm dawn"}


def rows(pictures: str, key: str, how_many: int) -> list[dict[str, Any]]:
    """Return the rows of a batch."""
    ids = [f"row-{number}" for number in range(how_many)]
    return [{"id": id_} | image_request(pictures, f"{key}/{id_}") for id_ in ids]
