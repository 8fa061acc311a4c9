# SPDX-License-Identifier: Apache-2.0
"""Keys identify a generation, and file names made from them are safe on every system."""

import re
from datetime import UTC, datetime, timedelta, timezone
from uuid import UUID

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from prefect_cometapi.runway import ImageToVideoRequest
from prefect_cometapi.runway.models.keys import (
    MAX_KEY_LENGTH,
    check_key,
    default_key,
    file_stem,
    step_key,
)

RUN = UUID("0190a1b2-c3d4-7890-abcd-ef0123456789")
ID = "3d957031-9a2a-45e2-9dc7-bc8513059c50"
MOMENT = datetime(2026, 11, 21, 9, 30, 5, tzinfo=UTC)
KEYS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=80)
DOS_NAMES = r"(?i)(con|prn|aux|nul|com\d|lpt\d)"


def picture(name: str) -> ImageToVideoRequest:
    return ImageToVideoRequest(prompt_image=f"https://example.com/{name}.jpg")


def test_a_retried_run_finds_its_own_generation():
    """The default key is the same for the same run and request, in every process."""
    assert default_key(RUN, picture("a")) == default_key(str(RUN), picture("a"))


def test_another_run_or_another_request_is_another_generation():
    """A schedule makes a new video in each run, and a flow may make several."""
    keys = {default_key(run, picture(name)) for run in (RUN, "other") for name in "ab"}
    assert len(keys) == 4


@pytest.mark.parametrize("key", ["sku-17/2026-11-21", "ключ №5", "x", "k" * MAX_KEY_LENGTH])
def test_a_key_of_ones_own_is_kept_as_it_is(key):
    """A key that the user chose is not normalised."""
    assert check_key(key) == key


@pytest.mark.parametrize("key", ["", "  ", "a\nb", "a\x00", "k" * (MAX_KEY_LENGTH + 1), "\ud800"])
def test_a_key_that_cannot_be_kept_is_refused(key):
    """The error says which keys are allowed and gives an example."""
    with pytest.raises(
        ValueError, match="1 to 512 printable characters, for example 'sku-17/2026-11-21'"
    ):
        check_key(key)


@pytest.mark.parametrize("key", [" sku", "sku ", " sku ", "\u3000sku", " sku/17", "a b "])
def test_a_key_with_blanks_around_it_is_refused(key):
    """Surrounding blanks are invisible, and a key that looks equal would be bought again."""
    with pytest.raises(ValueError, match="must not begin or end with a blank") as refused:
        check_key(key)
    assert repr(key) in str(refused.value)
    assert check_key("a b") == "a b"


@pytest.mark.parametrize(
    "key",
    [
        "https://bucket.example.com/cat.jpg?X-Amz-Signature=canary",
        "sku-17 data:image/png;base64,canary",
        "sk-canary0123456789",
    ],
)
def test_a_key_is_no_place_for_a_secret(key):
    """A key appears in the ledger, in logs and in file names, so it may not contain a secret."""
    with pytest.raises(ValueError, match="must not contain") as raised:
        check_key(key)
    assert "canary" not in str(raised.value)
    assert check_key("https://bucket.example.com/cat.jpg")


@given(key=KEYS, position=st.integers(0, 30))
@example(key=f"{'x' * 59}-y", position=0)
def test_a_file_name_is_safe_on_every_system(key, position):
    """A file name is short, of lower-case letters, digits and dashes, and valid on Windows."""
    stem = file_stem(key, ID, MOMENT, position)
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", stem)
    assert len(stem) <= 120
    assert not re.fullmatch(DOS_NAMES, stem)


def test_no_more_of_a_text_is_read_than_a_key_may_have():
    """Text is truncated first, because Python's time for accents grows quadratically."""
    accents = "\N{COMBINING ACUTE ACCENT}" * MAX_KEY_LENGTH
    assert file_stem(f"{accents[3:]}cat", ID, MOMENT).split("-")[2] == "cat"
    assert file_stem(f"{accents}cat", ID, MOMENT).split("-")[2] == "video"


@given(one=KEYS, other=KEYS)
def test_different_keys_give_different_files(one, other):
    """No generation overwrites another, even if keys look alike or differ only in case."""
    assume(one != other)
    assert file_stem(one, ID, MOMENT) != file_stem(other, ID, MOMENT)


@given(key=KEYS, one=st.text(min_size=1), other=st.text(min_size=1))
def test_two_purchases_with_one_key_give_different_files(key, one, other):
    """No video is lost if two ledgers share a storage and buy the same key at the same time."""
    assume(one != other)
    assert file_stem(key, one, MOMENT) != file_stem(key, other, MOMENT)


@given(key=KEYS, hours=st.integers(-12, 12))
def test_the_same_generation_gives_the_same_file_in_every_time_zone(key, hours):
    """A step that is repeated on another machine replaces its own file."""
    elsewhere = MOMENT.astimezone(timezone(timedelta(hours=hours)))
    assert file_stem(key, ID, elsewhere) == file_stem(key, ID, MOMENT)


def test_the_outputs_of_one_generation_are_numbered():
    """Outputs of one generation do not overwrite each other; the first has no number."""
    stems = [file_stem("sku-17", ID, MOMENT, position) for position in range(3)]
    assert stems[1:] == [f"{stems[0]}-2", f"{stems[0]}-3"]


def test_a_file_name_tells_the_time_and_the_key():
    """Files sort by time, and their names are readable."""
    stem = file_stem("SKU 17/Größe XL", ID, MOMENT)
    assert stem.startswith("20261121")
    assert "-sku-17-groe-xl-" in stem or "-sku-17-gro-e-xl-" in stem


def test_a_run_id_in_a_key_is_cut_to_its_beginning():
    """The name shows the same part of the run id as the UI."""
    stem = file_stem(default_key(RUN, picture("a")), ID, MOMENT)
    assert "run-0190a1b2-" in stem
    assert str(RUN) not in stem


@pytest.mark.parametrize("key", ["con", "LPT1", "鍵", "///"])
def test_a_key_without_a_usable_word_is_called_a_video(key):
    """A file name without usable words is still readable."""
    assert "-video-" in file_stem(key, ID, MOMENT)


@given(one=KEYS, other=KEYS)
def test_results_of_steps_are_kept_apart(one, other):
    """A cached result is found only by its step and its key, under a safe name."""
    assert re.fullmatch(r"cometapi-fetch-[0-9a-f]{32}", step_key("fetch", one))
    assert (step_key("fetch", one) == step_key("fetch", other)) == (one == other)
    assert step_key("poll", one) != step_key("fetch", one)
