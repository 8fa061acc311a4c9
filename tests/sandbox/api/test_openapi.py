# SPDX-License-Identifier: Apache-2.0
"""The sandbox matches its OpenAPI; for longer runs: `python -m tests.chaos.fuzz.openapi`."""

from typing import Any, get_args

import pytest

from prefect_cometapi.sandbox import ReplyShape

from ...chaos.fuzz.openapi import CHAINS, CONFIG, SINGLE_REQUESTS, run_schemathesis

KEY = {"Authorization": "Bearer any-key"}
SHAPES = get_args(ReplyShape)


class Routes:
    """Routes of a sandbox, each reply validated against its OpenAPI."""

    def __init__(self, url: str) -> None:
        import schemathesis  # takes a second, which only these tests are worth

        config = schemathesis.Config.from_path(CONFIG)
        self.announced = schemathesis.openapi.from_url(f"{url}/openapi.json", config=config)

    def task(self, task_id: str) -> Any:
        """Poll a task, and validate the reply."""
        poll = self.announced["/runwayml/v1/tasks/{task_id}"]["GET"]
        return poll.Case(path_parameters={"task_id": task_id}).call_and_validate(headers=KEY)

    def feed(self, task_id: str) -> Any:
        """Request the feed of a task, and validate the reply."""
        question = {"body": {"task_id": task_id}, "media_type": "application/json"}
        case = self.announced["/runway/feed"]["POST"].Case(**question)
        return case.call_and_validate(headers=KEY)


@pytest.mark.slow
@pytest.mark.heavy
def test_each_request_is_answered_as_the_openapi_says():
    """Each response to a valid or invalid request matches the OpenAPI in every part."""
    found = run_schemathesis(SINGLE_REQUESTS, seed=1, examples=30)
    assert found.ok, found.output
    assert found.report["operations"]["tested"] == found.report["operations"]["total"] == 9
    assert found.report["test_cases"]["generated"] > 300
    assert found.statuses.keys() >= {
        f"POST create {status}" for status in (200, 400, 401, 500, 503)
    }


@pytest.mark.heavy
def test_each_chain_from_a_purchase_to_its_output_is_as_the_openapi_says():
    """The announced links lead from a purchase to its clip, whole or in part."""
    found = run_schemathesis(CHAINS, seed=1, examples=40)
    assert found.ok, found.output
    assert found.statuses.keys() >= {f"GET asset {status}" for status in (200, 206, 416)}
    assert found.statuses["GET task 200"]
    assert found.statuses["POST feed 200"]


@pytest.mark.parametrize(
    ("stage", "options"),
    [
        ("PENDING", {"render_seconds": 3600}),
        ("RUNNING", {"render_seconds": 10}),
        ("SUCCEEDED", {}),
        ("FAILED", {"faults": ["create:failed:rate=1"]}),
        ("CANCELLED", {"faults": ["create:cancelled:rate=1"]}),
    ],
)
@pytest.mark.heavy
def test_every_shape_is_announced_at_every_stage(talk, stage, options):
    """A task and its feed match the OpenAPI in every shape at every stage."""
    conversation = talk(shapes=SHAPES, **options)
    ids = [conversation.create().json()["id"] for _ in SHAPES]
    while conversation.client.get("/_sandbox").json()["jobs"].keys() - {stage, "SUCCEEDED"}:
        pass
    routes = Routes(conversation.sandbox.url)
    for task_id in ids:
        replies = [routes.task(task_id), routes.feed(task_id), routes.task(task_id)]
        assert [reply.status_code for reply in replies] == [200, 200, 200]


@pytest.mark.parametrize("fault", ["unknown-status", "error-in-200", "not-visible-200", "502"])
def test_an_answer_that_is_not_announced_is_noticed(talk, fault):
    """A response that a fault replaced does not pass as an announced one."""
    conversation = talk(faults=[f"task:{fault}"])
    task_id = conversation.finished()
    routes = Routes(conversation.sandbox.url)
    with pytest.raises(BaseExceptionGroup, match="Schemathesis found"):
        routes.task(task_id)
    assert routes.task(task_id).json()["status"] == "SUCCEEDED"


@pytest.mark.parametrize("key", [None, "Bearer wrong-key"])
def test_what_the_openapi_says_needs_a_key_needs_it(talk, key):
    """Without a valid key, each route that announces a 401 answers with it."""
    announced = Routes(talk().sandbox.url).announced
    headers = {} if key is None else {"Authorization": key}
    routes = [path[method] for path in announced.values() for method in path]
    asked = 0
    for route in routes:
        if "security" in route.definition.raw:
            case = route.Case(path_parameters={"task_id": "x"})
            assert case.call_and_validate(headers=headers).status_code == 401
            asked += 1
    assert (asked, len(routes)) == (6, 9)
