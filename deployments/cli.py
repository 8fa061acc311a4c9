# SPDX-License-Identifier: Apache-2.0
"""Command line ``prefect-cometapi``."""

import re
import sys
from contextlib import suppress
from threading import Event
from typing import Annotated, Any

import httpx
from cyclopts import App, Parameter, validators
from pydantic import ValidationError

from ..runway.errors import CometAPIError
from ..runway.models.keys import check_key
from ..runway.models.requests import GenerationRequest, ImageToVideoRequest, VideoToVideoRequest
from ..sandbox.messages.replies import ReplyShape
from .commands.batch import batch
from .commands.deploy import deploy, serve
from .commands.doctor import doctor
from .commands.ledger import app as ledger_app
from .commands.ledger import valid_task_id
from .commands.setup import setup
from .console import (
    Stopwatch,
    Terminated,
    console,
    errors,
    progress_of,
    show_collected,
    show_error,
    show_results,
    stop_at_prefect,
    terminable,
)
from .data_uris import as_source
from .prefect_env import quieten_prefect, start_prefect

# Prefect raises these as a bare RuntimeError, before a flow run begins.
_PREFECT_IS_AWAY = re.compile("Failed to reach API|Timed out while attempting to connect")
_START_PREFECT = "prefect server start, or unset PREFECT_API_URL"

app = App(
    name="prefect-cometapi",
    help="Runway videos through CometAPI, as Prefect flows. Settings are read from COMETAPI_*.",
    suppress_keyboard_interrupt=False,  # `progress_of` reports what continues upstream
)
app.command(batch)
app.command(ledger_app)
app.command(setup)
app.command(deploy)
app.command(serve)
app.command(doctor)


def _check_key(_type: Any, key: str | None) -> None:
    if key is not None:
        check_key(key)


Storage = Annotated[
    str | None, Parameter(help="Folder, fsspec URL or Prefect storage block to keep the video in.")
]
Key = Annotated[
    str | None,
    Parameter(help="Idempotency key; the same key never buys twice.", validator=_check_key),
]
PollState = Annotated[
    bool, Parameter(negative="--no-wait", help="Wait for the video; else collect finishes it.")
]
TaskId = Annotated[
    str | None,
    Parameter(
        help="Id of a generation that was bought elsewhere; then nothing is bought.",
        validator=valid_task_id,
    ),
]
AsJson = Annotated[bool, Parameter(name="--json", negative="", help="Print the result as JSON.")]


@app.command
def demo(storage: Storage = None) -> None:
    """Make two clips with a stand-in for CometAPI on this machine: no API key, network or cost."""
    from .commands.demo import run_demo

    run_demo(storage)


@app.command(name="image-to-video")
def image_to_video(
    image: Annotated[str, Parameter(help="HTTPS URL, or an image file on this machine.")],
    prompt: Annotated[str | None, Parameter(help="What should happen.")] = None,
    *,
    model: Annotated[str, Parameter(help="Runway model to use.")] = "gen3a_turbo",
    duration: Annotated[int | None, Parameter(help="Seconds: 5 or 10.")] = None,
    ratio: Annotated[str | None, Parameter(help="Width and height, as 1280:720.")] = None,
    seed: Annotated[int | None, Parameter(help="Same seed, similar video.")] = None,
    storage: Storage = None,
    idempotency_key: Key = None,
    wait: PollState = True,
    task_id: TaskId = None,
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
    _generate(
        request,
        storage=storage,
        idempotency_key=idempotency_key,
        wait=wait,
        task_id=task_id,
        as_json=json,
    )


@app.command(name="video-to-video")
def video_to_video(
    video: Annotated[str, Parameter(help="HTTPS URL, or a video file on this machine.")],
    prompt: Annotated[str, Parameter(help="What should change.")],
    *,
    model: Annotated[str, Parameter(help="Runway model to use.")] = "gen4_aleph",
    reference: Annotated[str | None, Parameter(help="Image that shows the style wanted.")] = None,
    seed: Annotated[int | None, Parameter(help="Same seed, similar video.")] = None,
    storage: Storage = None,
    idempotency_key: Key = None,
    wait: PollState = True,
    task_id: TaskId = None,
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
    _generate(
        request,
        storage=storage,
        idempotency_key=idempotency_key,
        wait=wait,
        task_id=task_id,
        as_json=json,
    )


@app.command
def finish(
    task_id: Annotated[
        str, Parameter(help="Id that CometAPI gave the generation.", validator=valid_task_id)
    ],
    *,
    storage: Storage = None,
    idempotency_key: Key = None,
    json: AsJson = False,
) -> None:
    """Poll, fetch and store a generation that was already bought. It buys nothing."""
    _run(
        "finish_generation",
        task_id,
        "finish",
        storage=storage,
        idempotency_key=idempotency_key,
        as_json=json,
    )


@app.command
def collect(*, storage: Storage = None, json: AsJson = False) -> None:
    """Finish every bought generation that no other run works on. It buys nothing."""
    quieten_prefect()
    from ..flows import collect as collect_flow

    with progress_of("collect", errors if json else console, done="done"):
        start_prefect()
        result = collect_flow(storage=storage)
    if json:
        console.print_json(result.model_dump_json())
    else:
        show_collected(result)


@app.command
def sandbox(
    *,
    port: Annotated[
        int,
        Parameter(
            help="Port on loopback; 0 takes a free one.",
            validator=validators.Number(gte=0, lte=65535),
        ),
    ] = 8777,
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
    except ValueError as error:
        show_error(error)
        sys.exit(1)
    except OSError as error:
        show_error(OSError(f"port {port}: {error.strerror}; --port 0 takes a free one"))
        sys.exit(1)


def _tell_how_to_use(url: str) -> None:
    console.print(
        f"CometAPI sandbox on [bold]{url}[/] (schema: {url}/openapi.json)", soft_wrap=True
    )
    console.print("[dim]In another terminal:[/]")
    console.print(f"  export COMETAPI_BASE_URL={url} COMETAPI_KEY=sandbox", soft_wrap=True)
    console.print('  prefect-cometapi image-to-video https://example.com/cat.jpg "slow zoom"')
    console.print("[dim]Ctrl-C stops it.[/]")


def _generate(request: GenerationRequest, **options: Any) -> None:
    _run(request.route, request, f"{request.route.replace('_', '-')} {request.model}", **options)


def _run(
    flow_name: str,
    subject: object,
    title: str,
    *,
    storage: str | None,
    idempotency_key: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    quieten_prefect()
    from .. import flows

    flow = getattr(flows, flow_name)
    done = "stored" if options.get("wait", True) else "submitted"
    with progress_of(title, errors if as_json else console, done):
        start_prefect()
        watch = Stopwatch()
        result = flow(subject, storage=storage, idempotency_key=idempotency_key, **options)
    if as_json:
        console.print_json(result.model_dump_json())
    else:
        show_results([(result, watch.seconds())])


def main() -> None:
    """Run the command line; after an expected failure, print a message and exit with 1."""
    try:
        with terminable():
            app()
    except (CometAPIError, ValidationError) as error:
        show_error(error)
        sys.exit(1)
    except httpx.HTTPStatusError as error:  # from Prefect; CometAPI's replies raise other errors
        stop_at_prefect(str(error), "see that PREFECT_API_URL and PREFECT_API_KEY belong together")
    except httpx.TransportError as error:
        stop_at_prefect(f"its server does not answer: {error}", _START_PREFECT)
    except RuntimeError as error:
        if not _PREFECT_IS_AWAY.search(str(error)):
            raise
        stop_at_prefect(str(error), _START_PREFECT)
    except Terminated as end:
        sys.exit(end.status)
    except KeyboardInterrupt:
        sys.exit(130)
