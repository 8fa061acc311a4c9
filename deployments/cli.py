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

from ..runway.environment import check_environment
from ..runway.errors import CometAPIError, InvalidRequest
from ..runway.models.keys import check_key
from ..runway.models.requests import ROUTES, GenerationRequest
from ..runway.settings import CometAPISettings
from ..sandbox.config import ACCESS_TOKEN
from ..sandbox.messages.replies import ReplyShape
from .commands.batch import batch
from .commands.deploy import deploy, serve
from .commands.doctor import doctor
from .commands.generate import command_of
from .commands.ledger import app as ledger_app
from .commands.ledger import valid_task_id
from .commands.models import models
from .commands.provenance import provenance, sign
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
from .help_text import add_examples, shown_default
from .output import fill_closed_streams
from .prefect_env import quieten_prefect
from .preflight import check_blocks, check_purchase, check_settings
from .repeat_check import confirm_repetition

# Prefect raises these as a bare RuntimeError before a flow run starts.
_PREFECT_IS_AWAY = re.compile(
    "Failed to reach API|Timed out while attempting to connect|The temporary server"
)
_ASKS_FOR_HELP = {"--help", "-h", "--version", "-V"}
_START_PREFECT = "prefect server start, or unset PREFECT_API_URL"

app = App(
    name="prefect-cometapi",
    help="Make Runway videos through CometAPI, as Prefect flows. Settings come from COMETAPI_* "
    "variables.",
    version_flags=("--version", "-V"),
    console=console,  # a full disk or a closed pipe fails no help
    error_console=errors,
    default_parameter=Parameter(show_default=shown_default),
    suppress_keyboard_interrupt=False,  # `progress_of` reports what continues upstream
)
app.command(batch)
app.command(ledger_app)
app.command(setup)
app.command(deploy)
app.command(serve)
app.command(doctor)
app.command(models)
app.command(provenance)
app.command(sign)


def _check_key(_type: Any, key: str | None) -> None:
    if key is not None:
        check_key(key)


Storage = Annotated[
    str | None, Parameter(help="Folder, fsspec URL or Prefect storage block for the videos.")
]
Credentials = Annotated[
    str | None,
    Parameter(help="Name of the saved credentials block with the API key (default: COMETAPI_KEY)."),
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
        help="Wait for the video. With --no-wait, stop after the submission; collect stores it. A "
        "run of a deployment can also be suspended meanwhile: its parameter wait=suspend.",
    ),
]
TaskId = Annotated[
    str | None,
    Parameter(
        help="Task id of a generation that was bought elsewhere. Buys nothing.",
        validator=valid_task_id,
    ),
]
Variation = Annotated[
    int,
    Parameter(
        help="Number of this video among several of the same request. 2 buys a second one.",
        validator=validators.Number(gte=1),
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
    credentials: Credentials = None,
    storage: Storage = None,
    idempotency_key: Key = None,
    wait: WaitOption = True,
    task_id: TaskId = None,
    variation: Variation = 1,
    json: AsJson = False,
) -> None:
    """Declare the options that the commands of all routes share."""


def _generate(request: GenerationRequest, *, variation: int, json: bool, **options: Any) -> None:
    if options["idempotency_key"] is not None and variation != 1:
        raise InvalidRequest("--idempotency-key and --variation exclude each other")
    settings = check_purchase(options["storage"], options["credentials"])
    quieten_prefect()
    if options["idempotency_key"] is None and options["task_id"] is None:
        confirm_repetition(settings, request, variation)
    title = f"{request.route.replace('_', '-')} {request.model}"
    _run(request.route, request, title, settings, as_json=json, variation=variation, **options)


for _kind in ROUTES.values():
    app.command(command_of(_kind, _common, _generate), name=_kind.route.replace("_", "-"))


@app.command
def finish(
    task_id: Annotated[
        str, Parameter(help="Task id of the generation at CometAPI.", validator=valid_task_id)
    ],
    *,
    credentials: Credentials = None,
    storage: Storage = None,
    idempotency_key: Key = None,
    json: AsJson = False,
) -> None:
    """Poll, fetch and store a generation that was bought before. Buys nothing."""
    settings = check_purchase(storage, credentials)
    quieten_prefect()
    _run(
        "finish_generation",
        task_id,
        "finish",
        settings,
        credentials=credentials,
        storage=storage,
        idempotency_key=idempotency_key,
        as_json=json,
    )


@app.command
def collect(
    *, credentials: Credentials = None, storage: Storage = None, json: AsJson = False
) -> None:
    """Finish all bought generations that no other run is working on. Buys nothing."""
    settings = check_settings()
    quieten_prefect()
    from .. import flows

    where = errors if json else console
    with progress_of("collect", lambda: flows.collect, where, done="done") as flow:
        check_blocks(settings, storage, credentials)
        result = flow(credentials=credentials, storage=storage)
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
        ),
    ] = (),
    seed: Annotated[int, Parameter(help="Random seed of faults that have a rate.")] = 0,
    not_visible_polls: Annotated[
        int, Parameter(help="Number of polls that do not find a new task id.")
    ] = 0,
    c2pa: Annotated[
        bool, Parameter(negative="", help="Sign the outputs by C2PA. Needs the extra c2pa.")
    ] = False,
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
            c2pa=c2pa,
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
    settings: CometAPISettings,
    *,
    credentials: str | None,
    storage: str | None,
    idempotency_key: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    from .. import flows

    where = errors if as_json else console
    done = "stored" if options.get("wait", True) else "submitted"
    with progress_of(title, lambda: getattr(flows, flow_name), where, done) as flow:
        check_blocks(settings, storage or settings.storage, credentials)
        watch = Stopwatch()
        result = flow(
            subject,
            credentials=credentials,
            storage=storage,
            idempotency_key=idempotency_key,
            **options,
        )
    if as_json:
        console.print_json(result.model_dump_json())
    else:
        show_results([(result, watch.seconds())])


app.register_install_completion_command(
    help="Install the completion of this command's words for your shell: bash, zsh, fish or "
    "PowerShell. Adds a line to the shell's startup file."
)
add_examples(app)


def _check_environment() -> None:
    if not _ASKS_FOR_HELP.intersection(sys.argv):
        check_environment()


def main() -> None:
    """Run the command line; after an expected failure, print a message and exit with 1."""
    fill_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # for what Prefect and Cyclopts write
            stream.reconfigure(errors="backslashreplace")
    try:
        with terminable():
            _check_environment()
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
