# SPDX-License-Identifier: Apache-2.0
"""Command ``prefect-cometapi demo``: two videos from a local sandbox."""

import os
import shlex
import shutil
import sys
from pathlib import Path

from ...runway.models.generation import GenerationResult
from ...runway.models.requests import ImageToVideoRequest, VideoToVideoRequest
from ..console import Stopwatch, console, display_path, escape, progress_of, show_results
from ..prefect_env import quieten_prefect, use_embedded_server

PICTURE = Path(__file__).parent / "comet.jpg"
RENDER_SECONDS = 4.0

NEXT = {
    "prefect-cometapi ledger list": "list the generations that were bought",
    "prefect server start": "show the runs at http://127.0.0.1:4200",
    "prefect-cometapi sandbox": "run the sandbox for your own flows and tests",
}
"""Commands to try after the demo, and what each of them does."""


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
    console.print("\n[bold]Next[/]")
    shown = {runnable(words): purpose for words, purpose in NEXT.items()}
    width = max(map(len, shown))
    for words, purpose in shown.items():
        console.print(f"  {escape(words.ljust(width))}  [dim]{purpose}[/]", soft_wrap=True)


def runnable(words: str) -> str:
    """Return a command of this installation as the user can run it, with its folder if needed."""
    program, _, rest = words.partition(" ")
    started = Path(sys.argv[0])
    found = shutil.which(program)
    is_on_path = found and Path(found).parent.resolve() == started.parent.resolve()
    if is_on_path or started.parent == Path():
        return words
    return f"{shlex.quote(display_path(str(started.parent / program)))} {rest}"


def _make_two_videos(storage: str | None) -> list[tuple[GenerationResult, float]]:
    from ... import flows

    with progress_of("image-to-video", lambda: flows.image_to_video) as image_to_video:
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
    with progress_of("video-to-video", lambda: flows.video_to_video) as video_to_video:
        second = video_to_video(
            VideoToVideoRequest(
                video_uri=first.videos[0].uri,
                prompt_text="Turn the night into a warm dawn.",
                seed=6,
            ),
            storage=storage,
        )
    return [(first, took), (second, watch.seconds())]
