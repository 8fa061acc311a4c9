# SPDX-License-Identifier: Apache-2.0
"""Each route has a command whose arguments and options are the fields of its request."""

import json
from pathlib import Path
from typing import Any

import pytest
from cyclopts import App

from prefect_cometapi.deployments import cli
from prefect_cometapi.deployments.commands.deploy import served, with_all_routes
from prefect_cometapi.deployments.commands.generate import command_of
from prefect_cometapi.runway import InvalidRequest
from prefect_cometapi.runway.models.requests import ROUTES

IMAGE, VIDEO = "https://example.com/cat.jpg", "https://example.com/cat.mp4"


@pytest.fixture
def requested():
    """Return a function that parses a command line and returns the body and the other options."""
    app, seen = App(), []
    for kind in ROUTES.values():

        def run(request, **options):
            seen.append((request.to_wire(), options))

        app.command(command_of(kind, cli._common, run), name=kind.route.replace("_", "-"))

    def parse(*words: str) -> tuple[dict[str, Any], dict[str, Any]]:
        app([*words], exit_on_error=False, result_action="return_value")
        return seen[-1]

    return parse


@pytest.mark.parametrize(
    ("words", "body"),
    [
        (
            ["image-to-video", IMAGE, "zoom", "--duration", "4", "--ratio", "1280:720",
             "--model", "gen4.5", "--no-watermark", "--extra", '{"audio": true}'],
            {"promptImage": IMAGE, "model": "gen4.5", "promptText": "zoom", "duration": 4,
             "ratio": "1280:720", "watermark": False, "audio": True},
        ),
        (
            ["video-to-video", VIDEO, "--model", "aleph2", "--target-aspect-ratio", "16:9",
             "--keyframes", f'[{{"uri": "{IMAGE}", "at": 0.5}}]'],
            {"videoUri": VIDEO, "model": "aleph2", "targetAspectRatio": "16:9",
             "keyframes": [{"uri": IMAGE, "at": 0.5}]},
        ),
        (
            ["video-to-video", VIDEO, "dawn", "--reference", IMAGE],
            {"videoUri": VIDEO, "model": "gen4_aleph", "promptText": "dawn",
             "references": [{"type": "image", "uri": IMAGE}]},
        ),
        (
            ["text-to-image", "@cat", "--ratio", "720:720", "--reference-image", f"cat={IMAGE}",
             "--reference-image", IMAGE],
            {"promptText": "@cat", "model": "gen4_image", "ratio": "720:720",
             "referenceImages": [{"uri": IMAGE, "tag": "cat"}, {"uri": IMAGE}]},
        ),
        (
            ["character-performance", IMAGE, VIDEO, "--body-control",
             "--expression-intensity", "3"],
            {"character": {"type": "image", "uri": IMAGE}, "model": "act_two",
             "reference": {"type": "video", "uri": VIDEO}, "bodyControl": True,
             "expressionIntensity": 3},
        ),
    ],
)  # fmt: skip
def test_a_command_line_becomes_the_request(requested, words, body):
    """Arguments, options, lists and JSON become the body that is sent."""
    assert requested(*words)[0] == body


def test_the_options_of_all_commands_are_passed_on(requested):
    """Credentials, storage, key, wait, task id and JSON are options of each command."""
    _, options = requested("image-to-video", IMAGE, "--idempotency-key", "sku-17", "--no-wait")
    assert options == {
        "credentials": None,
        "storage": None,
        "idempotency_key": "sku-17",
        "wait": False,
        "task_id": None,
        "variation": 1,
        "json": False,
    }


def test_a_local_file_is_a_source_of_its_kind(requested, tmp_path):
    """The suffix of a local file of a character says whether it is a video."""
    path = tmp_path / "cat #1?.mp4"
    path.write_bytes(b"abc")
    body, _ = requested("character-performance", str(path), VIDEO)
    assert body["character"] == {"type": "video", "uri": str(path)}
    assert body["character"]["uri"].kind == "video"


@pytest.mark.parametrize(
    ("source", "content", "kind"),
    [
        ("act", b"\0\0\0\x18ftypisom", "video"),
        ("act.mp4", b"\xff\xd8\xff\xe0", "image"),
        ("act.jfif", b"\xff\xd8\xff\xe0", "image"),
        ("https://example.com/act.MP4?name=a.png", None, "video"),
        ("s3://bucket/act.mov", None, "video"),
        ("s3-bucket/prod/act.mov", None, "video"),
        ("data:video/mp4;base64,AAAA", None, "video"),
    ],
)
def test_the_content_of_a_local_character_says_its_kind(requested, source, content, kind):
    """The name or the label of a source decides where its content is not at hand."""
    if content:
        Path(source).write_bytes(content)
    body, _ = requested("character-performance", source, VIDEO)
    assert body["character"]["type"] == kind


def test_an_option_that_is_not_json_is_named(requested):
    """The error names the option, and nothing was charged."""
    with pytest.raises(InvalidRequest, match="--extra is not valid JSON"):
        requested("image-to-video", IMAGE, "--extra", "{audio: yes}")


def test_every_route_is_a_command_and_a_served_deployment():
    """No route is left out of the command line or of `serve`."""
    for route in ROUTES:
        name = route.replace("_", "-")
        command, _bound, _ignored = cli.app.parse_args(
            [name, IMAGE, VIDEO][: 2 if "text" in name else 3]
        )
        assert command.__name__ == route
    names = {deployment.flow_name for deployment in served()}
    others = {"generate-batch", "generate-batch-shard", "collect"}
    assert names == others | {route.replace("_", "-") for route in ROUTES}


def test_a_route_without_an_entry_gets_a_deployment():
    """A route that prefect.yaml does not name is deployed with the example of its request."""
    given = {"entrypoint": "prefect_cometapi.flows.image_to_video", "description": "Ours."}
    all_routes = with_all_routes({"pull": [], "deployments": [given]}, "films")
    assert all_routes["deployments"][0].items() >= {"entrypoint": given["entrypoint"]}.items()
    added = {one["entrypoint"].rpartition(".")[2]: one for one in all_routes["deployments"][1:]}
    assert added.keys() == ROUTES.keys() - {"image_to_video"}
    example = added["text_to_image"]
    assert example["work_pool"]["name"] == "films"
    assert example["schedules"] == []
    ROUTES["text_to_image"].model_validate(json.loads(json.dumps(example["parameters"]["request"])))
