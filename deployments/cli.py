# SPDX-License-Identifier: Apache-2.0
"""The command line: ``prefect-cometapi``."""

import base64
import mimetypes
import sys
from contextlib import suppress
from pathlib import Path
from threading import Event
from typing import Annotated, Any

from cyclopts import App, Parameter
from pydantic import ValidationError

from ..runway.errors import CometAPIError
from ..runway.requests import GenerationRequest, ImageToVideoRequest, VideoToVideoRequest
from ..sandbox.replies import ReplyShape
from .quiet import quieten_prefect
from .terminal import Stopwatch, console, errors, progress_of, show_error, show_results

app = App(
    name="prefect-cometapi",
    help="Runway videos through CometAPI, as Prefect flows. Settings are read from COMETAPI_*.",
)

Storage = Annotated[
    str | None, Parameter(help="Folder, fsspec URL or Prefect storage block to keep the video in.")
]
Key = Annotated[str | None, Parameter(help="Idempotency key; the same key never buys twice.")]
AsJson = Annotated[bool, Parameter(name="--json", negative="", help="Print the result as JSON.")]


@app.command
def demo(storage: Storage = None) -> None:
    """Make two clips with a stand-in for CometAPI on this machine: no key, no network, no cost."""
    from .demo import run_demo

    run_demo(storage)


@app.command(name="image-to-video")
def image_to_video(
    image: Annotated[str, Parameter(help="HTTPS URL, or an image file on this machine.")],
    prompt: Annotated[str | None, Parameter(help="What should happen.")] = None,
    *,
    model: str = "gen3a_turbo",
    duration: Annotated[int | None, Parameter(help="Seconds: 5 or 10.")] = None,
    ratio: Annotated[str | None, Parameter(help="Width and height, as 1280:720.")] = None,
    seed: Annotated[int | None, Parameter(help="Same seed, similar video.")] = None,
    storage: Storage = None,
    key: Key = None,
    json: AsJson = False,
) -> None:
    """Make a video from an image."""
    request = ImageToVideoRequest(
        prompt_image=as_source(image),
        prompt_text=prompt,
        model=model,
        duration=duration,
        ratio=ratio,
        seed=seed,
    )
    _generate(request, storage=storage, key=key, as_json=json)


@app.command(name="video-to-video")
def video_to_video(
    video: Annotated[str, Parameter(help="HTTPS URL, or a video file on this machine.")],
    prompt: Annotated[str, Parameter(help="What should change.")],
    *,
    model: str = "gen4_aleph",
    reference: Annotated[str | None, Parameter(help="Image that shows the style wanted.")] = None,
    seed: Annotated[int | None, Parameter(help="Same seed, similar video.")] = None,
    storage: Storage = None,
    key: Key = None,
    json: AsJson = False,
) -> None:
    """Restyle a video."""
    request = VideoToVideoRequest.model_validate(
        {
            "video_uri": as_source(video),
            "prompt_text": prompt,
            "model": model,
            "references": [{"uri": as_source(reference)}] if reference else None,
            "seed": seed,
        }
    )
    _generate(request, storage=storage, key=key, as_json=json)


@app.command
def finish(
    task_id: Annotated[str, Parameter(help="Id that CometAPI gave the generation.")],
    *,
    storage: Storage = None,
    key: Key = None,
    json: AsJson = False,
) -> None:
    """Poll, fetch and store a generation that was bought already. It buys nothing."""
    _run("finish_generation", task_id, task_id[:8], storage=storage, key=key, as_json=json)


@app.command
def sandbox(
    *,
    port: Annotated[int, Parameter(help="Port on loopback; 0 takes a free one.")] = 8777,
    render_seconds: Annotated[float, Parameter(help="Least seconds until a clip is ready.")] = 3.0,
    shape: Annotated[
        tuple[ReplyShape, ...], Parameter(help="Reply shapes, taken in turn.", negative="")
    ] = ("bare",),
    fault: Annotated[
        tuple[str, ...],
        Parameter(help="How to misbehave, as create:429:times=2,value=3.", negative=""),
    ] = (),
    seed: Annotated[int, Parameter(help="Seed of faults that happen at a rate.")] = 0,
    not_visible_polls: Annotated[int, Parameter(help="Polls that do not know a fresh id.")] = 0,
) -> None:
    """Run a stand-in for CometAPI on this machine. It renders real clips and costs nothing."""
    from ..sandbox import Sandbox

    try:
        running = Sandbox(
            port=port,
            shapes=shape,
            faults=fault,
            seed=seed,
            render_seconds=render_seconds,
            not_visible_polls=not_visible_polls,
        )
        with running, suppress(KeyboardInterrupt):
            _tell_how_to_use(running.url)
            Event().wait()
    except (ValueError, OSError) as error:
        show_error(error)
        sys.exit(1)


def _tell_how_to_use(url: str) -> None:
    console.print(f"CometAPI sandbox on [bold]{url}[/], documented at {url}/docs", soft_wrap=True)
    console.print("[dim]In another terminal:[/]")
    console.print(f"  export COMETAPI_BASE_URL={url} COMETAPI_KEY=sandbox", soft_wrap=True)
    console.print('  prefect-cometapi image-to-video https://example.com/cat.jpg "slow zoom"')
    console.print("[dim]Ctrl-C stops it.[/]")


def as_source(place: str) -> str:
    """A URL as it is, a file on this machine as a data URI."""
    path = Path(place).expanduser()
    if "://" in place or place.startswith("data:") or not path.is_file():
        return place
    media_type = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    return f"data:{media_type};base64,{base64.b64encode(path.read_bytes()).decode()}"


def _generate(request: GenerationRequest, **options: Any) -> None:
    _run(request.route, request, f"{request.route} {request.model}", **options)


def _run(
    flow_name: str,
    subject: object,
    title: str,
    *,
    storage: str | None,
    key: str | None,
    as_json: bool,
) -> None:
    quieten_prefect()
    from .. import flows

    flow, watch = getattr(flows, flow_name), Stopwatch()
    with progress_of(title):
        result = flow(subject, storage=storage, key=key)
    if as_json:
        console.print_json(result.model_dump_json())
    else:
        show_results([(result, watch.seconds())])


def main() -> None:
    """Run the command line; exit with 1 and a message after an expected failure."""
    try:
        app()
    except (CometAPIError, ValidationError) as error:
        show_error(error)
        sys.exit(1)
    except KeyboardInterrupt:
        errors.print("[yellow]Interrupted.[/] A submitted generation goes on upstream.")
        sys.exit(130)
