# SPDX-License-Identifier: Apache-2.0
"""All rows of a batch are checked before one is bought, and the check itself never fails."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_cometapi.runway import (
    ContentModeration,
    GenerationRequest,
    ImageToVideoRequest,
    Reference,
    VideoToVideoRequest,
)
from prefect_cometapi.runway.batch.models import BatchItem
from prefect_cometapi.runway.batch.row_validation import MAX_ID_LENGTH, MAX_NAME_PROBLEMS
from prefect_cometapi.runway.batch.rows import BadRow, Row, batch_keys, check_rows, rows_of
from prefect_cometapi.runway.models.keys import MAX_KEY_LENGTH, check_key, one_form

IMAGE, VIDEO = "https://example.com/cat.jpg", "https://example.com/cat.mp4"
SECRET = "s3cr3tT0ken"
LEAKS = [
    f"https://example.com/cat.jpg?sig={SECRET}",
    f"http://me:{SECRET}@example.com/cat.jpg",
    f"data:image/png;base64,{SECRET}",
    f"Bearer {SECRET}",
    f"sk-{SECRET}",
]
NAMES = [
    *("id", "route", "promptImage", "prompt_image", "videoUri", "model", "promptText"),
    *("duration", "ratio", "seed", "watermark", "references", "contentModeration"),
    *("x_sku", "_note", "duraton", ""),
]

any_text = st.text(st.characters(exclude_categories=()), max_size=20)
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | any_text
    | st.sampled_from([IMAGE, VIDEO, "image-to-video", "1280:720", "5", "[]", "{}", "[[[", *LEAKS])
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(any_text, inner, max_size=3),
    max_leaves=6,
)
any_fields = st.dictionaries(st.sampled_from([*NAMES, *LEAKS]) | any_text, values, max_size=7)
near_fields = st.fixed_dictionaries(
    {"promptImage": st.just(IMAGE) | scalars},
    optional={
        "id": st.integers(1, 4) | any_text,
        "duration": st.sampled_from([5, 10, "5", 7]),
        "seed": st.integers(0, 2),
        "promptText": any_text,
    },
)


def image(**fields: Any) -> dict[str, Any]:
    return {"promptImage": IMAGE, **fields}


def video(**fields: Any) -> dict[str, Any]:
    return {"videoUri": VIDEO, "promptText": "more rain", **fields}


def in_file(*rows: dict[str, Any]) -> list[Row]:
    return [Row(number, fields, unit="line") for number, fields in enumerate(rows, 2)]


def checked(*rows: dict[str, Any]) -> tuple[list[BatchItem], list[BadRow]]:
    return check_rows(in_file(*rows), batch_keys("spring"))


def problems_of(*rows: dict[str, Any]) -> list[str]:
    return [str(row) for row in checked(*rows)[1]]


# Any row


@given(rows=st.lists(any_fields | near_fields, max_size=6), needs_id=st.booleans())
def test_every_row_becomes_an_item_or_is_told_what_is_wrong(rows, needs_id):
    """No row is dropped, is in both lists or breaks the check."""
    given_rows = [Row(number, row, needs_id=needs_id) for number, row in enumerate(rows, 1)]
    items, bad = check_rows(given_rows, batch_keys("spring"))
    assert len(items) + len({row.row for row in bad}) == len(rows)
    assert (
        len({item.id for item in items})
        == len({item.idempotency_key for item in items})
        == len(items)
    )
    assert [check_key(item.idempotency_key) for item in items] == [
        item.idempotency_key for item in items
    ]


@given(rows=st.lists(any_fields, max_size=4))
def test_what_is_told_of_a_row_holds_no_secret_and_can_be_stored(rows):
    """Messages about a bad row contain no picture, token or API key, whatever the field."""
    for row in check_rows(rows_of(rows), batch_keys("spring"))[1]:
        assert SECRET not in f"{row} {row!r} {row.model_dump_json()}"
        assert str(row).isprintable()


@given(rows=st.lists(near_fields, max_size=6))
def test_an_items_request_is_what_its_row_asked_for(rows):
    """No given value is dropped or changed, except for the blanks around it."""
    items, _ = check_rows(in_file(*rows), batch_keys("spring"))

    def plain(value: Any) -> Any:
        return value.strip() if isinstance(value, str) else value

    row_of = {one_form(str(plain(row.get("id")))): row for row in reversed(rows)}
    for item in items:
        wanted = {name: plain(value) for name, value in row_of[item.id].items() if name != "id"}
        assert item.request == ImageToVideoRequest.model_validate(wanted)


@pytest.mark.parametrize("leak", LEAKS)
@pytest.mark.parametrize("name", [*NAMES, "references.uri"])
def test_a_secret_in_the_wrong_field_is_not_repeated(name, leak):
    """Cells may be in the wrong column, but a token does not appear in a message."""
    fields = {"references": [{"uri": leak, leak: 1}]} if "." in name else {name: leak}
    for other in (image(id="a"), video(id="a"), {}):
        for row in problems_of({**other, **fields}, {**other, leak: 1}):
            assert SECRET not in row


# Fields


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        (image(duraton=10), "duraton: is not a field of a request; did you mean duration?"),
        (image(DURATION=10), "DURATION: is not a field of a request; did you mean duration?"),
        (image(sku=1), "sku: is not a field of a request; your own fields must begin with x_ or _"),
        (
            image(sku=None),
            "sku: is not a field of a request; your own fields must begin with x_ or _",
        ),
        (
            {**image(), "": 1},
            "'': is not a field of a request; your own fields must begin with x_ or _",
        ),
        (
            {**image(), 5: 1},
            "int: is not a field of a request; your own fields must begin with x_ or _",
        ),
        (image(prompt_image=IMAGE), "prompt_image: promptImage is given twice"),
        (image(duration=7), "duration: 5 or 10 seconds, got 7"),
        (image(duration="soon"), "duration: must be a valid integer, unable to parse string"),
        (image(seed=1 << 20_000, model="new"), "seed: is too large"),
        (image(seed=-1), "seed: must be greater than or equal to 0"),
        (image(ratio="1280x720"), "ratio: must be width:height"),
        (image(promptText="\ud800"), "promptText: must be text in valid Unicode (UTF-8)"),
        ({"promptImage": b"http://example.com"}, "promptImage: cannot be used: its content is not"),
        (image(promptText=b"rain"), "promptText: must be text in valid Unicode"),
        ({"promptImage": "http://example.com"}, "promptImage: must be an https:// URL"),
        (image(references="[]"), "references: is not a field of image_to_video"),
        (video(duration=5), "duration: is not a field of video_to_video"),
        (video(promptText=None), "promptText: is missing"),
        (video(promptText=""), "promptText: string should have at least 1 character"),
        (video(references="[{]"), "references: is not valid JSON: Expecting property name"),
        (
            video(references='[{"uri": 1, "uri": 2}]'),
            "is not valid JSON: an object has a field twice",
        ),
        (video(references=[{"uri": VIDEO, "kind": 1}]), "references.0.kind: is not a field here"),
        (video(references=[{"uri": b"a"}]), "references.0.uri: cannot be used: its content is not"),
        (video(contentModeration={"public": 1}), "contentModeration.public: is not a field here"),
        ({**image(), **video()}, "has promptImage (image_to_video) and videoUri"),
        ({"promptText": "rain"}, "needs promptImage (image_to_video) or videoUri"),
        (image(route="text_to_video"), "route: must be one of image_to_video, video_to_video"),
        (image(route=5), "route: must be one of image_to_video, video_to_video"),
        (image(route="video_to_video"), "promptImage: is not a field of video_to_video"),
    ],
)
def test_a_bad_field_is_named_with_what_is_allowed(fields, problem):
    """The message leads to the cell and says what is allowed."""
    items, bad = checked({"id": "a", **fields})
    assert items == []
    assert any(str(row).startswith("line 2 (id a): ") and problem in str(row) for row in bad)


def test_every_bad_field_of_a_row_is_told_at_once():
    """All mistakes of a manifest are reported in one run."""
    row = image(
        id=" ", seed=-1, duration=7, promptText="x" * 513, ratio="a", modle="x", videoUri="\ud800"
    )
    named = [bad.field for bad in checked({**row, "route": "image-to-video"})[1]]
    wrong = ["duration", "id", "modle", "promptText", "ratio", "seed", "videoUri"]
    assert sorted(map(str, named)) == wrong


@pytest.mark.parametrize("model", [5, "\ud800", ""])
def test_limits_are_not_guessed_for_a_model_that_cannot_be_read(model):
    """An invalid model is reported instead of the limits of another model."""
    named = [bad.field for bad in checked(image(id="a", model=model, duration=7))[1]]
    assert named == ["model"]


def test_names_of_ones_own_are_ignored_and_nothing_else_is():
    """A manifest may have columns of its owner, but a misspelt option is an error."""
    items, bad = checked(image(id="a", x_sku="17", _row=float("nan")), image(id="b", xsku=1))
    assert [item.request for item in items] == [ImageToVideoRequest(prompt_image=IMAGE)]
    assert [row.field for row in bad] == ["xsku"]


def test_text_is_read_as_what_the_field_needs():
    """A text cell is converted to the number, boolean or nested field of the request."""
    one = image(id="1", duration="10", seed="7", watermark="TRUE", ratio="1280:720")
    two = video(
        id="2",
        references=json.dumps([{"type": None, "uri": IMAGE}]),
        contentModeration='{"publicFigureThreshold": "low"}',
    )
    items, bad = checked(one, two, video(id="3", references="null", seed=None))
    assert bad == []
    assert [item.request for item in items] == [
        ImageToVideoRequest(
            prompt_image=IMAGE, duration=10, seed=7, watermark=True, ratio="1280:720"
        ),
        VideoToVideoRequest(
            video_uri=VIDEO,
            prompt_text="more rain",
            references=[Reference(uri=IMAGE)],
            content_moderation=ContentModeration(public_figure_threshold="low"),
        ),
        VideoToVideoRequest(video_uri=VIDEO, prompt_text="more rain"),
    ]


@pytest.mark.parametrize("route", ["image_to_video", "image-to-video", "Image-to-Video", None])
def test_the_route_is_told_by_its_name_or_by_the_source(route):
    """A row that names an image needs no route."""
    items, bad = checked(image(id="a", route=route))
    assert (items[0].request.route, bad) == ("image_to_video", [])


@pytest.mark.parametrize("depth", [900, 100_000])
def test_a_field_nested_too_deeply_is_a_bad_one(depth):
    """A deeply nested field is reported and does not break the batch."""
    (bad,) = checked(video(id="a", references="[" * depth + "]" * depth))[1][:1]
    assert bad.field in {"references", "references.0"}


# Ids


@pytest.mark.parametrize(
    ("given_id", "id_"),
    [("sku-17", "sku-17"), (17, "17"), (17.0, "17"), ("ä 1/2", "ä 1/2"), (" a\n", "a")],
)
def test_an_id_is_text_or_a_whole_number(given_id, id_):
    """An id becomes the end of the key unchanged."""
    (item,), bad = checked(image(id=given_id))
    assert (item.id, item.idempotency_key, bad) == (id_, f"spring/{id_}", [])


@pytest.mark.parametrize(
    ("given_id", "problem"),
    [
        (None, "is missing"),
        ("", "must have 1 to 200 printable characters and no surrounding blanks"),
        ("a\nb", "must have 1 to 200 printable characters"),
        ("\ud800", "must have 1 to 200 printable characters"),
        ("x" * 201, "must have 1 to 200 printable characters"),
        (True, "must be text or a whole number"),
        (1.5, "must be text or a whole number"),
        (1e300, "must be text or a whole number"),
        (2**63, "must be text or a whole number"),
        ([1], "must be text or a whole number"),
        (f"{IMAGE}?sig={SECRET}", "must not contain an API key, a token or a data URI"),
    ],
)
def test_a_bad_id_is_not_repeated_but_explained(given_id, problem):
    """An id appears in names, logs and keys, so an invalid one is refused with a reason."""
    ((bad,),) = (checked(image(id=given_id))[1],)
    assert (bad.row, bad.unit, bad.id, bad.field) == (2, "line", None, "id")
    assert problem in bad.problem


def test_of_two_rows_with_one_id_the_later_is_bad_and_names_the_first():
    """The later row would otherwise silently get the video of the first one."""
    items, bad = checked(image(id=1), video(id="1"), image(id="b"), image(id="1", seed=-1))
    assert [item.id for item in items] == ["1", "b"]
    told = [f"{row.row} {row.field}: {row.problem}" for row in bad]
    assert "3 id: is also the id of line 2" in told
    assert "5 id: is also the id of line 2" in told
    assert len(told) == 3


def test_the_longest_id_fits_the_longest_key_of_a_batch():
    """The allowed length of an id does not depend on the batch."""
    longest = "b" * (MAX_KEY_LENGTH - MAX_ID_LENGTH - 1)
    rows = in_file(image(id="x" * MAX_ID_LENGTH))
    (item,), bad = check_rows(rows, batch_keys(longest))
    assert (len(item.idempotency_key), bad) == (MAX_KEY_LENGTH, [])
    with pytest.raises(
        ValueError, match="the idempotency key of a batch may have at most 311 characters"
    ):
        batch_keys(f"{longest}b")
    with pytest.raises(ValueError, match="key must have 1 to 512 printable characters"):
        batch_keys(" ")


def test_no_item_has_the_key_or_the_prefix_of_another_batch():
    """Otherwise batch a with id b/1 would get the video of batch a/b, and count its spending."""
    ((item,), bad) = check_rows(in_file(image(id="b/1")), batch_keys("a"))
    assert (item.idempotency_key, bad) == ("a/b/1", [])
    with pytest.raises(ValueError, match="must not contain a slash"):
        batch_keys("a/b")


def test_a_key_that_is_none_or_another_rows_makes_the_row_bad():
    """A function may make the keys, but two rows never share one."""
    rows = in_file(image(id="a"), image(id="b"), image(id="c"))
    items, bad = check_rows(rows, lambda id_, request, variation: "" if id_ == "c" else "same")
    assert [item.id for item in items] == ["a"]
    assert [row.problem for row in bad] == [
        "results in the same idempotency key as line 2",
        (
            "results in an invalid idempotency key: an idempotency key must have 1 to 512 "
            "printable characters, for example 'sku-17/2026-11-21'"
        ),
    ]


# Requests given in Python


def test_requests_without_ids_have_their_positions_and_keep_their_keys():
    """The key is made from the request, so a reordered list buys nothing again."""
    cat, dog = ImageToVideoRequest(prompt_image=IMAGE), image(promptText="dog")
    items, bad = check_rows(rows_of([cat, dog, image()]), batch_keys("spring"))
    assert bad == []
    assert [item.id for item in items] == ["1", "2", "3"]
    first, second, third = [item.idempotency_key for item in items]
    assert first == f"spring/{cat.fingerprint()[:16]}"
    assert third == f"{first}-variation-2"
    turned, _ = check_rows(rows_of([image(), image(), dog]), batch_keys("spring"))
    assert [item.idempotency_key for item in turned] == [first, third, second]


@given(wanted=st.lists(st.tuples(st.none() | st.integers(10, 99), st.integers(0, 2)), max_size=8))
def test_takes_count_the_equal_requests_without_an_id(wanted):
    """Equal requests without an id are numbered from 1."""
    asked: list[tuple[str | None, int]] = []
    seen: list[tuple[str | None, str]] = []

    def key_of(id_: str | None, request: GenerationRequest, variation: int) -> str:
        earlier = seen.count((None, request.fingerprint()))
        asked.append((id_, variation))
        assert variation == (1 if id_ else earlier + 1)
        seen.append((id_, request.fingerprint()))
        return str(len(seen))

    items, _ = check_rows(
        rows_of([image(seed=s) if i is None else image(seed=s, id=i) for i, s in wanted]), key_of
    )
    assert len(items) == len(asked)


def test_a_request_in_a_mapping_is_the_same_as_its_fields():
    """Items of an earlier batch, models and mappings can be mixed."""
    request = VideoToVideoRequest(video_uri=VIDEO, prompt_text="more rain")
    forms = [
        {"id": "a", "request": request},
        {"id": "b", "request": video(), "x_sku": 1},
        {"id": "c", "route": "video-to-video", "request": {**video(), "x_sku": 1}},
        {"id": "d", **video()},
        request,
    ]
    items, bad = check_rows(rows_of(forms), batch_keys("spring"))
    assert bad == []
    assert [item.id for item in items] == ["a", "b", "c", "d", "5"]
    assert [item.request for item in items] == [request] * len(forms)


def test_a_data_uri_in_a_model_is_whole_in_its_item():
    """The request is shortened only where it is shown, not where it is bought."""
    request = ImageToVideoRequest(prompt_image=f"data:image/png;base64,{'abcd' * 100}")
    ((item,), _) = check_rows(rows_of([request]), batch_keys("spring"))
    assert item.request == request
    assert "abcdabcd" not in repr(rows_of([request]))


@pytest.mark.parametrize(
    ("given_row", "problem"),
    [
        (5, "row 1: is neither a request nor a mapping of its fields"),
        (
            {"request": 5},
            "row 1: has a request that is neither a request nor a mapping of its fields",
        ),
        ({"id": 1, "request": image(id=2)}, "row 1: has id both in its request and next to it"),
        ({"key": "a", "request": image()}, "row 1 (id 1): key: is not a field of a request"),
        (image(id=" "), "row 1: id: must have 1 to 200 printable characters"),
    ],
)
def test_what_is_no_request_is_a_bad_row(given_row, problem):
    """Each position of a list has a result."""
    items, bad = check_rows(rows_of([given_row]), batch_keys("spring"))
    assert items == []
    assert str(bad[0]).startswith(problem)


def test_a_position_that_another_row_has_as_its_id_is_told():
    """Given and generated ids are unique together."""
    items, bad = check_rows(rows_of([image(id="2"), image(seed=1)]), batch_keys("spring"))
    assert [item.id for item in items] == ["2"]
    assert str(bad[0]) == "row 2 (id 2): id: is also the id of row 1"


def test_a_row_of_a_thousand_wrong_names_is_told_in_a_few():
    """The message is limited, because each wrong name is compared with the valid ones."""
    wrong = {f"promptImag{n}": "x" for n in range(1000)}
    items, bad = checked({"id": "a", "promptImage": "https://example.com/a.jpg", **wrong})
    assert items == []
    assert len(bad) == MAX_NAME_PROBLEMS + 1
