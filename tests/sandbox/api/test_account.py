# SPDX-License-Identifier: Apache-2.0
"""The sandbox lists its own jobs as the account of a client."""

import json
import time
from typing import Any

import httpx
import pytest

from prefect_cometapi.sandbox import Sandbox

TOKEN = {"Authorization": "Bearer sandbox-access-token"}
BILLING = "/v1/dashboard/billing"


def rows(conversation: Any, path: str = "/api/task/self", **query: Any) -> list[dict[str, Any]]:
    """Return the rows of the first page of a list."""
    return conversation.account(path, **query).json()["data"]["items"]


def balance(conversation: Any) -> float:
    """Return the balance of the API key in US dollars."""
    limit = conversation.client.get(f"{BILLING}/subscription").json()["hard_limit_usd"]
    return limit - conversation.client.get(f"{BILLING}/usage").json()["total_usage"] / 100


@pytest.mark.heavy
def test_each_job_is_a_row_with_its_quota_and_its_times(talk):
    """The list of tasks has the sandbox's jobs, newest first, with 500,000 units for a dollar."""
    conversation = talk()
    first = conversation.finished()
    second = conversation.drawn(conversation.restyle())
    newest, oldest = rows(conversation)
    assert [newest["task_id"], oldest["task_id"]] == [second, first]
    assert (oldest["quota"], newest["quota"]) == (128_000, 300_000)
    assert (oldest["platform"], oldest["action"]) == ("runwayml", "IMAGE_TO_VIDEO")
    assert (oldest["status"], oldest["model_name"]) == ("SUCCESS", "gen3a_turbo")
    assert abs(oldest["submit_time"] - time.time()) < 60
    assert oldest["finish_time"] >= oldest["submit_time"]


@pytest.mark.parametrize(
    ("query", "number"),
    [
        ({}, 2),
        ({"platform": "runwayml"}, 2),
        ({"platform": "kling"}, 0),
        ({"action": "VIDEO_TO_VIDEO"}, 0),
        ({"end_timestamp": 1}, 0),
        ({"start_timestamp": 1}, 2),
        ({"page_size": 1}, 1),
        ({"p": 2, "page_size": 1}, 1),
        ({"p": 3, "page_size": 1}, 0),
    ],
)
def test_a_list_is_filtered_and_paged(talk, query, number):
    """Platform, period, page and the size of a page select the rows."""
    conversation = talk()
    for _ in range(2):
        conversation.create()
    assert len(rows(conversation, **query)) == number


def test_a_failed_job_is_charged_and_refunded(talk):
    """The log has the refund, and the balance is as before."""
    conversation = talk(faults=["create:failed"])
    conversation.finished()
    assert sorted(row["type"] for row in rows(conversation, "/api/log/self")) == [2, 6]
    assert balance(conversation) == 100
    conversation.finished()
    assert balance(conversation) == pytest.approx(99.744)
    assert len(rows(conversation, "/api/log/self", type=2)) == 2


def test_a_key_without_a_limit_has_the_limit_of_the_real_service(talk):
    """The limit is a hundred million dollars."""
    assert balance(talk(balance=None)) == 100_000_000


@pytest.mark.parametrize("path", ["/api/task/self", "/api/log/self"])
@pytest.mark.parametrize("given", [None, "Bearer any-key", "Basic eDp5"])
def test_the_lists_demand_the_access_token(talk, path, given):
    """An API key, or nothing, is refused in the words of the dashboard."""
    conversation = talk()
    headers = {} if given is None else {"Authorization": given}
    reply = httpx.get(f"{conversation.sandbox.url}{path}", headers=headers)
    assert (reply.status_code, reply.json()["success"]) == (401, False)


def test_the_balance_demands_a_key_and_the_catalogue_nothing(talk):
    """The catalogue is public."""
    url = talk().sandbox.url
    assert httpx.get(f"{url}{BILLING}/usage").status_code == 401
    models = httpx.get(f"{url}/api/models").json()["data"]
    (turbo,) = [model for model in models if model["id"] == "gen3a_turbo"]
    assert turbo["pricing"]["per_request"] == 0.256
    assert "/runwayml/v1/image_to_video" in json.loads(turbo["endpoints"]).popitem()[1]["path"]


def test_rows_of_the_last_seconds_can_be_missing(talk):
    """The gateway may write the row of a task some time after it answered."""
    conversation = talk(faults=["tasks:late-rows", "tasks:late-rows:value=0"])
    conversation.create()
    assert rows(conversation) == []
    assert len(rows(conversation)) == 1


def test_rows_of_other_clients_can_be_among_the_own(talk):
    """They have the time and the model of the newest job."""
    conversation = talk(faults=["tasks:foreign-rows:value=2,times=2"])
    assert len(rows(conversation)) == 2
    own = conversation.create().json()["id"]
    found = rows(conversation)
    assert [row["task_id"] for row in found].count(own) == 1
    assert len({row["submit_time"] for row in found}) == 1
    assert len(found) == 3


def test_pages_can_be_missing_and_totals_wrong(talk):
    """The list does not fit together, as a client must notice."""
    conversation = talk(faults=["tasks:missing-pages:times=2", "tasks:changing-total"])
    for _ in range(2):
        conversation.create()
    assert len(rows(conversation, page_size=1)) == 1
    assert rows(conversation, page_size=1, p=2) == []
    assert conversation.account("/api/task/self").json()["data"]["total"] == 3


@pytest.mark.parametrize(
    ("route", "path"),
    [
        ("models", "/api/models"),
        ("tasks", "/api/task/self"),
        ("log", "/api/log/self"),
        ("billing", f"{BILLING}/usage"),
    ],
)
def test_each_list_can_go_wrong(talk, route, path):
    """A web page, an error in a success, half of the JSON and a server error are possible."""
    kinds = ("html", "error-in-200", "truncated-silent", "500", "truncated")
    conversation = talk(faults=[f"{route}:{kind}" for kind in kinds])

    def ask() -> httpx.Response:
        is_list = path.startswith("/api")
        return conversation.account(path) if is_list else conversation.client.get(path)

    assert "<html>" in ask().text
    assert ask().json().get("success", ask) is not True
    with pytest.raises(json.JSONDecodeError):
        ask().json()
    assert ask().status_code == 500
    with pytest.raises(httpx.RemoteProtocolError):
        ask()
    assert ask().status_code == 200


def test_each_answer_of_the_gateway_has_a_request_id(talk):
    """The id is in the header, in the text of an error, and on the row of the charge."""
    conversation = talk(faults=["create:quota", "create:no-id", "create:524"])
    refused, accepted, proxy = (conversation.create() for _ in range(3))
    header = "x-cometapi-request-id"
    assert refused.headers[header] in refused.json()["error"]["message"]
    (charge,) = rows(conversation, "/api/log/self")
    assert accepted.headers[header] == charge["request_id"]
    assert conversation.sandbox.accepted[0].request_id == charge["request_id"]
    assert header not in proxy.headers
    assert header in conversation.task("unknown").headers


def test_an_own_access_token_is_demanded():
    """The token of the configuration replaces the usual one."""
    with Sandbox(access_token="mine") as sandbox:
        url = f"{sandbox.url}/api/task/self"
        assert httpx.get(url, headers=TOKEN).status_code == 401
        assert httpx.get(url, headers={"Authorization": "Bearer mine"}).status_code == 200
