# SPDX-License-Identifier: Apache-2.0
"""Command line ``prefect-cometapi``."""

import re
import sys
from contextlib import suppress
from io import TextIOWrapper
from threading import Event
from typing import Annotated, Any

import httpx
from cyclopts import App, Parameter, validators
from pydantic import ValidationError

from ..runway.errors import CometAPIError
from ..runway.models.keys import check_key
from ..runway.models.requests import ROUTES, GenerationRequest
from ..sandbox.config import ACCESS_TOKEN
from ..sandbox.messages.replies import ReplyShape
from .commands.batch import batch
from .commands.deploy import deploy, serve
from .commands.doctor import doctor
from .commands.generate import command_of
from .commands.ledger import app as ledger_app
from .commands.ledger import valid_task_id
from .commands.models import models
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
from .prefect_env import quieten_prefect, start_prefect

# Prefect raises these as a bare RuntimeError before a flow run starts.
_PREFECT_IS_AWAY = re.compile("Failed to reach API|Timed out while attempting to connect")
_START_PREFECT = "prefect server start, or unset PREFECT_API_URL"

app = App(
    name="prefect-cometapi",
    help="Make Runway videos through CometAPI, as Prefect flows. Settings come from COMETAPI_* "
    "variables.",
    suppress_keyboard_interrupt=False,  # `progress_of` reports what continues upstream
)
app.command(batch)
app.command(ledger_app)
app.command(setup)
app.command(deploy)
app.command(serve)
app.command(doctor)
app.command(models)


def _check_key(_type: Any, key: str | None) -> None:
    if key is not None:
        check_key(key)


Storage = Annotated[
    str | None, Parameter(help="Folder, fsspec URL or Prefect storage block for the videos.")
]
Key = Annotated[
    str | None,
    Parameter(
        help="Idempotency key: requests with the same key are bought once.", validator=_check_key
    ),
]
WaitOption = Annotated[
    bool,
    Parameter(
        negative="--no-wait",
        help="Wait for the video. With --no-wait, stop after the submission; collect stores it.",
    ),
]
TaskId = Annotated[
    str | None,
    Parameter(
        help="Task id of a generation that was bought elsewhere. Buys nothing.",
        validator=valid_task_id,
    ),
]
AsJson = Annotated[bool, Parameter(name="--json", negative="", help="Print the result as JSON.")]


@app.command
def demo(storage: Storage = None) -> None:
    """Make two videos with a local CometAPI sandbox. Needs no API key and no network. Free."""
    from .commands.demo import run_demo

    run_demo(storage)


def _common(
    *,
    storage: Storage = None,
    idempotency_key: Key = None,
    wait: WaitOption = True,
    task_id: TaskId = None,
    json: AsJson = False,
) -> None:
    """Declare the options that the commands of all routes share."""


def _generate(request: GenerationRequest, *, json: bool, **options: Any) -> None:
    title = f"{request.route.replace('_', '-')} {request.model}"
    _run(request.route, request, title, as_json=json, **options)


for _kind in ROUTES.values():
    app.command(command_of(_kind, _common, _generate), name=_kind.route.replace("_", "-"))


@app.command
def finish(
    task_id: Annotated[
        str, Parameter(help="Task id of the generation at CometAPI.", validator=valid_task_id)
    ],
    *,
    storage: Storage = None,
    idempotency_key: Key = None,
    json: AsJson = False,
) -> None:
    """Poll, fetch and store a generation that was bought before. Buys nothing."""
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
    """Finish all bought generations that no other run is working on. Buys nothing."""
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
            help="Port on 127.0.0.1; 0 selects a free one.",
            validator=validators.Number(gte=0, lte=65535),
        ),
    ] = 8777,
    render_seconds: Annotated[
        float, Parameter(help="Minimum seconds until a video is ready.")
    ] = 3.0,
    shape: Annotated[
        tuple[ReplyShape, ...], Parameter(help="Shapes of the replies, used in turn.", negative="")
    ] = ("bare",),
    fault: Annotated[
        tuple[str, ...],
        Parameter(
            help="Fault to inject, such as create:429:times=2,value=3.",
            negative="",
            show_default=False,
        ),
    ] = (),
    seed: Annotated[int, Parameter(help="Random seed of faults that have a rate.")] = 0,
    not_visible_polls: Annotated[
        int, Parameter(help="Number of polls that do not find a new task id.")
    ] = 0,
) -> None:
    """Run a local stand-in for CometAPI, which renders real videos. Free."""
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
            _print_usage(running.url)
            Event().wait()
    except ValueError as error:
        show_error(error)
        sys.exit(1)
    except OSError as error:
        show_error(OSError(f"port {port}: {error.strerror}; --port 0 selects a free one"))
        sys.exit(1)


def _print_usage(url: str) -> None:
    console.print(
        f"CometAPI sandbox at [bold]{url}[/] (schema: {url}/openapi.json)", soft_wrap=True
    )
    console.print("[dim]In another terminal:[/]")
    console.print(f"  export COMETAPI_BASE_URL={url} COMETAPI_KEY=sandbox", soft_wrap=True)
    console.print(f"  export COMETAPI_ACCESS_TOKEN={ACCESS_TOKEN}", soft_wrap=True)
    console.print('  prefect-cometapi image-to-video https://example.com/cat.jpg "slow zoom"')
    console.print("[dim]Press Ctrl-C to stop.[/]")


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
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # for what Prefect and Cyclopts write
            stream.reconfigure(errors="backslashreplace")
    try:
        with terminable():
            app()
    except (CometAPIError, ValidationError) as error:
        show_error(error)
        sys.exit(1)
    except httpx.HTTPStatusError as error:  # from Prefect: replies of CometAPI raise CometAPIError
        stop_at_prefect(str(error), "check that PREFECT_API_KEY belongs to PREFECT_API_URL")
    except httpx.TransportError as error:
        stop_at_prefect(f"the server does not answer: {error}", _START_PREFECT)
    except RuntimeError as error:
        if not _PREFECT_IS_AWAY.search(str(error)):
            raise
        stop_at_prefect(str(error), _START_PREFECT)
    except Terminated as end:
        sys.exit(end.status)
    except KeyboardInterrupt:
        sys.exit(130)
