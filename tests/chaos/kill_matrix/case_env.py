# SPDX-License-Identifier: Apache-2.0
"""Environment of one case at a time: a service, a ledger and a storage of its own."""

import asyncio
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import httpx
from pydantic import SecretStr

from prefect_cometapi.runway.api.client import RunwayClient
from prefect_cometapi.runway.ledger.entry import Entry
from prefect_cometapi.runway.ledger.store import Ledger
from prefect_cometapi.runway.media.inspector import inspect_video
from prefect_cometapi.sandbox import AcceptedJob, Sandbox

from ...s3 import environment
from ..harness.service import wait_until_idle
from .fork_client import ForkClient, ProcessResult
from .plan import Boundary, Case, StorageKind
from .storages import Folder, Location, ObjectStore

KEY = "sk-kills-5b1f0d7c2e9a"
SETTINGS = {
    "COMETAPI_KEY": KEY,
    "COMETAPI_POLL_INTERVAL": "0.05",
    "COMETAPI_GENERATION_TIMEOUT": "60",
    "COMETAPI_NOT_FOUND_GRACE": "10",
}
FILES = {".mp4", ".jpg", ".json"}


@dataclass
class CaseEnv:
    """Environment in which cases run.

    Attributes:
        sandbox: Service, which counts the jobs that it accepted.
        ledger_url: URL of the ledger, as the processes open it.
        folder: Folder for videos, logs and outcomes.
        pictures: Address of a server that has a picture under every name.
        forks: Client of the fork server, which starts the processes.
        api: Address of the Prefect server's API.
        mutant: Bug that is put into the product on purpose.
        objects: S3 server, for cases that keep their videos there.
        storages: Storage in which a case keeps its videos, if it is not a folder.
        ledger: Ledger, as the runner reads it.
    """

    sandbox: Sandbox
    ledger_url: str
    folder: Path
    pictures: str
    forks: ForkClient
    api: str
    mutant: str | None = None
    objects: ObjectStore | None = None
    storages: dict[str, StorageKind] = field(default_factory=dict[str, StorageKind])
    ledger: Ledger = field(init=False)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True)
        self.ledger = Ledger(self.ledger_url)

    # Processes

    def spec(self, name: str, do: str, *, sync: bool = False, **values: Any) -> dict[str, Any]:
        """Return the specification of a process of a case."""
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        return {
            "do": do,
            "sync": sync,
            "tag": name,
            "folder": str(folder),
            "request": {"promptImage": self.picture(name)},
            "env": {
                **SETTINGS,
                "COMETAPI_BASE_URL": self.sandbox.url,
                "COMETAPI_STORAGE": self.location(name).address,
                "COMETAPI_LEDGER_URL": self.ledger_url,
                **(environment(self.objects.url) if self.objects else {}),
            },
            "mutant": self.mutant,
            **values,
        }

    async def run_process(self, name: str, do: str, **values: Any) -> ProcessResult:
        """Run a process to its end, and wait until its connections are closed."""
        ended = await self.forks.run(self.spec(name, do, **values))
        await wait_until_idle(self.sandbox)
        return ended

    async def prepare(self, name: str) -> None:
        """Save the storage block of a case that uses one."""
        if self.objects and self.storages.get(name) == "a storage block":
            saved = await self.run_process(name, "save block", s3=self.objects.url)
            assert not saved.error, f"no block was saved: {saved}"

    async def run_victim(self, case: Case, key: str | None) -> ProcessResult:
        """Run the victim of a case from its start to its end."""
        marker = self.folder / case.name / "crashed"
        self.storages[case.name] = case.storage
        await self.prepare(case.name)
        crash = {
            "boundary": case.boundary,
            "kind": case.crash,
            "file": case.file,
            "marker": str(marker),
            "storage": self.location(case.name).address,
        }
        do = "run"
        if case.collector:
            bought = await self.run_process(case.name, do, sync=case.sync, key=key, wait=False)
            assert not bought.error, f"nothing was submitted: {bought}"
            do = "collect"
        victim = self.run_process(case.name, do, sync=case.sync, key=key, crash=crash)
        if case.boundary is not Boundary.POLLING:
            return await victim
        self._set_render_seconds(3600.0)  # The first reply must not be the last.
        releasing = asyncio.create_task(self._release_after(marker))
        try:
            return await victim
        finally:
            releasing.cancel()
            self._set_render_seconds(0.0)

    async def _release_after(self, marker: Path) -> None:
        while not marker.exists():  # noqa: ASYNC110 -- another process
            await asyncio.sleep(0.01)
        self._set_render_seconds(0.0)

    # The service

    def _set_render_seconds(self, seconds: float) -> None:
        jobs = self.sandbox._app.jobs
        jobs._config = jobs._config.model_copy(update={"render_seconds": seconds})

    def picture(self, name: str) -> str:
        """Return the address by which the request of a case differs from all others."""
        return f"{self.pictures}/{name}.jpg"

    def accepted(self, name: str) -> list[AcceptedJob]:
        """Return the jobs of a case that would have been paid for."""
        picture = self.picture(name)
        return [job for job in self.sandbox.accepted if job.body["promptImage"] == picture]

    def posts(self) -> int:
        """Return the number of submissions that arrived, for any case."""
        return sum(1 for request in self.sandbox.requests if request.route == "create")

    # The ledger

    async def entries(self, name: str) -> list[Entry]:
        """Return the ledger entries of a case."""
        picture = self.picture(name)
        return [
            entry
            for entry in await self.ledger.entries()
            if (entry.request or {}).get("promptImage") == picture
        ]

    # Prefect

    async def flow_run(self, name: str) -> str:
        """Return the id of the first flow run of a case."""
        query = {"flow_runs": {"tags": {"all_": [name]}}, "sort": "START_TIME_ASC"}
        return (await self._prefect("/flow_runs/filter", query))[0]["id"]

    async def set_crashed(self, flow_run: str) -> None:
        """Report a crash to Prefect, as a worker does when a process is killed."""
        state = {"type": "CRASHED", "name": "Crashed", "message": "exit status -9"}
        await self._prefect(f"/flow_runs/{flow_run}/set_state", {"state": state, "force": True})

    async def _prefect(self, path: str, body: dict[str, Any]) -> Any:
        async with httpx.AsyncClient(timeout=60) as http:
            return (await http.post(self.api + path, json=body)).raise_for_status().json()

    # The storage

    def location(self, name: str) -> Location:
        """Return the location for the videos of a case."""
        copies = self.folder / name / "copies"
        match self.storages.get(name, "a folder"), self.objects:
            case "an s3:// URL", ObjectStore() as objects:
                return objects.at_url(name, copies)
            case "a storage block", ObjectStore() as objects:
                return objects.by_block(name, copies)
        return Folder(self.folder / name / "videos")

    async def download_clip(self, task_id: str) -> bytes:
        """Download a clip from the service once more, and return it."""
        async with RunwayClient(SecretStr(KEY), base_url=self.sandbox.url) as client:
            generation = await client.get(task_id)
        async with httpx.AsyncClient() as http:
            address = generation.outputs[0].reveal() or ""
            return (await http.get(address)).raise_for_status().content

    def describe_damage(self, name: str, clip: bytes | None) -> Iterable[str]:
        """Describe each visible file in the storage that is incomplete."""
        location = self.location(name)
        for file in location.names():
            if Path(file).suffix not in FILES:
                yield f"{file} is not a file of a video"
            elif damage := _damage_of(location.local(file), clip):
                yield f"{file} is visible and incomplete: {damage}"


def _damage_of(path: Path, clip: bytes | None) -> str:
    content = path.read_bytes()
    try:
        if path.suffix == ".json":
            json.loads(content)
        elif path.suffix == ".jpg":
            with av.open(str(path)) as picture:
                next(picture.decode(video=0))
        elif clip is not None and content != clip:
            return f"{len(content)} bytes of {len(clip)}"
        else:
            inspect_video(path)
    except Exception as error:  # noqa: BLE001 -- each format has errors of its own
        return f"{type(error).__name__}: {error}"
    return ""


def sha256(content: bytes) -> str:
    """Return the SHA-256 in hex."""
    return hashlib.sha256(content).hexdigest()
