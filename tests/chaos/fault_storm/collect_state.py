# SPDX-License-Identifier: Apache-2.0
"""Snapshot of the state after a storm: the accepted jobs, the ledger, the storage, Prefect."""

import asyncio
import hashlib
import io
import json
import time
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

import av
import httpx
from av.video.frame import VideoFrame

from prefect_cometapi.runway.ledger.entry import Entry
from prefect_cometapi.runway.ledger.marks import FOLDER
from prefect_cometapi.runway.storage.staging import INCOMING
from prefect_cometapi.sandbox import AcceptedJob, Sandbox

from .checker import Ending, Found, Job, Row

_FINAL = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}
_PAGE = 200


def shown(job: AcceptedJob) -> str:
    """Return the key that a job was bought for, which is in the name of its source."""
    address = job.body.get("promptImage") or job.body["videoUri"]
    return unquote(PurePosixPath(urlsplit(address).path).stem)


async def found_in(
    keys: Sequence[str],
    sandbox: Sandbox,
    entries: Sequence[Entry],
    storage: Path,
    endings: Sequence[Ending],
    listed: frozenset[str],
) -> Found:
    """Collect the checker's input, without the tested code wherever that is possible."""
    return Found(
        keys=keys,
        jobs=[_job(sandbox, job) for job in sandbox.accepted],
        rows=[_row(entry) for entry in entries],
        files=await asyncio.to_thread(_files, storage),
        endings=list(endings),
        listed=listed,
    )


def _job(sandbox: Sandbox, accepted: AcceptedJob) -> Job:
    book = sandbox._app.jobs
    fate = book._jobs[accepted.task_id].fault
    clip_of_it = book.finished_clip(accepted.task_id)
    return Job(
        task_id=accepted.task_id,
        key=shown(accepted),
        end=fate.kind if fate else "stored",
        sha256=hashlib.sha256(clip_of_it).hexdigest() if clip_of_it else "",
    )


def _row(entry: Entry) -> Row:
    videos = [video for place in entry.videos.values() for video in place]
    beside = [name for video in videos for name in (video.poster, video.sidecar) if name]
    return Row(
        key=entry.idempotency_key,
        state=str(entry.state),
        task_id=entry.task_id,
        videos={video.uri: video.sha256 for video in videos},
        beside=frozenset(beside),
    )


def _files(storage: Path) -> dict[str, str]:
    """Return every visible file with its SHA-256, which is empty for a file that is broken."""
    visible = [
        path
        for path in storage.rglob("*")
        if path.is_file() and not {INCOMING, FOLDER} & set(path.relative_to(storage).parts)
    ]
    return {str(path): _sha256_if_whole(path) for path in visible}


def _sha256_if_whole(path: Path) -> str:
    content = path.read_bytes()
    whole = {".mp4": bool, ".jpg": _is_whole_jpeg, ".json": _is_json}.get(path.suffix)
    return hashlib.sha256(content).hexdigest() if whole and whole(content) else ""


def _is_whole_jpeg(content: bytes) -> bool:
    return content.startswith(b"\xff\xd8") and content.endswith(b"\xff\xd9")


def _is_json(content: bytes) -> bool:
    try:
        return isinstance(json.loads(content), dict)
    except ValueError:
        return False


async def retries(http: httpx.AsyncClient, tag: str, seconds: float = 60) -> Counter[str]:
    """Count the retries by step of the runs with a tag; Prefect records them with a delay."""
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


def clip() -> bytes:
    """Return a small video to restyle: one second, 64 by 48 pixels."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream: Any = container.add_stream("libx264", rate=24)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(24):
            frame = VideoFrame(64, 48, "yuv420p")
            for plane, shade in zip(frame.planes, (40 + 6 * number, 100, 160), strict=True):
                plane.update(bytes([shade]) * plane.buffer_size)
            frame.pts, frame.time_base = number, Fraction(1, 24)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue()
