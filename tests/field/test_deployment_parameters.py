# SPDX-License-Identifier: Apache-2.0
"""Requests as parameters of deployments, in every form that a call takes."""

import inspect
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.deployments import run_deployment
from prefect.flow_engine import run_flow
from prefect.schedules import Cron
from prefect.utilities.callables import parameter_schema
from prefect.utilities.schema_tools.validation import validate

from prefect_cometapi import flows
from prefect_cometapi.runway import (
    Character,
    CharacterPerformanceRequest,
    GenerationRequest,
    ImageToVideoRequest,
    Performance,
    TaggedImage,
    TextToImageRequest,
    VideoToVideoRequest,
)
from prefect_cometapi.runway.models.model_limits import known_models
from prefect_cometapi.runway.models.requests import ContentModeration

CAT, CLIP = "https://example.com/cat.jpg", "https://example.com/cat.mp4"
REQUESTS: list[GenerationRequest] = [
    ImageToVideoRequest(
        prompt_image=CAT, content_moderation=ContentModeration(public_figure_threshold="low")
    ),
    VideoToVideoRequest(video_uri=CLIP, prompt_text="warm dawn light"),
    CharacterPerformanceRequest(
        character=Character(type="image", uri=CAT),
        reference=Performance(uri=CLIP),
        body_control=True,
    ),
    TextToImageRequest(
        prompt_text="@cat in oil",
        ratio="1280:720",
        reference_images=[TaggedImage(uri=CAT, tag="cat")],
    ),
]
EACH = pytest.mark.parametrize("request_", REQUESTS, ids=lambda request: request.route)


def problems(flow: Any, parameters: dict[str, Any]) -> list[str]:
    """Return what Prefect's server says about the parameters of a run."""
    schema = parameter_schema(flow).model_dump_for_openapi()
    return [error.message for error in validate(parameters, schema)]


def received(flow: Any, stored: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments that a flow gets from the stored parameters of its run."""
    parameters = inspect.signature(flow.fn).parameters.values()
    defaults = {one.name: one.default for one in parameters if one.default is not one.empty}
    return flow.validate_parameters({**defaults, **stored})


@EACH
@pytest.mark.parametrize("prefix", ["", "a"])
def test_a_request_object_is_a_parameter_of_each_route(request_, prefix):
    """A request object in to_deployment reaches the flow of its route and the twin unchanged."""
    flow = getattr(flows, f"{prefix}{request_.route}")
    deployment = flow.to_deployment("ours", parameters={"request": request_})
    stored = deployment.model_dump(mode="json", include={"parameters"})["parameters"]
    assert problems(flow, stored) == []
    assert received(flow, stored)["request"] == request_


@EACH
def test_the_names_of_python_are_parameters_of_each_route(request_):
    """JSON with the names that Python uses is accepted and read as in a call."""
    given = {"request": request_.model_dump(mode="json", by_alias=False, exclude_none=True)}
    flow = getattr(flows, request_.route)
    assert problems(flow, given) == []
    assert received(flow, given)["request"] == request_


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"prompt_text": "x" * 513}, "is too long"),
        ({"prompt_image": 7}, "7 is not of type 'string'"),
        ({"prompt_image": None}, "None is not of type 'string'"),
        ({"prompt_txt": "slow zoom"}, "('prompt_txt' was unexpected)"),
        ({"content_moderation": {"public_figure": "low"}}, "is not valid under any"),
        ({"model": "gen4_turbo"}, "'ratio' is a required property"),
    ],
)
def test_the_names_of_python_are_checked_like_the_others(change, reason):
    """A wrong value is refused before a run exists, by whichever name the field is given."""
    found = problems(flows.image_to_video, {"request": {"prompt_image": CAT, **change}})
    assert any(reason in problem for problem in found)
    assert not any("'prompt_image' was unexpected" in problem for problem in found)


@pytest.mark.parametrize("given", [{}, {"prompt_text": "slow zoom"}])
def test_a_missing_field_is_named_as_in_the_form(given):
    """A request without its image is refused with the name that the form has for it."""
    assert "'promptImage' is a required property" in problems(
        flows.image_to_video, {"request": given}
    )


@EACH
def test_the_form_offers_wait_as_one_choice(request_):
    """The three values of wait are one list, without the types that would make them a switch."""
    schema = parameter_schema(getattr(flows, request_.route)).model_dump_for_openapi()
    wait = schema["properties"]["wait"]
    assert wait["enum"] == [True, "suspend", False]
    assert wait["default"] is True
    assert not {"type", "anyOf"} & wait.keys()


@EACH
def test_the_form_offers_the_known_models_and_takes_any_other(request_):
    """The model is a list of those that are known on the route, or a text."""
    flow = getattr(flows, request_.route)
    schema = parameter_schema(flow).model_dump_for_openapi()
    model = schema["definitions"][type(request_).__name__]["properties"]["model"]
    listed, text = model["anyOf"]
    assert listed["enum"] == [*known_models(request_.route)]
    assert "type" not in listed  # the form opens the first part that has the type of the value
    assert text["type"] == "string"
    given = request_.model_dump(mode="json", by_alias=True, exclude_none=True)
    for name in (*listed["enum"], "gen9_preview"):
        assert not any(
            "model" in one for one in problems(flow, {"request": given | {"model": name}})
        )
    assert problems(flow, {"request": given | {"model": ""}})


@EACH
def test_the_description_of_a_required_field_says_so(request_):
    """A required field with two names says that it is required, as the form cannot."""
    schema = parameter_schema(getattr(flows, request_.route)).model_dump_for_openapi()
    described = schema["definitions"][type(request_).__name__]
    for name, field in type(request_).model_fields.items():
        if field.is_required() and field.alias != name:
            assert described["properties"][field.alias]["description"].startswith("Required. ")
            assert described["required"].count(field.alias) == 0


def test_a_batch_takes_the_request_objects_of_all_routes():
    """Request objects in a deployment of generate_batch become the items that a call makes."""
    given = [*REQUESTS, {"id": "five", "request": REQUESTS[0]}]
    deployment: Any = flows.generate_batch.to_deployment("ours", parameters={"requests": given})
    stored = deployment.model_dump(mode="json", include={"parameters"})["parameters"]
    assert problems(flows.generate_batch, stored) == []
    plan = flows.batch.plan.make_plan(stored["requests"], "ours")
    assert plan.bad == []
    assert [item.request for item in plan.items] == [*REQUESTS, REQUESTS[0]]


@pytest.mark.server
@pytest.mark.heavy
def test_a_deployment_runs_with_requests_as_in_a_call(prefect_server, sandbox):
    """Objects and both spellings work in a deployment, its schedule, its runs and the command."""
    photo = sandbox.url + "/assets/cat.jpg"
    deployment: Any = flows.image_to_video.to_deployment(
        "field",
        parameters={"request": ImageToVideoRequest(prompt_image=photo, prompt_text="slow zoom")},
        schedule=Cron(
            "0 6 * * *", parameters={"request": ImageToVideoRequest(prompt_image=photo, seed=7)}
        ),
        paused=True,
    )
    deployment.apply()
    by_default: Any = run_deployment("image-to-video/field", timeout=0)
    with_object: Any = run_deployment(
        "image-to-video/field",
        parameters={"request": ImageToVideoRequest(prompt_image=photo, duration=10)},
        timeout=0,
    )
    given = json.dumps({"prompt_image": photo, "prompt_text": "fast zoom"})
    command = [Path(sys.executable).parent / "prefect", "deployment", "run"]
    env = {**os.environ, "PREFECT_API_URL": prefect_server}
    subprocess.run(
        [*command, "image-to-video/field", "-p", f"request={given}"],
        env=env,
        check=True,
        capture_output=True,
    )
    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs()
        (typed,) = [one for one in runs if "fast zoom" in str(one.parameters)]
    for run in (by_default, with_object, typed):
        run_flow(flows.image_to_video, flow_run=run)
    texts = [sent.body.get("promptText") for sent in sandbox.accepted]
    assert texts == ["slow zoom", None, "fast zoom"]
    assert sandbox.accepted[1].body["duration"] == 10
