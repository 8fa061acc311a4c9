# SPDX-License-Identifier: Apache-2.0
"""Names of flow runs, which say what a run makes."""

import inspect
import re
from collections.abc import Mapping
from functools import cache
from itertools import takewhile
from typing import Any

from prefect.context import FlowRunContext

from ...runway.redact import HIDDEN, redact_url, scrub
from .log import best_effort

MAX_NAME_LENGTH = 60
"""Maximum characters of a name that is taken from a prompt or a manifest."""

_THREE_WORDS = re.compile(r"[a-z]+[0-9]*-[a-z]+-[a-z]+")
"""Names that the form of Prefect's UI suggests. Its list of words is part of the UI."""

_UNFIT = re.compile(rf"{HIDDEN}|<hidden|://|^data:", re.IGNORECASE)


@best_effort
async def name_run() -> None:
    """Name the current flow run after what it makes; a name that the user gave to it stays.

    Prefect's option ``flow_run_name`` would do the same. But for the name alone Prefect then makes
    another client with a TLS context, which takes 25 ms of a processor in each run.
    """
    context = FlowRunContext.get()
    if not (context and context.flow and context.flow_run):
        return
    run = context.flow_run
    if context.flow.flow_run_name or not is_generated(run.name):
        return
    name = run_name(context.parameters or {})
    if name:
        renamed = context.client.set_flow_run_name(run.id, name)
        if inspect.isawaitable(renamed):  # the client of a sync flow is sync
            await renamed
        run.name = name


def is_generated(name: str) -> bool:
    """Return True if Prefect, or its form, made up the name of a run; pure.

    Prefect joins two words of the package coolname.
    """
    words = name.split("-")
    if len(words) == 2:
        return set(words) <= _coolname_words()
    return bool(_THREE_WORDS.fullmatch(name))


@cache
def _coolname_words() -> set[str]:
    from coolname.data import config

    return {word for part in config.values() for word in part.get("words", ())}


def run_name(parameters: Mapping[str, Any]) -> str | None:
    """Return a name for a run with these parameters, or None; pure.

    It is the idempotency key, the task id, the first words of the prompt, or the file name of the
    manifest. It contains no secret: words stop before the first that is a URL or was redacted.
    """
    if known := parameters.get("idempotency_key") or parameters.get("task_id"):
        return str(known)
    manifest = parameters.get("requests")
    if isinstance(manifest, str):
        return _first_words(re.split(r"[/\\]", re.split("[?#]", redact_url(manifest))[0])[-1])
    words = _first_words(getattr(parameters.get("request"), "prompt", None) or "")
    variation = parameters.get("variation", 1)
    return f"{words}, variation {variation}" if words and variation != 1 else words


def _first_words(text: str) -> str | None:
    words = " ".join(takewhile(lambda word: not _UNFIT.search(word), scrub(text).split()))
    if len(words) <= MAX_NAME_LENGTH:
        return words.rstrip(" .,;:") or None
    cut = words[: MAX_NAME_LENGTH - 1]
    return f"{cut.rpartition(' ')[0] or cut}…"  # some languages have no blanks
