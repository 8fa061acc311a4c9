# SPDX-License-Identifier: Apache-2.0
"""Keys and ids that look the same are the same purchase."""

import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_cometapi.flows import generate_batch, image_to_video
from prefect_cometapi.flows.batch.plan import make_plan
from prefect_cometapi.flows.runtime.identity import resolve_key
from prefect_cometapi.runway import ImageToVideoRequest
from prefect_cometapi.runway.batch.rows import batch_keys, check_rows, rows_of
from prefect_cometapi.runway.models.keys import check_key, one_form

IMAGE = "https://example.com/cat.jpg"
REQUEST = ImageToVideoRequest(prompt_image=IMAGE)
PAIRS = [
    ("Caf\N{LATIN SMALL LETTER E WITH ACUTE}", "Cafe\N{COMBINING ACUTE ACCENT}"),
    ("\N{ANGSTROM SIGN}ngström", "\N{LATIN CAPITAL LETTER A WITH RING ABOVE}ngström"),
    ("\N{HANGUL SYLLABLE GAG}", "\u1100\u1161\u11a8"),
    ("q\N{COMBINING DOT BELOW}\N{COMBINING DOT ABOVE}", "q\N{COMBINING DOT ABOVE}\u0323"),
    ("\N{DEVANAGARI LETTER QA}", "\N{DEVANAGARI LETTER KA}\N{DEVANAGARI SIGN NUKTA}"),
]


@given(st.text(min_size=1, max_size=20))
def test_a_key_has_one_form(text):
    """Whatever form a key is written in, it is the same key, or it is not valid in any form."""

    def checked(key: str) -> str | None:
        try:
            return check_key(key)
        except ValueError:
            return None

    found = {checked(unicodedata.normalize(form, text)) for form in ("NFC", "NFD")}
    assert len(found) == 1
    (key,) = found
    assert key is None or key == check_key(key) == unicodedata.normalize("NFC", key)


@pytest.mark.parametrize("pair", PAIRS)
def test_two_rows_that_look_the_same_are_reported(pair, tmp_path):
    """A row whose id looks like that of an earlier row is not bought a second time."""
    rows = [{"id": id_, "promptImage": IMAGE} for id_ in pair]
    (item,), (bad,) = check_rows(rows_of(rows), batch_keys("spring"))
    assert item.id == one_form(pair[0])
    assert bad.problem == "is also the id of row 1"
    place = tmp_path / "rows.jsonl"
    place.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    assert [str(row) for row in make_plan(str(place), "k").bad] == [
        f"line 2 (id {one_form(pair[0])}): id: is also the id of line 1"
    ]


@pytest.mark.parametrize("pair", PAIRS)
def test_a_key_that_looks_the_same_is_the_same(pair, tmp_path):
    """The key of a step, of a batch, and the one that the name of a manifest gives are equal."""
    assert len({resolve_key(key, REQUEST) for key in pair}) == 1
    plans = [make_plan([REQUEST], key) for key in pair]
    assert plans[0] == plans[1]
    keys = set()
    for name in pair:
        place = tmp_path / f"{name}.csv"
        place.write_text(f"id,promptImage\na,{IMAGE}\n", encoding="utf-8")
        keys.add(make_plan(str(place), None).idempotency_key)
    assert len(keys) == 1


def test_a_folder_with_and_without_its_last_slash():
    """A remote folder of parts is the same batch with and without the slash at its end."""
    import fsspec

    with fsspec.open("memory://parts/rows/a.csv", "w") as file:
        file.write(f"id,promptImage\na,{IMAGE}\n")  # pyright: ignore[reportAttributeAccessIssue]
    places = ("memory://parts/rows", "memory://parts/rows/")
    assert len({make_plan(place, None).idempotency_key for place in places}) == 1


@pytest.mark.server
def test_a_key_in_two_forms_is_bought_once(prefect_server, sandbox):
    """A key that macOS wrote as letter and accent finds what was bought under the other form."""
    composed, decomposed = PAIRS[0]
    first = image_to_video(REQUEST, idempotency_key=composed)
    again = image_to_video(REQUEST, idempotency_key=decomposed)
    assert first.task_id == again.task_id
    assert again.idempotency_key == composed
    for key in (composed, decomposed):
        rows = [{"id": key, "promptImage": IMAGE}]
        assert generate_batch(rows, idempotency_key=f"b{key}").succeeded == 1
    assert len(sandbox.accepted) == 2
