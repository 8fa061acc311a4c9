# SPDX-License-Identifier: Apache-2.0
"""What a user runs: the flows, and the four tasks that they are made of.

A plain name is for sync code, its twin with an ``a`` for async code.
"""

from .generate import (
    afinish_generation,
    aimage_to_video,
    avideo_to_video,
    finish_generation,
    image_to_video,
    video_to_video,
)
from .tasks import (
    afetch_output,
    apersist_output,
    apoll_generation,
    asubmit_generation,
    fetch_output,
    persist_output,
    poll_generation,
    submit_generation,
)

__all__ = [
    "afetch_output",
    "afinish_generation",
    "aimage_to_video",
    "apersist_output",
    "apoll_generation",
    "asubmit_generation",
    "avideo_to_video",
    "fetch_output",
    "finish_generation",
    "image_to_video",
    "persist_output",
    "poll_generation",
    "submit_generation",
    "video_to_video",
]
