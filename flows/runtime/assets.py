# SPDX-License-Identifier: Apache-2.0
"""Assets of Prefect: the sources of a generation, its videos, and what is made from them.

Prefect follows an asset from task run to task run, but its decorator needs the key of an asset
before the task runs, and the name of a video is known only afterwards. So the steps add their
assets while they run. An asset is only shown: nothing here fails a step.
"""

import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any
from urllib.parse import unquote, urlsplit
from uuid import UUID

from prefect.assets import Asset, AssetProperties
from prefect.client.schemas.objects import State, StateDetails
from prefect.context import AssetContext, FlowRunContext
from prefect.states import Completed
from prefect.types.names import MAX_ASSET_KEY_LENGTH, RESTRICTED_ASSET_CHARACTERS
from prefect.utilities.engine import get_state_for_result, link_state_to_task_run_result

from ...runway.models.disclosure import provenance_facts
from ...runway.models.generation import GenerationResult, StoredVideo, Submission
from ...runway.models.requests import GenerationRequest
from ...runway.models.sources import split_block_path
from ...runway.redact import HIDDEN, hide_secrets, redact_source
from .log import best_effort, is_quiet, logger

MATERIALIZED_BY = "prefect-cometapi"

MAX_UPSTREAM = 50
"""Maximum number of upstream assets of a video; Prefect refuses events with too many resources."""

_SOURCE_FIELD = re.compile(r"(?:uri|url|image|video)$", re.IGNORECASE)
_RESTRICTED = re.compile("[" + re.escape("".join(RESTRICTED_ASSET_CHARACTERS)) + r"\s]")
_CACHES = re.compile(r"^(?:\w+::)+")  # of fsspec, in front of the address
_DIGEST = re.compile(rf"{HIDDEN}([0-9a-f]+)")
_VALID = re.compile(r"[a-z0-9]+://.+")
_FACTS = {"uri", "sha256", "size", "width", "height", "duration"}


def asset_key(address: str) -> str | None:
    """Return the key of the asset at an address, or None if the address names none; pure.

    A key has no user info and no query, so no signature; a secret in its path is redacted. A data
    URI is named by its hash. Signs that Prefect refuses become underscores.
    """
    if address[:5].lower() == "data:":
        shown = redact_source(address) if HIDDEN not in address else address
        found = _DIGEST.search(shown)
        plain = f"inline://{shown[5:].partition(';')[0]}/{found[1]}" if found else ""
    elif "://" in address:
        plain = _without_query(_CACHES.sub("", address))
    elif PurePath(address).is_absolute():
        path = PurePath(address).as_posix()
        plain = f"file://{'' if path.startswith('/') else '/'}{path}"
    else:
        plain = f"block://{address}" if split_block_path(address) else ""
    key = _RESTRICTED.sub("_", hide_secrets(plain))
    if len(key) > MAX_ASSET_KEY_LENGTH:
        digest = hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()[:32]
        key = f"{key[: MAX_ASSET_KEY_LENGTH - 33]}-{digest}"
    return key if _VALID.fullmatch(key) else None


def _without_query(url: str) -> str:
    try:
        parts = urlsplit(url)
    except ValueError:
        return ""
    host = parts.netloc.rpartition("@")[2]
    if parts.scheme == "file":
        return f"file://{unquote(parts.path)}"
    is_web = parts.scheme in {"http", "https"}
    return f"{parts.scheme}://{host.lower() if is_web else host}{parts.path}"


def source_keys(body: Mapping[str, Any], folder: str | None = None) -> list[str]:
    """Return the keys of the sources in the body of a request, each once; pure.

    Args:
        body: Body of the request. Its data URIs may be redacted.
        folder: Folder to which relative paths refer. Without it they have no key.
    """
    keys: dict[str, None] = {}
    for address in _addresses(body):
        key = asset_key(address)
        if key is None and folder and ":" not in address:
            key = asset_key(os.path.normpath(os.path.join(folder, address)))  # noqa: PTH118 -- a link stays
        if key:
            keys[key] = None
    return list(keys)


def _addresses(value: Any, name: str = "") -> Iterator[str]:
    if isinstance(value, str):
        if _SOURCE_FIELD.search(name):
            yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            if key != "sources":  # versions of stored sources
                yield from _addresses(item, str(key))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _addresses(item, name)


@best_effort
async def depend_on_sources(request: GenerationRequest) -> None:
    """Make the sources of a request upstream of whatever is made from the current task run."""
    context = AssetContext.get()
    if context is None or is_quiet.get():
        return
    sources = source_keys(request.redacted(), os.getcwd())  # noqa: PTH109
    known = {asset.key for asset in context.upstream_assets | context.direct_asset_dependencies}
    context.direct_asset_dependencies.update(Asset(key=key) for key in sources if key not in known)
    context.update_tracked_assets()


@best_effort
async def materialize(
    submission: Submission, videos: Sequence[StoredVideo], payload: Mapping[str, Any]
) -> None:
    """Emit Prefect's asset events for stored videos, with the sources as upstream assets."""
    clips = _clips(videos)
    if not clips or is_quiet.get():
        return
    around = AssetContext.get() or AssetContext()
    upstream = around.upstream_assets | around.direct_asset_dependencies
    known = {asset.key for asset in upstream} | clips.keys()
    sources = [key for key in source_keys(submission.request or {}) if key not in known]
    facts = {**submission.ids, "route": submission.route, "model": submission.model, **payload}
    context = AssetContext(
        upstream_assets={*[*upstream, *(Asset(key=key) for key in sources)][:MAX_UPSTREAM]},
        downstream_assets=set(clips.values()),
        materialized_by=MATERIALIZED_BY,
        materialization_metadata={
            key: {**facts, **video.model_dump(include=_FACTS), **provenance_facts(video)}
            for video in videos
            if (key := asset_key(video.uri))
        },
    )
    context.emit_events(Completed())


@best_effort
async def follow_from_step(videos: Sequence[StoredVideo]) -> None:
    """Make the videos of the current step upstream of the tasks that get them as arguments.

    They are upstream of what the task run around the step makes, too, if there is one.
    """
    context = AssetContext.get()
    if context and not is_quiet.get():
        _link(videos, context.task_run_id)
        token = context._token  # noqa: SLF001 -- Prefect offers no other way to the outer context
        around = token.old_value if token else None
        _depend(around if isinstance(around, AssetContext) else None, videos)


@best_effort
async def follow_from_submission(videos: Sequence[StoredVideo], submission: Submission) -> None:
    """Make videos that are stored already upstream of the tasks that get them as arguments.

    No step runs for them, so the task run of their submission stands for them.
    """
    if found := get_state_for_result(submission):
        _link(videos, found[0].state_details.task_run_id)
    _depend(AssetContext.get(), videos)


def follow_from_subflow(outcome: object) -> None:
    """Make the videos that a subflow returned upstream of the tasks that get them as arguments."""
    if FlowRunContext.get() is None:
        return
    try:
        data = outcome.data if isinstance(outcome, State) else outcome
        result = getattr(data, "result", data)  # of Prefect's record of a result
        if not isinstance(result, GenerationResult):
            return
        found = (outcome,) if isinstance(outcome, State) else get_state_for_result(result)
        if found:
            _link(result.videos, found[0].state_details.task_run_id)
        _depend(AssetContext.get(), result.videos)
    except Exception as error:  # noqa: BLE001 -- what is only shown must not fail a run
        logger().debug("Could not follow the assets of a subflow: %s", type(error).__name__)


def _clips(videos: Sequence[StoredVideo]) -> dict[str, Asset]:
    """Return the assets of stored videos by their keys."""
    return {
        key: Asset(key=key, properties=AssetProperties(name=video.uri.rpartition("/")[2]))
        for video in videos
        if (key := asset_key(video.uri))
    }


def _depend(context: AssetContext | None, videos: Sequence[StoredVideo]) -> None:
    """Make videos upstream of what the task run of a context makes."""
    if context:
        context.direct_asset_dependencies.update(_clips(videos).values())
        context.update_tracked_assets()


def _link(videos: Sequence[StoredVideo], task_run_id: UUID | None) -> None:
    """Link videos, and the texts of their locations, to the task run that stands for them."""
    context = FlowRunContext.get()
    if context is None or task_run_id is None or not videos:
        return
    context.task_run_assets[task_run_id] = set(_clips(videos).values())
    state = Completed(state_details=StateDetails(task_run_id=task_run_id))
    link_state_to_task_run_result(state, videos)
    for video in videos:
        for address in filter(None, (video.uri, video.poster)):
            link_state_to_task_run_result(state, address)
