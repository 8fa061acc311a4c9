# SPDX-License-Identifier: Apache-2.0
"""A request is checked against every documented limit before anything is bought."""

import base64
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from prefect_cometapi.runway import (
    ContentModeration,
    ImageToVideoRequest,
    Reference,
    VideoToVideoRequest,
)

DOCUMENTED = json.loads((Path(__file__).parents[1] / "documented.json").read_text(encoding="utf-8"))
MODELS = {"image_to_video": ImageToVideoRequest, "video_to_video": VideoToVideoRequest}
IMAGE, VIDEO = "https://example.com/cat.jpg", "https://example.com/cat.mp4"
NEW_MODEL = "gen9_ultra"
RATIOS = [
    "1280:720",
    "720:1280",
    "1104:832",
    "832:1104",
    "960:960",
    "1584:672",
    "1280:768",
    "768:1280",
]


def data_uri(size: int, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(bytes(size)).decode()}"


def problem_of(model: Any, body: dict[str, Any]) -> str:
    with pytest.raises(ValidationError) as caught:
        model.model_validate(body)
    return str(caught.value)


def image(**fields: Any) -> dict[str, Any]:
    return {"promptImage": IMAGE, **fields}


def video(**fields: Any) -> dict[str, Any]:
    return {"videoUri": VIDEO, "promptText": "more rain", **fields}


optional_image = st.fixed_dictionaries(
    {"promptImage": st.just(IMAGE), "model": st.sampled_from(["gen3a_turbo", NEW_MODEL])},
    optional={
        "promptText": st.text(max_size=600),
        "duration": st.integers(-2, 70),
        "ratio": st.sampled_from([*RATIOS, "640:480"]),
        "seed": st.integers(-2, 2**33),
        "watermark": st.booleans(),
    },
)
optional_video = st.fixed_dictionaries(
    {"videoUri": st.just(VIDEO), "promptText": st.text(max_size=1100)},
    optional={
        "model": st.sampled_from(["gen4_aleph", NEW_MODEL]),
        "references": st.lists(st.just({"type": "image", "uri": IMAGE}), max_size=3),
        "ratio": st.sampled_from([*RATIOS, "640:480"]),
        "seed": st.integers(-2, 2**33),
        "contentModeration": st.sampled_from([{"publicFigureThreshold": "low"}]),
    },
)


def validated(model: Any, body: dict[str, Any]) -> Any:
    try:
        return model.model_validate(body)
    except ValidationError:
        return None


@pytest.mark.parametrize(
    ("route", "body"), [(route, body) for route in MODELS for body in DOCUMENTED["requests"][route]]
)
def test_every_documented_body_is_accepted_and_sent_as_it_stands(route, body):
    """A request copied from the docs is accepted and sent unchanged."""
    request = MODELS[route].model_validate(body)
    assert request.to_wire() == body
    assert request.route == route


@pytest.mark.parametrize(("model", "bodies"), [(ImageToVideoRequest, optional_image)])
@given(data=st.data())
def test_an_image_request_sends_what_was_given_and_nothing_else(model, bodies, data):
    """A field that is not set is not sent; one that is set arrives unchanged."""
    body = data.draw(bodies)
    request = validated(model, body)
    if request is not None:
        assert request.to_wire() == body


@given(body=optional_video)
def test_a_video_request_sends_what_was_given_and_nothing_else(body):
    """Only the documented model is filled in if none is given."""
    request = validated(VideoToVideoRequest, body)
    if request is not None:
        assert request.to_wire() == {"model": "gen4_aleph", **body}


@given(body=optional_image)
def test_a_request_survives_the_way_through_json(body):
    """Prefect stores parameters as JSON, from which the same request is read."""
    request = validated(ImageToVideoRequest, body)
    if request is not None:
        again = ImageToVideoRequest.model_validate_json(request.model_dump_json(by_alias=True))
        assert again == request
        assert again.fingerprint() == request.fingerprint()
        assert ImageToVideoRequest.model_validate(request.model_dump()) == request


@given(one=optional_image, other=optional_image)
def test_fingerprints_are_equal_for_equal_requests_only(one, other):
    """The fingerprint identifies the request, so a changed field changes it."""
    first, second = validated(ImageToVideoRequest, one), validated(ImageToVideoRequest, other)
    if first is not None and second is not None:
        assert (first.fingerprint() == second.fingerprint()) == (first == second)


def test_the_fingerprint_is_the_same_in_every_process():
    """The fingerprint is stored in a database, so no version of this package may change it."""
    assert ImageToVideoRequest(prompt_image=IMAGE, prompt_text="ä").fingerprint() == (
        "bdfd82f178e6b1e513855383f34caedb2024dfa236a64bbce6bc4475b3bca89c"
    )
    source = f"data:image/png;base64,{base64.b64encode(b'x' * 30).decode()}"
    assert ImageToVideoRequest(prompt_image=source).fingerprint() == (
        "ef72dfd34a7191e77ce7e4d13e3e085392dce936308ba9b55d1721caa758bc30"
    )


def test_snake_case_and_camel_case_name_the_same_fields():
    """Python code and JSON documents describe the same request."""
    by_name = ImageToVideoRequest(prompt_image=IMAGE, prompt_text="rain")
    assert by_name == ImageToVideoRequest.model_validate(image(promptText="rain"))


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("promptText", "x" * 513, "at most 512 characters, got 513"),
        ("duration", 7, "5 or 10 seconds, got 7"),
        ("duration", 0, "greater than or equal to 1"),
        ("seed", -1, "greater than or equal to 0"),
        ("seed", 1_000_000_000, "0 to 999999999, got 1000000000"),
        ("ratio", "1280x720", "must be width:height, for example 1280:720, got '1280x720'"),
        ("ratio", "640:480", "one of 1280:720, 720:1280"),
        ("ratio", "1280:72\N{ARABIC-INDIC DIGIT ZERO}", "must be width:height"),
        ("ratio", 1280, "valid string"),
        ("promptImage", "http://example.com/cat.jpg", "must be an https:// URL"),
        ("promptImage", "ftp://example.com/cat.jpg", "must be an https:// URL"),
        ("promptImage", "https:///cat.jpg", "must be an https:// URL"),
        ("promptImage", "https://example.com/a cat.jpg", "must not contain spaces"),
        ("promptImage", "https://example.com:port/cat.jpg", "this is not a valid URL"),
        ("promptImage", f"https://example.com/{'x' * 2048}", "2048 characters"),
        ("promptImage", 5, "a stored result, and not int"),
        ("promptImage", data_uri(9, "video/mp4"), "data:image/<type>;base64,<data>"),
        ("promptImage", "data:image/png;base64,abcde", "is not valid base64"),
        ("promptImage", data_uri(5_000_001), "5,000,000 bytes of image"),
        ("promptimage", IMAGE, "Extra inputs are not permitted"),
    ],
)
def test_a_bad_image_request_is_told_which_field_and_what_is_allowed(field, value, allowed):
    """A request that the docs forbid is not sent."""
    message = problem_of(ImageToVideoRequest, image(**{field: value}))
    assert field in message
    assert allowed in message


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("promptText", "", "at least 1 character"),
        ("promptText", "x" * 1001, "at most 1000 characters"),
        ("seed", 4_294_967_296, "0 to 4294967295"),
        ("references", [{"uri": IMAGE}] * 2, "at most 1, got 2"),
        ("references", [{"uri": "http://example.com"}], "must be an https:// URL"),
        ("contentModeration", {"publicFigureThreshold": "none"}, "'auto' or 'low'"),
        ("videoUri", data_uri(9), "data:video/<type>;base64,<data>"),
        ("videoUri", data_uri(16_000_001, "video/mp4"), "16,000,000 bytes of video"),
    ],
)
def test_a_bad_video_request_is_told_which_field_and_what_is_allowed(field, value, allowed):
    """video_to_video has its own limits."""
    message = problem_of(VideoToVideoRequest, video(**{field: value}))
    assert field in message
    assert allowed in message


@pytest.mark.parametrize(
    ("model", "missing"),
    [(ImageToVideoRequest, "promptImage"), (VideoToVideoRequest, "videoUri")],
)
def test_a_missing_source_is_named(model, missing):
    """The error names the only required field."""
    assert f"{missing}\n  Field required" in problem_of(model, {"promptText": "rain"})


def test_limits_are_those_of_the_documented_models_only():
    """For other models the form is checked and the service decides, because models change."""
    ImageToVideoRequest.model_validate(
        image(model=NEW_MODEL, promptText="x" * 900, duration=7, seed=2**32, ratio="640:480")
    )
    VideoToVideoRequest.model_validate(video(model=NEW_MODEL, references=[{"uri": IMAGE}] * 3))
    assert "ratio" in problem_of(ImageToVideoRequest, image(model=NEW_MODEL, ratio="16x9"))


@given(body=optional_image)
def test_the_form_refuses_what_the_model_refuses_for_an_image(body):
    """The UI validates with the JSON schema, so an invalid run is refused before it is created."""
    schema = ImageToVideoRequest.model_json_schema(by_alias=True)
    fits = jsonschema.Draft202012Validator(schema).is_valid(body)
    assert fits == (validated(ImageToVideoRequest, body) is not None)


@given(body=optional_video)
def test_the_form_refuses_what_the_model_refuses_for_a_video(body):
    """The same holds for the other route."""
    schema = VideoToVideoRequest.model_json_schema(by_alias=True)
    fits = jsonschema.Draft202012Validator(schema).is_valid(body)
    assert fits == (validated(VideoToVideoRequest, body) is not None)


@pytest.mark.parametrize("host", ["127.0.0.1:8765", "localhost", "[::1]:80"])
def test_plain_http_is_allowed_on_this_machine(host):
    """A sandbox on this machine can serve pictures."""
    source = f"http://{host}/cat.jpg"
    assert ImageToVideoRequest(prompt_image=source).prompt_image == source


@pytest.mark.parametrize("host", ["127.0.0.1.example.com", "127.999.1.1", "localhost@example.com"])
def test_a_name_that_only_looks_local_is_not_this_machine(host):
    """A plain http source on another machine is refused, whatever its name."""
    message = problem_of(ImageToVideoRequest, {"promptImage": f"http://{host}/cat.jpg"})
    assert "must be an https:// URL" in message


def test_a_data_uri_is_sent_whole_and_shown_short():
    """A picture is sent to CometAPI and never appears in the run history."""
    source = data_uri(3000)
    request = ImageToVideoRequest(prompt_image=source)
    assert request.to_wire()["promptImage"] == source
    payload = source.partition(",")[2]
    for shown in (request.model_dump_json(), repr(request), str(request), str(request.redacted())):
        assert payload not in shown
        assert "data:image/png;base64,<sha256:" in shown


def test_a_shortened_data_uri_is_not_taken_for_a_picture():
    """A run that is repeated from its history asks for the original picture."""
    stored = ImageToVideoRequest(prompt_image=data_uri(30)).model_dump_json(by_alias=True)
    assert "pass the original" in problem_of(ImageToVideoRequest, json.loads(stored))


def test_signed_sources_are_shown_without_their_token():
    """The query of a URL is hidden wherever a request is shown, including its references."""
    token = "Signature=s3cr3t"
    request = VideoToVideoRequest(
        video_uri=f"{VIDEO}?{token}",
        prompt_text="rain",
        references=[Reference(uri=f"{IMAGE}?{token}")],
        content_moderation=ContentModeration(),
    )
    assert token not in repr(request)
    assert token not in json.dumps(request.redacted())
    assert request.redacted()["promptText"] == "rain"
    assert request.redacted()["references"][0]["type"] == "image"
    assert request.to_wire()["references"][0]["uri"] == f"{IMAGE}?{token}"


def test_a_signed_address_within_a_prompt_is_shown_without_its_token():
    """The token is hidden in the ledger and beside the video; all other words stay."""
    words = "as a standard bearer in (https://h/ref.jpg{}), 2+2=4? yes=no, data:red,blue"
    request = ImageToVideoRequest(prompt_image=IMAGE, prompt_text=words.format("?Signature=s3cr3t"))
    assert request.to_wire()["promptText"] == words.format("?Signature=s3cr3t")
    assert "s3cr3t" not in json.dumps(request.redacted())
    plain = ImageToVideoRequest(prompt_image=IMAGE, prompt_text=words.format(""))
    assert plain.redacted()["promptText"] == words.format("")
    escaped = r"as in https:\/\/user:s3cr3t@h\/ref.jpg"  # copied from a JSON document
    request = ImageToVideoRequest(prompt_image=IMAGE, prompt_text=escaped)
    assert "s3cr3t" not in json.dumps(request.redacted())


def test_a_validation_error_does_not_repeat_what_was_given():
    """A signed URL or picture in a refused request does not appear in a log."""
    secret = "s3cr3t-token"
    body = image(promptImage=f"http://example.com/a.jpg?sig={secret}", duration=7, x=secret)
    assert secret not in problem_of(ImageToVideoRequest, body)


def test_requests_cannot_be_changed_after_they_were_checked():
    """The request that is sent is the one that was checked."""
    request = ImageToVideoRequest(prompt_image=IMAGE)
    with pytest.raises(ValidationError):
        request.duration = 7


def test_the_seconds_that_are_billed_are_told_where_they_are_known():
    """The seconds are those requested or the model's default; a video's length is known later."""
    asked = [
        ImageToVideoRequest(prompt_image=IMAGE),
        ImageToVideoRequest(prompt_image=IMAGE, duration=10),
        ImageToVideoRequest(prompt_image=IMAGE, model=NEW_MODEL),
        ImageToVideoRequest(prompt_image=IMAGE, model=NEW_MODEL, duration=7),
        VideoToVideoRequest(video_uri=VIDEO, prompt_text="snow"),
    ]
    assert [request.billed_seconds() for request in asked] == [5.0, 10.0, None, 7.0, None]
