# SPDX-License-Identifier: Apache-2.0
"""Known models are data: their figures, their sources, and the checks that follow from them."""

import json
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from prefect_cometapi.runway import (
    Character,
    CharacterPerformanceRequest,
    GenerationRequest,
    ImageToVideoRequest,
    Keyframe,
    Performance,
    PositionedImage,
    TaggedImage,
    TextToImageRequest,
    VideoToVideoRequest,
)
from prefect_cometapi.runway.batch.models import BatchItem
from prefect_cometapi.runway.ledger.budget import ASSUMED_SECONDS, seconds_of
from prefect_cometapi.runway.models.model_limits import (
    ModelTable,
    known_models,
    model_table,
    source_of,
    utf16_length,
)
from prefect_cometapi.runway.models.requests import ROUTES, as_request, route_of

IMAGE, VIDEO = "https://example.com/cat.jpg", "https://example.com/cat.mp4"
EMOJI = "\N{PARTY POPPER}"
NEW_MODEL = "gen9_ultra"
COMPLETE: dict[str, dict[str, Any]] = {
    "gen3a_turbo": {"promptImage": IMAGE},
    "gen4.5": {"promptImage": IMAGE, "promptText": "rain", "ratio": "1280:720", "duration": 2},
    "gen4_turbo": {"promptImage": IMAGE, "ratio": "1280:720"},
    "gen4_aleph": {"videoUri": VIDEO, "promptText": "rain"},
    "aleph2": {"videoUri": VIDEO},
    "act_two": {
        "character": {"type": "image", "uri": IMAGE},
        "reference": {"type": "video", "uri": VIDEO},
    },
    "gen4_image": {
        "promptText": "rain",
        "ratio": "1920:1080",
        "referenceImages": [{"uri": IMAGE}],
    },
}


def request_of(model: str, **changes: Any) -> GenerationRequest:
    body = {**COMPLETE[model], "model": model, **changes}
    given_fields = {name: value for name, value in body.items() if value is not None}
    return ROUTES[known_models()[model].route].model_validate(given_fields)


def problem_of(model: str, **changes: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        request_of(model, **changes)
    return str(caught.value)


def accepts(model: str, **changes: Any) -> bool:
    """Return whether a request is accepted, which the JSON schema must agree with."""
    route = ROUTES[known_models()[model].route]
    body = {**COMPLETE[model], "model": model, **changes}
    schema = route.model_json_schema(by_alias=True)
    try:
        route.model_validate(body)
    except ValidationError:
        assert not jsonschema.Draft202012Validator(schema).is_valid(body), body
        return False
    assert jsonschema.Draft202012Validator(schema).is_valid(body), body
    return True


@pytest.mark.parametrize("model", COMPLETE)
def test_each_known_model_needs_exactly_its_required_fields(model):
    """The smallest request is accepted and sent as it is; without any of its fields it is not."""
    smallest = {**COMPLETE[model], "model": model}
    assert request_of(model).to_wire() == smallest
    assert known_models()[model].required == COMPLETE[model].keys()
    for name in COMPLETE[model]:
        assert name in problem_of(model, **{name: None})


def test_the_table_of_these_tests_has_every_known_model():
    """No model is in the table without these tests."""
    assert COMPLETE.keys() <= known_models().keys()
    for route in ROUTES:
        assert {name: it.route for name, it in known_models(route).items()} == dict.fromkeys(
            known_models(route), route
        )


def test_every_fact_has_a_source_and_a_date():
    """Each model, field and price names a source that exists, with the date of its reading."""
    for limits in known_models().values():
        found = [source_of(limits), *(source_of(limits, name) for name in limits.fields)]
        found += [model_table().sources[limits.price.source]] if limits.price else []
        for source in found:
            assert source.url.startswith("https://")
            assert source.date.startswith("2026-")


def test_a_table_that_contradicts_itself_is_refused():
    """A required field that a model does not list is a mistake in the table."""
    table = json.loads(model_table().model_dump_json())
    table["models"]["aleph2"]["required"] = ["ratios"]
    with pytest.raises(ValidationError, match="aleph2 requires fields that it does not list"):
        ModelTable.model_validate(table)


@pytest.mark.parametrize(
    ("model", "name", "good", "bad", "allowed"),
    [
        ("gen4.5", "duration", [2, 10], [1, 11], "2 to 10 seconds, got"),
        ("gen4_turbo", "duration", [2, 10], [11], "2 to 10 seconds, got 11"),
        ("gen4.5", "ratio", ["1584:672"], ["1280:768", "16:9"], "one of 1280:720"),
        ("gen4.5", "seed", [0, 4_294_967_295], [4_294_967_296], "0 to 4294967295"),
        ("gen4.5", "contentModeration", [{"publicFigureThreshold": "low"}], [], ""),
        ("gen3a_turbo", "contentModeration", [{"publicFigureThreshold": "low"}], [], ""),
        (
            "gen4.5",
            "promptImage",
            [[{"uri": IMAGE, "position": "first"}]],
            [[{"uri": IMAGE, "position": "last"}]],
            "only images in the position first",
        ),
        (
            "gen3a_turbo",
            "promptImage",
            [IMAGE],
            [[{"uri": IMAGE, "position": "first"}]],
            "one image, as a text",
        ),
        ("aleph2", "targetAspectRatio", ["21:9"], ["1280:720"], "one of 16:9"),
        (
            "aleph2",
            "references",
            [],
            [[{"type": "image", "uri": IMAGE}]],
            "is not a field of this model",
        ),
        (
            "gen4_aleph",
            "keyframes",
            [],
            [[{"uri": IMAGE, "at": 0.5}]],
            "is not a field of this model",
        ),
        (
            "aleph2",
            "keyframes",
            [[{"uri": IMAGE, "seconds": 1.5}] * 5],
            [[{"uri": IMAGE, "seconds": 1.5}] * 6],
            "at most 5, got 6",
        ),
        ("act_two", "expressionIntensity", [1, 5], [0, 6], "1 to 5, got"),
        ("act_two", "bodyControl", [True], [], ""),
        (
            "gen4_image",
            "referenceImages",
            [[{"uri": IMAGE, "tag": "cat"}] * 3],
            [[], [{"uri": IMAGE}] * 4],
            "at ",
        ),
        ("gen4_image", "ratio", ["720:720"], ["1280:768"], "one of 1024:1024"),
    ],
)
def test_each_limit_is_checked_in_python_and_in_the_form(model, name, good, bad, allowed):
    """A value within the limit is accepted and one beyond it is not, and the message says why."""
    for value in good:
        assert accepts(model, **{name: value}), value
    for value in bad:
        assert not accepts(model, **{name: value}), value
        assert allowed in problem_of(model, **{name: value})


def test_the_length_of_a_prompt_is_counted_as_runway_counts():
    """An emoji counts two for Runway, and one where CometAPI's page says characters."""
    assert utf16_length(f"a{EMOJI}") == 3
    for model in ("gen4.5", "gen4_aleph", "gen4_image"):
        assert accepts(model, promptText=EMOJI * 500)
        assert "at most 1000 characters, got 1002 in UTF-16" in problem_of(
            model, promptText=EMOJI * 501
        )
    assert accepts("gen3a_turbo", promptText=EMOJI * 512)
    assert "at most 512 characters, got 513 (" in problem_of("gen3a_turbo", promptText=EMOJI * 513)


def test_a_prompt_with_half_a_character_is_counted_too():
    """A lone surrogate, which Python can hold, does not break the check."""
    assert utf16_length("\ud800") == 1


def test_an_unknown_model_is_passed_on_with_any_of_the_fields():
    """Only the form is checked, so an image may have any position and a prompt any length."""
    images = [{"uri": IMAGE, "position": "first"}, {"uri": IMAGE, "position": "last"}]
    request = ImageToVideoRequest.model_validate({"promptImage": images, "model": NEW_MODEL})
    assert request.to_wire() == {"promptImage": images, "model": NEW_MODEL}
    TextToImageRequest.model_validate({"promptText": "x" * 5000, "model": NEW_MODEL})
    odd = [images[0], {"uri": IMAGE, "position": "middle"}]
    with pytest.raises(ValidationError, match=r"promptImage\.1\.position"):
        ImageToVideoRequest.model_validate({"promptImage": odd, "model": NEW_MODEL})
    with pytest.raises(ValidationError, match=r"promptImage\n  List should have at most 2"):
        ImageToVideoRequest.model_validate({"promptImage": images[:1] * 3, "model": NEW_MODEL})


@pytest.mark.parametrize("times", [{}, {"seconds": 1, "at": 0.5}])
def test_a_keyframe_has_one_time(times):
    """A keyframe names its time in seconds or as a share, and all of them have a range or none."""
    with pytest.raises(ValidationError, match="either seconds or at"):
        Keyframe(uri=IMAGE, **times)
    window = {"start_seconds": 0, "end_seconds": 2}
    first, second = {"uri": IMAGE, "seconds": 1, "range": window}, {"uri": IMAGE, "seconds": 2}
    assert "either all of them have a range, or none" in problem_of(
        "aleph2", keyframes=[first, second]
    )
    assert request_of("aleph2", keyframes=[first]).to_wire()["keyframes"] == [first]


@pytest.mark.parametrize(
    ("request_", "body"),
    [
        (
            CharacterPerformanceRequest(
                character=Character(type="video", uri=VIDEO), reference=Performance(uri=VIDEO)
            ),
            {
                "character": {"type": "video", "uri": VIDEO},
                "reference": {"type": "video", "uri": VIDEO},
                "model": "act_two",
            },
        ),
        (
            TextToImageRequest(
                prompt_text="@cat", ratio="720:720", reference_images=[TaggedImage(uri=IMAGE)]
            ),
            {
                "promptText": "@cat",
                "model": "gen4_image",
                "ratio": "720:720",
                "referenceImages": [{"uri": IMAGE}],
            },
        ),
        (
            ImageToVideoRequest(
                prompt_image=[PositionedImage(uri=IMAGE, position="last")], model=NEW_MODEL
            ),
            {"promptImage": [{"uri": IMAGE, "position": "last"}], "model": NEW_MODEL},
        ),
    ],
)
def test_what_python_declares_is_what_is_sent(request_, body):
    """The body has the names and values of the API, and the same request can be read back."""
    assert request_.to_wire() == body
    again = type(request_).model_validate_json(request_.model_dump_json(by_alias=True))
    assert again == request_
    assert as_request(body) == request_


def test_a_data_uri_of_a_character_has_to_be_of_its_kind():
    """The type of a source decides which data URIs it may have."""
    Character(type="video", uri="data:video/mp4;base64,AAAA")
    with pytest.raises(ValidationError, match="data:image/<type>"):
        Character(type="image", uri="data:video/mp4;base64,AAAA")


def test_a_field_that_nobody_knows_is_sent_with_extra():
    """Further fields are merged into the body, and change the fingerprint as any other field."""
    plain = ImageToVideoRequest(prompt_image=IMAGE, model="veo3.1")
    audible = ImageToVideoRequest(
        prompt_image=IMAGE, model="veo3.1", extra={"audio": True, "options": {"a": [1, None]}}
    )
    assert audible.to_wire() == plain.to_wire() | {"audio": True, "options": {"a": [1, None]}}
    assert audible.fingerprint() != plain.fingerprint()
    empty = ImageToVideoRequest(prompt_image=IMAGE, model="veo3.1", extra={})
    assert empty == plain
    again = ImageToVideoRequest.model_validate_json(audible.model_dump_json(by_alias=True))
    assert again == audible
    assert request_of("gen4.5", extra={"outputFormat": "mp4"}).to_wire()["outputFormat"] == "mp4"


@pytest.mark.parametrize(
    ("extra", "reason"),
    [
        ({"duration": 99}, "set the field duration"),
        ({"prompt_text": "x"}, "set the field promptText"),
        ({"PROMPTTEXT": "x"}, "set the field promptText"),
        ({"Model": "gen4.5"}, "set the field model"),
        ({"extra": {}}, "set the field extra"),
        ({"": 1}, "should match pattern"),
        ({"a": float("nan")}, "must be JSON"),
        ({"a": "\ud800"}, "must be JSON"),
        ({"a": {1, 2}}, "must be JSON"),
        ({"a": [{"b": f"data:image/png;base64,<sha256:{'0' * 12}, 9 characters>"}]}, "redacted"),
    ],
)
def test_extra_changes_no_checked_field(extra, reason):
    """A field that is checked cannot be set around the check, in any spelling."""
    with pytest.raises(ValidationError, match=reason):
        ImageToVideoRequest(prompt_image=IMAGE, extra=extra)


def test_extra_is_shown_without_its_secrets():
    """A data URI, a key or a signature in a further field appears in no run and no ledger."""
    content = "QUJD" * 300
    secrets = {"image": f"data:image/png;base64,{content}", "url": f"{IMAGE}?Signature=s3cr3t"}
    request = ImageToVideoRequest(prompt_image=IMAGE, extra=secrets)
    assert request.to_wire() | secrets == request.to_wire()
    for shown in (repr(request), json.dumps(request.redacted()), request.model_dump_json()):
        assert content not in shown
    assert "s3cr3t" not in repr(request)
    assert "s3cr3t" not in json.dumps(request.redacted())


@given(
    prompt=st.text(max_size=1100),
    seed=st.integers(-1, 2**33),
    model=st.sampled_from([*COMPLETE, NEW_MODEL]),
)
def test_the_form_never_refuses_what_python_accepts(prompt, seed, model):
    """A request that can be sent passes the form; the form also passes what only emoji exceed."""
    known = known_models().get(model)
    route = ROUTES[known.route if known else "image_to_video"]
    body = {**COMPLETE.get(model, COMPLETE["gen3a_turbo"]), "model": model, "seed": seed}
    body |= {"promptText": prompt} if "prompt_text" in route.model_fields else {}
    schema = route.model_json_schema(by_alias=True)
    fits = jsonschema.Draft202012Validator(schema).is_valid(body)
    try:
        route.model_validate(body)
    except ValidationError:
        assert not fits or len(prompt) < utf16_length(prompt)
    else:
        assert fits


def test_the_billed_seconds_follow_the_model():
    """The request sets them where its model requires it, and a picture has none."""
    seconds = {model: request_of(model).billed_seconds() for model in COMPLETE}
    assert seconds == {
        "gen3a_turbo": 5.0,
        "gen4.5": 2.0,
        "gen4_turbo": None,
        "gen4_aleph": None,
        "aleph2": None,
        "act_two": None,
        "gen4_image": 0.0,
    }
    assert seconds_of(request_of("gen4_image")) == 0.0
    assert seconds_of(request_of("gen4_turbo")) == ASSUMED_SECONDS


def test_the_limits_of_a_model_can_be_listed():
    """Durations, ratios and the price are there for a list of models."""
    known = known_models()
    assert known["gen3a_turbo"].durations == (5, 10)
    assert known["gen4.5"].durations == tuple(range(2, 11))
    assert known["aleph2"].durations == known["aleph2"].ratios == ()
    assert known["gen4.5"].ratios[0] == "1280:720"
    assert known["gen4.5"].default_duration is None
    prices = {model: str(it.price.price()) for model, it in known.items() if it.price}
    assert prices["gen3a_turbo"] == "0.256"
    assert prices["gen4.5"] == "0.12/s"


@pytest.mark.parametrize("route", ROUTES)
def test_each_route_has_an_example_that_is_accepted(route):
    """The deployment of a route starts with a request that its default model accepts."""
    request = ROUTES[route]
    body = request.example()
    assert as_request({"route": route, **body}).to_wire().items() >= body.items()
    assert as_request(body).route == route
    assert request.known_by() in body
    assert request.arguments


@pytest.mark.parametrize(
    ("fields", "named", "reason"),
    [
        ({}, "nothing", "must be one of image_to_video"),
        ({}, None, r"needs promptImage \(image_to_video\) or videoUri"),
        ({"promptImage": 1, "video_uri": 2, 3: 4}, None, "only one is allowed"),
    ],
)
def test_a_request_without_a_route_is_refused(fields, named, reason):
    """A request whose fields name no route, or several, is refused with the choices."""
    with pytest.raises(ValueError, match=reason):
        route_of(fields, named)


def test_a_route_is_found_by_name_field_or_model(monkeypatch):
    """Two routes with the same source are told apart by the model."""
    assert route_of({"prompt_image": IMAGE}) == "image_to_video"
    assert route_of({}, " Text-To-Image ") == "text_to_image"
    monkeypatch.setattr(TextToImageRequest, "known_by", classmethod(lambda _kind: "videoUri"))
    assert route_of({"videoUri": VIDEO}) == "video_to_video"
    assert route_of({"videoUri": VIDEO, "model": "gen4_image"}) == "text_to_image"
    assert route_of({"videoUri": VIDEO, "model": "gen3a_turbo"}) == "video_to_video"


@pytest.mark.parametrize("fields", [{}, {"route": "nowhere", "promptText": "x"}, 5])
def test_a_request_of_no_route_names_what_is_missing(fields):
    """A dict that is no request is refused by pydantic, as any other."""
    with pytest.raises(ValidationError):
        as_request(fields)


def test_a_field_for_any_request_recognises_the_route():
    """An item of a batch or a job block reads a dict as the request that it is."""
    for model, body in COMPLETE.items():
        request = request_of(model)
        assert as_request(request) is request
        for given_request in (request, {**body, "model": model}):
            item = BatchItem(id="1", idempotency_key="a/1", request=given_request)  # type: ignore[arg-type]
            assert item.request == request
    with pytest.raises(ValidationError, match="request"):
        BatchItem(id="1", idempotency_key="a/1", request=5)  # type: ignore[arg-type]


def test_requests_of_all_routes_are_shown_with_their_prompt():
    """A request without a prompt has none to show."""
    assert request_of("aleph2").prompt is None
    assert request_of("act_two").prompt is None
    assert request_of("gen4_image").prompt == "rain"
    assert VideoToVideoRequest(video_uri=VIDEO, model=NEW_MODEL).limits() is None
