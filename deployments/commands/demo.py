# SPDX-License-Identifier: Apache-2.0
"""Command ``prefect-cometapi demo``: two videos from a local sandbox."""

import os
from pathlib import Path

from ...runway.models.generation import GenerationResult
from ...runway.models.requests import ImageToVideoRequest, VideoToVideoRequest
from ..console import Stopwatch, console, progress_of, show_results
from ..prefect_env import quieten_prefect, start_prefect, use_embedded_server

PICTURE = Path(__file__).parent / "comet.jpg"
RENDER_SECONDS = 4.0


def run_demo(storage: str | None) -> None:
    """Animate a picture, restyle the video, and print the results."""
    quieten_prefect()
    use_embedded_server()
    from ...sandbox import Sandbox

    console.print("[bold]prefect-cometapi demo[/]  [dim]with a local CometAPI sandbox, free[/]\n")
    with Sandbox(render_seconds=RENDER_SECONDS, shapes=("wrapped", "bare")) as sandbox:
        os.environ |= {
            "COMETAPI_BASE_URL": sandbox.url,
            "COMETAPI_KEY": "demo",
            "COMETAPI_POLL_INTERVAL": "1",
        }
        show_results(_make_two_videos(storage))
    console.print(
        "\n[bold]Next[/]\n"
        "  prefect-cometapi ledger list  [dim]list the generations that were bought[/]\n"
        "  prefect server start          [dim]show the runs at http://127.0.0.1:4200[/]\n"
        "  prefect-cometapi sandbox      [dim]run the sandbox for your own flows and tests[/]"
    )


def _make_two_videos(storage: str | None) -> list[tuple[GenerationResult, float]]:
    from ...flows import image_to_video, video_to_video

    with progress_of("image-to-video"):
        start_prefect()
        watch = Stopwatch()
        first = image_to_video(
            ImageToVideoRequest(
                prompt_image=str(PICTURE),
                prompt_text="The comet drifts over the lake, slow zoom.",
                duration=5,
                ratio="1280:768",
                seed=4,
            ),
            storage=storage,
        )
    took, watch = watch.seconds(), Stopwatch()
    with progress_of("video-to-video"):
        second = video_to_video(
            VideoToVideoRequest(
                video_uri=first.videos[0].uri,
                prompt_text="Turn the night into a warm dawn.",
                seed=6,
            ),
            storage=storage,
        )
    return [(first, took), (second, watch.seconds())]
