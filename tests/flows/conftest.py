# SPDX-License-Identifier: Apache-2.0
"""How tests of flows look at what Prefect recorded."""

import time
from collections.abc import Callable
from typing import Any, TypeVar

import httpx
import pytest

T = TypeVar("T")

IMAGE = {"promptImage": "https://example.com/cat.jpg", "promptText": "slow zoom"}


class History:
    """What the server knows of runs, asked for over its API."""

    def __init__(self, api: str) -> None:
        self._http = httpx.Client(base_url=api, timeout=30)

    def filter(self, what: str, **query: Any) -> list[dict[str, Any]]:
        return self._http.post(f"/{what}/filter", json=query).raise_for_status().json()

    def task_runs(self, flow_run_id: Any) -> dict[str, dict[str, Any]]:
        """Task runs of a flow run by the first word of their names, once all are final."""

        def all_final() -> dict[str, dict[str, Any]] | None:
            runs = self.filter("task_runs", flow_runs={"id": {"any_": [str(flow_run_id)]}})
            final = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}
            done = runs and all(run["state_type"] in final for run in runs)
            return {run["name"].partition(" ")[0]: run for run in runs} if done else None

        return eventually(all_final)

    def states(self, task_run_id: str) -> list[str]:
        """The names of all states that a task run went through, in order."""
        answer = self._http.get("/task_run_states/", params={"task_run_id": task_run_id})
        states = sorted(answer.raise_for_status().json(), key=lambda state: state["timestamp"])
        return [state["name"] for state in states]

    def artifacts(self, flow_run_id: Any) -> dict[str, dict[str, Any]]:
        found = self.filter("artifacts", artifacts={"flow_run_id": {"any_": [str(flow_run_id)]}})
        return {artifact["key"]: artifact for artifact in found if artifact["key"]}

    def events(self, flow_run_id: Any, until: str) -> list[dict[str, Any]]:
        """Our events of a flow run, once the one named last has arrived."""
        related = {"resources_in_roles": [[f"prefect.flow-run.{flow_run_id}", "flow-run"]]}

        def arrived() -> list[dict[str, Any]] | None:
            query = {
                "filter": {
                    "event": {"prefix": ["cometapi.", "prefect.asset."]},
                    "related": related,
                    "order": "ASC",
                }
            }
            events = self._http.post("/events/filter", json=query).raise_for_status().json()
            found = events["events"]
            return found if any(event["event"] == until for event in found) else None

        return eventually(arrived)

    def logs(self, flow_run_id: Any, until: str) -> list[str]:
        """Log messages of a flow run, once one that contains a text has arrived."""

        def arrived() -> list[str] | None:
            found = self.filter("logs", logs={"flow_run_id": {"any_": [str(flow_run_id)]}})
            messages = [log["message"] for log in found]
            return messages if any(until in message for message in messages) else None

        return eventually(arrived)


def eventually(look: Callable[[], T | None], seconds: float = 30) -> T:
    """What another process or thread brings, as soon as it is there."""
    end = time.monotonic() + seconds
    while (found := look()) is None:
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.05)
    return found


@pytest.fixture
def history(prefect_server: str) -> History:
    return History(prefect_server)


@pytest.fixture
def image() -> dict[str, Any]:
    """An image-to-video request, as a dict."""
    return dict(IMAGE)


@pytest.fixture
def wait_until() -> Callable[..., Any]:
    """Waits for what another process or thread brings."""
    return eventually
