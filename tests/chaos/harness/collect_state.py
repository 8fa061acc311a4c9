# SPDX-License-Identifier: Apache-2.0
"""Snapshot of the state after a run: accepted jobs, ledger, storage and Prefect."""

import asyncio
import hashlib
import json
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx

from prefect_cometapi.runway.ledger.entry import Entry
from prefect_cometapi.runway.ledger.marks import FOLDER
from prefect_cometapi.runway.storage.base import PROBE
from prefect_cometapi.runway.storage.staging import INCOMING
from prefect_cometapi.sandbox import AcceptedJob, Sandbox

from .checker import Ending, Job, Row, Snapshot
from .sources import key_of

_FINAL = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}
_PAGE = 200

HIDDEN = frozenset({INCOMING, FOLDER, PROBE})
"""Folders of a storage that its users do not see."""


async def collect_snapshot(
    keys: Sequence[str],
    sandbox: Sandbox,
    entries: Sequence[Entry],
    storage: Path,
    endings: Sequence[Ending],
    listed: frozenset[str],
) -> Snapshot:
    """Collect the input of the checker, without the tested code wherever that is possible."""
    return Snapshot(
        keys=keys,
        jobs=[_job(sandbox, job) for job in sandbox.accepted],
        rows=[row_of(entry) for entry in entries],
        files=await asyncio.to_thread(files_in, storage),
        endings=list(endings),
        listed=listed,
    )


def _job(sandbox: Sandbox, accepted: AcceptedJob) -> Job:
    jobs = sandbox._app.jobs
    fault = jobs._jobs[accepted.task_id].fault
    clip = jobs.finished_clip(accepted.task_id)
    return Job(
        task_id=accepted.task_id,
        key=key_of(accepted),
        end=fault.kind if fault else "stored",
        sha256=hashlib.sha256(clip).hexdigest() if clip else "",
    )


def row_of(entry: Entry) -> Row:
    """Return what the checker knows of a ledger row."""
    videos = [video for location in entry.videos.values() for video in location]
    beside = [name for video in videos for name in (video.poster, video.sidecar) if name]
    return Row(
        key=entry.idempotency_key,
        state=str(entry.state),
        task_id=entry.task_id,
        videos={video.uri: video.sha256 for video in videos},
        beside=frozenset(beside),
    )


def visible_files(storage: Path) -> list[Path]:
    """Return the files of a storage that its users see."""
    return [
        path
        for path in storage.rglob("*")
        if path.is_file() and not HIDDEN & set(path.relative_to(storage).parts)
    ]


def files_in(storage: Path) -> dict[str, str]:
    """Return every visible file with its SHA-256, which is empty for a file that is incomplete."""
    return {str(path): _sha256_if_complete(path) for path in visible_files(storage)}


def _sha256_if_complete(path: Path) -> str:
    content = path.read_bytes()
    check = {".mp4": bool, ".jpg": _is_complete_jpeg, ".json": _is_json}.get(path.suffix)
    return hashlib.sha256(content).hexdigest() if check and check(content) else ""


def _is_complete_jpeg(content: bytes) -> bool:
    return content.startswith(b"\xff\xd8") and content.endswith(b"\xff\xd9")


def _is_json(content: bytes) -> bool:
    try:
        return isinstance(json.loads(content), dict)
    except ValueError:
        return False


async def count_retries(http: httpx.AsyncClient, tag: str, seconds: float = 60) -> Counter[str]:
    """Count the count_retries by step of the runs with a tag; Prefect records them with a delay."""
    end = time.monotonic() + seconds
    while True:
        runs = await _task_runs(http, tag)
        if all(run["state_type"] in _FINAL for run in runs) or time.monotonic() > end:
            break
        await asyncio.sleep(0.5)
    counted: Counter[str] = Counter()
    for run in runs:
        counted[run["name"].partition(" ")[0]] += max(0, run["run_count"] - 1)
    return counted


async def _task_runs(http: httpx.AsyncClient, tag: str) -> list[dict[str, Any]]:
    runs: list[dict[str, Any]] = []
    while True:
        query = {
            "task_runs": {"tags": {"all_": [tag]}},
            "limit": _PAGE,
            "offset": len(runs),
            "sort": "ID_DESC",
        }
        answer = await http.post("/task_runs/filter", json=query)
        page = answer.raise_for_status().json()
        runs += page
        if len(page) < _PAGE:
            return runs
