# SPDX-License-Identifier: Apache-2.0
"""The documentation page and the OpenAPI match the routes."""

from html.parser import HTMLParser

import pytest

from prefect_cometapi.sandbox.faults.plan import KINDS


class Links(HTMLParser):
    """Collector of a page's links and scripts."""

    def __init__(self, page):
        super().__init__()
        self.targets, self.ids, self.scripts = [], set(), 0
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        named = dict(attrs)
        self.targets += [named[name] for name in ("src", "href") if name in named]
        self.ids.add(named.get("id"))
        self.scripts += tag == "script"


@pytest.fixture
def openapi(talk):
    """Return the OpenAPI as it is served."""
    return talk().client.get("/openapi.json").json()


def test_the_page_needs_nothing_from_elsewhere(talk):
    """Every link stays on this server, every anchor exists, and no script runs."""
    links = Links(talk().client.get("/docs").text)
    assert links.scripts == 0
    for target in links.targets:
        assert target in {"data:,", "/openapi.json", "/_sandbox"} or target[1:] in links.ids


def test_the_page_shows_every_route_and_every_fault(talk, openapi):
    """The page shows all routes of the OpenAPI and all faults."""
    page = talk().client.get("/docs").text
    assert all(path in page for path in openapi["paths"])
    assert all(f"<code>{kind}</code>" in page for kind in KINDS)


def test_the_openapi_promises_no_answer_that_is_never_given(openapi):
    """FastAPI's own 422 is not announced, as the sandbox never sends it."""
    for operations in openapi["paths"].values():
        for operation in operations.values():
            assert "422" not in operation["responses"]
    assert not any("Validation" in name for name in openapi["components"]["schemas"])


def test_the_openapi_links_a_purchase_to_its_task(talk, openapi):
    """The links in the OpenAPI lead from a purchase to its task on both routes."""
    conversation = talk(shapes=["wrapped"])
    routes = {
        operation["operationId"]: (method, path)
        for path, operations in openapi["paths"].items()
        for method, operation in operations.items()
    }
    for buy in (conversation.create, conversation.restyle):
        created = buy()
        announced = openapi["paths"][created.request.url.path]["post"]["responses"]["200"]
        for link in announced["links"].values():
            method, path = routes[link["operationId"]]
            given = {**link.get("parameters", {}), **link.get("requestBody", {})}
            assert given == {"task_id": "$response.body#/id"}
            named = {"task_id": created.json()["id"]}
            body = named if "requestBody" in link else None
            answer = conversation.client.request(method, path.format(**named), json=body)
            assert answer.json()["data"]["task_id"] == created.json()["id"]


def test_the_examples_in_the_openapi_work(talk, openapi):
    """Each example in the OpenAPI is accepted as a job."""
    conversation = talk(render_seconds=60)
    tried = 0
    for path, operations in openapi["paths"].items():
        body = operations.get("post", {}).get("requestBody", {"content": {}})["content"]
        for example in body.get("application/json", {}).get("examples", {}).values():
            assert conversation.client.post(path, json=example["value"]).status_code == 200
            tried += 1
    assert tried == len(conversation.sandbox.accepted) == 2
