# SPDX-License-Identifier: Apache-2.0
"""Accepted and refused requests, and the words of each refusal."""

import pytest

from prefect_cometapi.sandbox import AcceptedJob


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"promptText": "x" * 512, "seed": 999_999_999, "duration": 10, "ratio": "768:1280"},
        {"watermark": True, "seed": 0},
        {"seed": 5.0, "duration": 10.0},
        {"promptImage": "http://localhost:9/cat.jpg"},
        {"promptImage": "data:image/png;base64,AAAA"},
        {"promptImage": "https://cats.invalid/cat.jpg"},
        {"promptImage": "https://kätzchen.invalid/cat.jpg"},
    ],
)
@pytest.mark.heavy
def test_what_the_docs_allow_is_accepted(talk, changes):
    """An image-to-video request within the documented limits gets an id."""
    conversation = talk(render_seconds=60)
    created = conversation.create(**changes)
    assert created.status_code == 200
    job = conversation.sandbox.accepted[0]
    assert isinstance(job, AcceptedJob)
    assert created.json() == {"id": job.task_id}
    assert job.route == "image_to_video"
    assert changes.items() <= job.body.items()
    assert set(job.body) == {"promptImage", "model"} | set(changes)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"promptText": "x" * 1000, "seed": 4_294_967_295, "ratio": "640:480"},
        {"references": [{"type": "image", "uri": "https://cats.invalid/cat.jpg"}]},
        {"contentModeration": {"publicFigureThreshold": "low"}, "references": []},
    ],
)
@pytest.mark.heavy
def test_what_the_docs_allow_for_videos_is_accepted(talk, changes):
    """A video-to-video request within the documented limits gets an id."""
    conversation = talk(render_seconds=60)
    assert conversation.restyle(**changes).status_code == 200
    assert conversation.sandbox.accepted[0].route == "video_to_video"


@pytest.mark.parametrize(
    "changes",
    [
        {"promptText": "x" * 513},
        {"seed": -1},
        {"seed": 1_000_000_000},
        {"seed": 5.5},
        {"seed": "1"},
        {"seed": True},
        {"seed": None},
        {"duration": 7},
        {"duration": "5"},
        {"ratio": "1280x720"},
        {"ratio": "16:9"},
        {"size": "1280:720"},
        {"watermark": "yes"},
        {"promptImage": "http://example.com/cat.jpg"},
        {"promptImage": "http://127.0.0.1.example.com/cat.jpg"},
        {"promptImage": "data:text/plain,cat"},
        {"promptImage": "cat.jpg"},
        {"promptImage": ""},
        {"promptImage": "https:// /cat.jpg"},
        {"promptImage": "https://\x85/cat.jpg"},
        {"model": 3},
    ],
)
def test_what_the_docs_do_not_allow_is_refused(talk, changes):
    """An image-to-video request outside the documented limits gets a 400 that names the field."""
    conversation = talk()
    refused = conversation.create(**changes)
    error = refused.json()["error"]
    assert refused.status_code == 400
    assert (error["code"], error["type"]) == ("invalid_request", "comet_api_error")
    assert next(iter(changes)) in error["message"]
    assert "(request id: " in error["message"]
    assert conversation.sandbox.accepted == []


@pytest.mark.parametrize(
    "changes",
    [
        {"promptText": "x" * 1001},
        {"promptText": ""},
        {"seed": 4_294_967_296},
        {"references": [{"type": "image", "uri": "https://a.invalid/a.jpg"}] * 2},
        {"references": [{"type": "video", "uri": "https://a.invalid/a.jpg"}]},
        {"ratio": "1280x720"},
        {"contentModeration": {"publicFigureThreshold": "high"}},
        {"duration": 5},
        {"videoUri": "data:image/png;base64,AAAA"},
    ],
)
def test_what_the_docs_do_not_allow_for_videos_is_refused(talk, changes):
    """A video-to-video request outside the documented limits gets a 400 that names the field."""
    conversation = talk()
    refused = conversation.restyle(**changes)
    assert refused.status_code == 400
    assert next(iter(changes)) in refused.json()["error"]["message"]
    assert conversation.sandbox.accepted == []


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/runwayml/v1/image_to_video", {"model": "gen3a_turbo"}, "promptImage"),
        ("/runwayml/v1/image_to_video", {"promptImage": "https://a.invalid/a.jpg"}, "model"),
        ("/runwayml/v1/video_to_video", {"model": "gen4_aleph", "promptText": "x"}, "videoUri"),
        ("/runway/feed", {}, "task_id"),
    ],
)
def test_a_missing_field_is_a_500_that_no_retry_fixes(talk, path, body, field):
    """A missing field is a 500 whose code blames the request, as the real service answers."""
    refused = talk().client.post(path, json=body)
    assert refused.status_code == 500
    assert refused.json()["error"]["code"] == "invalid_request"
    assert field in refused.json()["error"]["message"]


JSON = {"Content-Type": "application/json"}
NOT_READ = [b'{"model": "\xff"}', b'{"seed": ' + b"9" * 5000 + b"}", b"[" * 100_000]
"""Invalid UTF-8, a number that is too long for Python, and nesting that is too deep for it."""


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"null", b"cat", *NOT_READ], ids=lambda body: repr(body[:9])
)
def test_a_body_that_is_no_object_is_refused(talk, body):
    """A body that is not a JSON object is a 400."""
    refused = talk().client.post("/runwayml/v1/image_to_video", content=body, headers=JSON)
    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == "invalid_request"


def test_half_a_surrogate_pair_is_refused_like_any_other_model(talk):
    """A model name with half a surrogate pair, which UTF-8 cannot express, is an unknown model."""
    body = b'{"model": "gen\\ud83c"}'
    refused = talk().client.post("/runwayml/v1/image_to_video", content=body, headers=JSON)
    assert refused.status_code == 503
    assert refused.json()["error"]["code"] == "model_not_found"


@pytest.mark.parametrize("model", ["gen9", "gen4_aleph"])
def test_a_model_that_is_not_served_is_a_503_that_no_retry_fixes(talk, model):
    """An unknown model is refused as a missing channel before any other check."""
    refused = talk().create(model=model, duration=7)
    assert refused.status_code == 503
    assert refused.json()["error"]["code"] == "model_not_found"
    assert f"model {model} (distributor)" in refused.json()["error"]["message"]


@pytest.mark.parametrize("version", [None, "latest"])
def test_creating_needs_the_version_header(talk, version):
    """A purchase without the documented version header is refused."""
    conversation = talk()
    del conversation.client.headers["X-Runway-Version"]
    if version:
        conversation.client.headers["X-Runway-Version"] = version
    refused = conversation.create()
    assert refused.status_code == 400
    assert "X-Runway-Version" in refused.json()["error"]["message"]
    assert conversation.task("x").json()["code"] == "task_not_exist"


@pytest.mark.parametrize("key", [None, "Bearer", "Bearer wrong-key", "Basic any-key"])
def test_a_key_is_needed_and_may_be_any_but_the_wrong_one(talk, key):
    """Without a key, or with `wrong-key`, every Runway route answers 401."""
    conversation = talk()
    del conversation.client.headers["Authorization"]
    if key:
        conversation.client.headers["Authorization"] = key
    answers = [conversation.create(), conversation.task("x"), conversation.feed("x")]
    assert [answer.status_code for answer in answers] == [401, 401, 401]
    assert answers[0].json()["error"]["type"] == "comet_api_error"
    assert conversation.sandbox.accepted == []


def test_an_unknown_task_does_not_exist(talk):
    """Neither the task nor the feed knows an unknown id."""
    conversation = talk()
    for answer in (conversation.task("x"), conversation.feed("x")):
        assert answer.status_code == 400
        assert answer.json()["code"] == "task_not_exist"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/v1/runwayml/v1/image_to_video", 404),
        ("GET", "/", 404),
        ("DELETE", "/runwayml/v1/tasks/x", 405),
        ("GET", "/redoc", 404),
    ],
)
def test_a_wrong_path_is_named(talk, method, path, status):
    """An unknown path is answered as the gateway does."""
    refused = talk().client.request(method, path)
    assert refused.status_code == status
    assert refused.json()["error"]["message"] == f"Invalid URL ({method} {path})"


def test_every_request_is_on_record(talk):
    """Method, path, route, headers, time and status of each request are recorded."""
    conversation = talk()
    conversation.task("x")
    conversation.client.get("/nowhere")
    first, second = conversation.sandbox.requests
    assert (first.method, first.path, first.route) == ("GET", "/runwayml/v1/tasks/x", "task")
    assert first.headers["authorization"] == "Bearer any-key"
    assert (first.fault, first.status, second.route, second.status) == (None, 400, "other", 404)
    assert first.at <= second.at


def test_the_census_counts(talk):
    """A client of a sandbox process can read the number of jobs that would have been paid for."""
    conversation = talk(faults=["create:failed", "create:429"])
    conversation.finished()
    conversation.create()
    conversation.finished()
    assert conversation.client.get("/_sandbox").json() == {
        "accepted": 2,
        "requests": {"create": 3, "other": 1},
        "jobs": {"FAILED": 1, "SUCCEEDED": 1},
    }


def test_clearing_forgets_everything(talk):
    """After `clear`, a sandbox has no jobs, no requests and no planned faults."""
    conversation = talk(faults=["create:429:times=5"])
    conversation.create()
    conversation.sandbox.clear()
    assert (conversation.sandbox.accepted, conversation.sandbox.requests) == ([], [])
    assert conversation.create().status_code == 200


IMAGE, VIDEO = "http://127.0.0.1:9/cat.jpg", "http://127.0.0.1:9/cat.mp4"
BODIES = {
    "gen4.5": {"promptImage": IMAGE, "promptText": "x", "ratio": "960:960", "duration": 2},
    "gen4_turbo": {"promptImage": [{"uri": IMAGE, "position": "first"}], "ratio": "960:960"},
    "aleph2": {"videoUri": VIDEO, "keyframes": [{"uri": IMAGE, "seconds": 1.5}]},
    "act_two": {
        "character": {"type": "video", "uri": VIDEO},
        "reference": {"type": "video", "uri": VIDEO},
    },
    "gen4_image": {"promptText": "x", "ratio": "720:720", "referenceImages": [{"uri": IMAGE}]},
}
ROUTES = {
    "gen4.5": "image_to_video",
    "gen4_turbo": "image_to_video",
    "aleph2": "video_to_video",
    "act_two": "character_performance",
    "gen4_image": "text_to_image",
}


@pytest.mark.parametrize("model", BODIES)
@pytest.mark.heavy
def test_each_known_model_is_served_on_its_route(talk, model):
    """Each model is accepted with its own fields, and its job ends with a file."""
    conversation = talk()
    path = f"/runwayml/v1/{ROUTES[model]}"
    created = conversation.client.post(path, json={**BODIES[model], "model": model})
    assert created.status_code == 200, created.text
    url = conversation.output(conversation.drawn(created))
    file = conversation.client.get(url)
    is_picture = model == "gen4_image"
    assert file.headers["content-type"] == ("image/png" if is_picture else "video/mp4")
    assert file.content[:4] == b"\x89PNG" if is_picture else file.content[4:8] == b"ftyp"
    assert conversation.client.head(url).headers["etag"] == file.headers["etag"]


@pytest.mark.parametrize(
    ("model", "changes", "status", "named"),
    [
        ("gen4.5", {"duration": 11}, 400, "duration"),
        ("gen4.5", {"duration": None}, 500, "duration"),
        ("gen4.5", {"promptText": "\N{PARTY POPPER}" * 501}, 400, "1002"),
        ("gen4_turbo", {"promptImage": [{"uri": IMAGE, "position": "last"}]}, 400, "position"),
        ("aleph2", {"references": []}, 400, "references"),
        ("act_two", {"expressionIntensity": 6}, 400, "expressionIntensity"),
        ("act_two", {"reference": {"type": "image", "uri": IMAGE}}, 400, "reference"),
        ("gen4_image", {"referenceImages": []}, 400, "referenceImages"),
        ("gen4_image", {"referenceImages": None}, 500, "referenceImages"),
    ],
)
def test_what_a_model_does_not_allow_is_refused(talk, model, changes, status, named):
    """A field outside the limits of its model is a 400 that names it, a missing one a 500."""
    conversation = talk()
    body = {**BODIES[model], "model": model, **changes}
    sent = {name: value for name, value in body.items() if value is not None}
    refused = conversation.client.post(f"/runwayml/v1/{ROUTES[model]}", json=sent)
    assert refused.status_code == status
    assert refused.json()["error"]["code"] == "invalid_request"
    assert named in refused.json()["error"]["message"]
    assert conversation.sandbox.accepted == []
