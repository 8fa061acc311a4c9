# SPDX-License-Identifier: Apache-2.0
"""A pod that dies is replaced by one that cannot see its processes, and nothing is paid twice."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateName,
)

from prefect_cometapi.flows.runtime.sync import run_sync
from prefect_cometapi.runway import Entry, State
from prefect_cometapi.runway.ledger.leases import LEASE
from prefect_cometapi.runway.ledger.store import Ledger
from prefect_cometapi.sandbox import Sandbox

from ..conftest import KEY
from ..pods import start_pod, unshare
from ..waiting import kill, until

pytestmark = [pytest.mark.server, pytest.mark.heavy, pytest.mark.slow]

COMMAND = ("image-to-video", "https://example.com/cat.jpg", "--idempotency-key", "daily")
PATIENCE = 120.0
"""Seconds within which a pod has to do its part, on a busy machine."""


class Pods:
    """Pods with one ledger and one service.

    Attributes:
        ledger: Ledger that all of them use.
        videos: Folder that all of them mount.
    """

    def __init__(
        self, script: Path, environment: dict[str, str], ledger: str, folder: Path
    ) -> None:
        self.ledger = Ledger(ledger)
        self.videos = folder / "videos"
        self._script = str(script)
        self._folder = folder
        self._environment = {**os.environ, **environment, "COMETAPI_LEDGER_URL": ledger}

    def start(self, name: str) -> subprocess.Popen[bytes]:
        """Start a pod that wants the video."""
        home = {"PREFECT_HOME": str(self._folder / f"home-{name}")}
        log = self._folder / f"{name}.log"
        return start_pod(name, [self._script, *COMMAND], self._environment | home, log)

    def log(self, name: str) -> str:
        """Return the output of a pod."""
        return (self._folder / f"{name}.log").read_text(encoding="utf-8")

    def entry(self) -> Entry | None:
        """Return the ledger's entry of the video."""
        return run_sync(self.ledger.get("daily"))


@pytest.fixture
def service():
    """Start a service that renders for as long as a pod lives."""
    with Sandbox(render_seconds=600) as sandbox:
        yield sandbox


@pytest.fixture
def start_pods(prefect_server, service, script, tmp_path, postgres):
    """Return a function that prepares pods with a ledger of their own."""
    unshare()

    def prepare() -> Pods:
        environment = {
            "PREFECT_API_URL": prefect_server,
            "COMETAPI_KEY": KEY,
            "COMETAPI_BASE_URL": service.url,
            "COMETAPI_POLL_INTERVAL": "0.5",
            "COMETAPI_STORAGE": str(tmp_path / "videos"),
        }
        return Pods(script, environment, postgres.create_database(), tmp_path)

    return prepare


def running() -> set[UUID]:
    """Return the ids of all flow runs in the state Running."""
    state = FlowRunFilterState(name=FlowRunFilterStateName(any_=["Running"]))
    with get_client(sync_client=True) as client:
        found = client.read_flow_runs(flow_run_filter=FlowRunFilter(state=state))
    return {run.id for run in found}


def test_a_pod_takes_over_from_one_whose_processes_it_cannot_see(
    start_pods: Callable[[], Pods], service
):
    """A second pod waits for the lease of a killed one, continues its purchase, and pays once."""
    pods, before = start_pods(), running()
    first = pods.start("pod-1")
    try:
        until(lambda: len(service.accepted) == 1, "the purchase", PATIENCE)
        second = pods.start("pod-2")
        try:
            until(lambda: len(running() - before) == 2, "a run in each pod", PATIENCE)
            entry = until(pods.entry, "the entry")
            assert entry.owner
            assert entry.owner.startswith("pod-1:1:")  # the first process of that pod
            kill(first)
            jobs = service._app.jobs  # from now on, videos are ready at once
            jobs._config = jobs._config.model_copy(update={"render_seconds": 0.0})
            assert second.wait(LEASE + PATIENCE) == 0, pods.log("pod-2")
        finally:
            kill(second)
    finally:
        kill(first)
    entry = pods.entry()
    assert entry
    assert entry.state is State.STORED
    assert len(service.accepted) == 1
    assert len(list(pods.videos.glob("*.mp4"))) == 1


def test_a_pod_that_dies_during_the_purchase_leaves_it_uncertain(
    start_pods: Callable[[], Pods], service
):
    """A claim whose pod is gone is never sent again by another pod, which says what to do."""
    service.add_fault("create:silent-after:value=600")
    pods = start_pods()
    first = pods.start("pod-1")
    try:
        until(lambda: [one for one in service.requests if one.method == "POST"], "POST", PATIENCE)
    finally:
        kill(first)
    second = pods.start("pod-2")
    try:
        assert second.wait(LEASE + PATIENCE) == 1
    finally:
        kill(second)
    assert "SubmissionUncertain" in pods.log("pod-2")
    assert len([one for one in service.requests if one.method == "POST"]) == 1
    entry = pods.entry()
    assert entry
    assert entry.state is State.UNCERTAIN
