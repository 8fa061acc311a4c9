# SPDX-License-Identifier: Apache-2.0
"""Deployments of the package, as Prefect itself deploys, validates and runs them."""

import json
import os
import re
import shlex
import subprocess
import sys
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import Any

import av
import httpx
import pytest

pytestmark = pytest.mark.server

PREFECT_YAML = (files("prefect_cometapi.deployments") / "prefect.yaml").read_text(encoding="utf-8")
NAMES = {
    "image-to-video": "daily",
    "video-to-video": "weekly",
    "character-performance": "monthly",
    "text-to-image": "picture",
    "generate-batch": "catalogue",
    "generate-batch-shard": "shard",
    "collect": "collector",
}
SINGLE = ["image-to-video", "video-to-video", "character-performance", "text-to-image"]
BUYING = [*SINGLE, "generate-batch"]
LIMITS = {**dict.fromkeys(SINGLE, 10), "generate-batch-shard": 100}


class Api:
    """Client of the Prefect server's API, as the UI uses it."""

    def __init__(self, url: str) -> None:
        self.http = httpx.Client(base_url=url, timeout=60)

    def deployment(self, flow: str) -> dict[str, Any]:
        answer = self.http.get(f"/deployments/name/{flow}/{NAMES[flow]}")
        return answer.raise_for_status().json()

    def run(self, flow: str, parameters: dict[str, Any] | None = None) -> httpx.Response:
        """Create a run of a deployment, as the form in the UI does."""
        address = f"/deployments/{self.deployment(flow)['id']}/create_flow_run"
        given = {} if parameters is None else {"parameters": parameters}
        return self.http.post(address, json={"state": {"type": "SCHEDULED"}, **given})

    def runs(self, flow: str) -> list[dict[str, Any]]:
        query = {"deployments": {"id": {"any_": [self.deployment(flow)["id"]]}}}
        return self.http.post("/flow_runs/filter", json=query).raise_for_status().json()


@pytest.fixture(scope="module")
def deployed(prefect_server, tmp_path_factory) -> Api:
    """Create all deployments with the commands in the comments of prefect.yaml."""
    folder = tmp_path_factory.mktemp("deploy")
    (folder / "prefect.yaml").write_text(PREFECT_YAML, encoding="utf-8")
    env = {"PREFECT_API_URL": prefect_server, "PREFECT_HOME": str(folder / "prefect")}
    create, deploy, _start = commented_commands(PREFECT_YAML)
    run_command(create, cwd=folder, env=env)
    run_command(deploy, cwd=folder, env=env)
    return Api(prefect_server)


def commented_commands(text: str) -> list[str]:
    """Return the commands in the comment at the top of prefect.yaml."""
    return re.findall(r"^#   (prefect .+)$", text, re.MULTILINE)


def run_command(line: str, *more: str, cwd: Path, env: dict[str, str]) -> str:
    """Run a command as it is written, in an environment; return its output."""
    script, *words = shlex.split(line)
    done = subprocess.run(
        [Path(sys.executable).parent / script, *words, *more],
        cwd=cwd,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("flow", NAMES)
@pytest.mark.heavy
def test_all_flows_are_deployed_from_the_package_alone(deployed, flow):
    """A deployment names its flow by module, so a worker needs only the package."""
    deployment = deployed.deployment(flow)
    module, name = deployment["entrypoint"].rsplit(".", 1)
    assert module == "prefect_cometapi.flows"
    assert getattr(import_module(module), name).name == flow
    assert deployment["pull_steps"] in (None, [])
    assert deployment["work_pool_name"] == "videos"


@pytest.mark.parametrize("flow", BUYING)
def test_nothing_is_bought_before_the_user_says_so(deployed, flow):
    """A new deployment that buys has a schedule that is not active."""
    (schedule,) = deployed.deployment(flow)["schedules"]
    assert schedule["active"] is False
    assert schedule["schedule"]["timezone"] == "UTC"
    assert [run for run in deployed.runs(flow) if run["auto_scheduled"]] == []


@pytest.mark.parametrize("flow", NAMES)
def test_a_deployment_has_a_description_and_tags(deployed, flow):
    """Description and tags in the file are those in the UI."""
    deployment = deployed.deployment(flow)
    bids = "Set your parameters before you activate the schedule." in deployment["description"]
    assert bids == (flow in BUYING)
    assert deployment["tags"] == ["cometapi", flow]


@pytest.mark.parametrize("flow", NAMES)
def test_a_deployment_has_a_limit_of_runs_at_a_time(deployed, flow):
    """Further runs of a deployment wait at its limit, and those of the collector are cancelled."""
    deployment = deployed.deployment(flow)
    assert deployment["global_concurrency_limit"]["limit"] == LIMITS.get(flow, 1)
    strategy = deployment["concurrency_options"]["collision_strategy"]
    assert strategy == ("CANCEL_NEW" if flow == "collect" else "ENQUEUE")


def test_the_collector_is_scheduled_from_the_start(deployed):
    """The collector, which buys nothing, is scheduled from the start."""
    deployment = deployed.deployment("collect")
    (schedule,) = deployment["schedules"]
    assert schedule["active"] is True
    assert "Buys nothing." in deployment["description"]


@pytest.mark.parametrize("flow", SINGLE)
def test_every_field_of_the_form_has_a_title_and_a_description(deployed, flow):
    """Each parameter and each field of the request has a title and a description in the form."""
    schema = deployed.deployment(flow)["parameter_openapi_schema"]
    assert list(schema["properties"]) == [
        "request",
        "credentials",
        "storage",
        "idempotency_key",
        "wait",
        "task_id",
        "variation",
    ]
    (request,) = (
        model for name, model in schema["definitions"].items() if name.endswith("Request")
    )
    own = {name: field for name, field in schema["properties"].items() if name != "request"}
    for name, field in {**own, **request["properties"]}.items():
        # Pydantic leaves out a title that the model of the field has, too.
        model = schema["definitions"].get(field.get("$ref", "").rpartition("/")[2], {})
        assert field.get("title") or model.get("title"), name
        assert field.get("description", "").endswith("."), name


@pytest.mark.parametrize(
    ("flow", "change", "reason"),
    [
        ("image-to-video", {"duration": 7}, "7 is not one of [5, 10, None]"),
        ("image-to-video", {"ratio": "16:9"}, "'16:9' is not one of ['1280:720', '720:1280'"),
        ("image-to-video", {"seed": -1}, "-1 is less than the minimum of 0"),
        ("image-to-video", {"promptText": "x" * 513}, "is too long"),
        ("image-to-video", {"durationn": 5}, "'durationn' was unexpected"),
        ("video-to-video", {"promptText": "x" * 1001}, "is too long"),
        ("video-to-video", {"promptText": ""}, "should be non-empty"),
        ("image-to-video", {"model": "gen4.5"}, "'1280:768' is not one of ['1280:720'"),
        ("video-to-video", {"model": "aleph2", "references": []}, "is not of type 'null'"),
        ("character-performance", {"expressionIntensity": 6}, "6 is greater than the maximum of 5"),
        ("text-to-image", {"referenceImages": []}, "should be non-empty"),
    ],
)
@pytest.mark.heavy
def test_a_run_that_would_fail_is_refused_before_it_exists(deployed, flow, change, reason):
    """The server refuses values that a documented model does not allow, with the allowed ones."""
    before = len(deployed.runs(flow))
    request = deployed.deployment(flow)["parameters"]["request"] | change
    answer = deployed.run(flow, {"request": request})
    assert answer.is_client_error, answer.text
    assert reason in answer.json()["detail"]
    assert len(deployed.runs(flow)) == before


def test_another_model_is_not_held_to_these_limits(deployed):
    """The form accepts any value for an undocumented model, which CometAPI may refuse."""
    request = {"promptImage": "https://example.com/a.jpg", "model": "gen9", "duration": 7}
    answer = deployed.run("image-to-video", {"request": request})
    assert answer.status_code == 201, answer.text
    deployed.http.delete(f"/flow_runs/{answer.json()['id']}").raise_for_status()


@pytest.mark.heavy
def test_a_worker_runs_the_deployment_as_it_comes(
    deployed, sandbox, tmp_path, prefect_server, monkeypatch
):
    """A worker with only an API key makes the video and stores it in its working directory."""
    monkeypatch.delenv("COMETAPI_STORAGE")
    created = deployed.run("image-to-video")
    assert created.status_code == 201, created.text
    *_, start = commented_commands(PREFECT_YAML)
    env = {"PREFECT_API_URL": prefect_server, "PREFECT_HOME": str(tmp_path / "prefect")}
    run_command(start, "--run-once", cwd=tmp_path, env=env)

    run = deployed.http.get(f"/flow_runs/{created.json()['id']}").raise_for_status().json()
    assert run["state_type"] == "COMPLETED", run["state"]
    assert len(sandbox.accepted) == 1
    assert sandbox.accepted[0].body["promptText"] == "slow zoom, soft light"
    (file,) = (tmp_path / "videos").glob("*.mp4")
    with av.open(str(file), "r") as video:
        stream = video.streams.video[0]
        assert (stream.width, stream.height) == (1280, 768)
    origin = json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))
    assert origin["task_id"] == sandbox.accepted[0].task_id
