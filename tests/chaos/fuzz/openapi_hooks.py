# SPDX-License-Identifier: Apache-2.0
"""Hooks that describe the sandbox to schemathesis, in a module that only its process imports."""

import json
from importlib.resources import files
from itertools import cycle
from typing import Any

import httpx
import schemathesis

MODELS = json.loads((files("prefect_cometapi") / "models.json").read_text("utf-8"))["models"]
SOURCE = "http://127.0.0.1:9/cat"
VALID_BODIES = {
    "/runwayml/v1/image_to_video": {"promptImage": SOURCE, "model": "gen3a_turbo"},
    "/runwayml/v1/video_to_video": {"videoUri": SOURCE, "model": "gen4_aleph", "promptText": "x"},
    "/runwayml/v1/character_performance": {
        "character": {"type": "image", "uri": SOURCE},
        "reference": {"type": "video", "uri": SOURCE},
        "model": "act_two",
    },
    "/runwayml/v1/text_to_image": {
        "promptText": "x",
        "model": "gen4_image",
        "ratio": "1280:720",
        "referenceImages": [{"uri": SOURCE}],
    },
}
REQUIRED_FIELDS = {model: {*its["required"], "model"} for model, its in MODELS.items()}
INNER_FIELDS = {
    "references": [{"type", "uri"}],
    "promptImage": [{"position", "uri"}],
    "referenceImages": [{"uri"}],
    "keyframes": [{"uri", "seconds"}, {"uri", "at"}],
    "character": [{"type", "uri"}],
    "reference": [{"type", "uri"}],
    "range": [{"start_seconds", "end_seconds"}],
}
"""Required fields of the objects within a body, in each form that they may have."""

OUTPUTS = {"Task": "#/output/0", "Wrapped": "#/data/data/output/0", "Flat": "#/result_url"}
"""Places of an output's address in some of the reply shapes."""


RANGES = cycle(
    [
        *(None, "bytes=0-99", "bytes=100-", "bytes=-7", "bytes=0-99999999999999999999"),
        *("bytes=999999999-", "bytes=5-2", "bytes=-0", "bytes=-", "bytes=0-1,3-4", "lines=1-2"),
        f"bytes={'9' * 5000}-",
    ]
)
"""Ranges requested of an output, in turn; random ones would nearly all be nonsense."""


@schemathesis.hook
def before_load_schema(context: Any, raw_schema: dict[str, Any]) -> None:
    """Link tasks to their outputs; OpenAPI itself cannot express that a URL is taken apart."""
    for path, method in (("/runwayml/v1/tasks/{task_id}", "get"), ("/runway/feed", "post")):
        links = raw_schema["paths"][path][method]["responses"]["200"].setdefault("links", {})
        for target in ("output", "output_headers"):
            for shape, pointer in OUTPUTS.items():
                url = f"$response.body{pointer}#regex:"
                links[f"{target}{shape}"] = {
                    "operationId": target,
                    "parameters": {
                        "path.task_id": f"{url}/assets/([^/]+)/",
                        "path.index": f"{url}/([0-9]+)[.]mp4",
                        "query._jwt": f"{url}_jwt=(.+)",
                    },
                }


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: dict[str, Any]) -> None:
    """Make purchases in chains equal, so that each clip is drawn once, and vary the ranges."""
    if _is_purchase_in_a_chain(case):
        case.body = VALID_BODIES[case.operation.path]
    elif case.operation.path.startswith("/assets/") and (range_header := next(RANGES)):
        case.headers["Range"] = range_header


@schemathesis.hook
def after_call(context: Any, case: Any, response: Any) -> None:
    """Wait until all tasks are over, so that the following requests find their outputs."""
    if _is_purchase_in_a_chain(case):
        status_url = httpx.URL(response.request.url).copy_with(path="/_sandbox")
        while {"PENDING", "RUNNING"} & httpx.get(status_url).json()["jobs"].keys():
            pass


@schemathesis.check
def refusals_have_their_reason(ctx: Any, response: Any, case: Any) -> None:
    """Check that 500 means a missing field, 503 an unknown model, a good 400 an unknown task."""
    status, path = response.status_code, case.operation.path
    reply = json.loads(response.content) if status in {400, 500, 503} else {}
    if status == 500:
        assert reply["error"]["code"] == "invalid_request"
        assert _lacks_a_field(path, case.body), "no field is missing"
    elif status == 503:
        assert reply["error"]["code"] == "model_not_found"
        route = path.rpartition("/")[2]
        its = MODELS.get(case.body["model"])
        assert its is None or its["route"] != route, "the model is known"
    elif status == 400 and case.meta.generation.mode.is_positive:
        assert reply.get("code") == "task_not_exist", "nothing is wrong with it"
    else:
        assert status < 500, "nothing of the kind is documented"


def _is_purchase_in_a_chain(case: Any) -> bool:
    return case.meta.phase.name == "stateful" and case.operation.path in VALID_BODIES


def _lacks_a_field(path: str, body: dict[str, Any]) -> bool:
    if path == "/runway/feed":
        return "task_id" not in body
    required = REQUIRED_FIELDS.get(str(body.get("model")), {"model"})
    return bool(required - body.keys()) or _lacks_an_inner_field(body)


def _lacks_an_inner_field(inner: dict[str, Any]) -> bool:
    for name, value in inner.items():
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, dict):
                forms = INNER_FIELDS.get(name, [set()])
                if any(form - item.keys() for form in forms) or _lacks_an_inner_field(item):
                    return True
    return False
