# SPDX-License-Identifier: Apache-2.0
"""The values of a generation print, store and pickle without the tokens they carry."""

import pickle
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from prefect_cometapi.runway import (
    AssetURL,
    CompletedGeneration,
    Generation,
    Status,
    StoredVideo,
    Submission,
)

TOKEN = "_jwt=s3cr3t"
URL = f"https://cdn.example.com/o.mp4?{TOKEN}"


def finished() -> CompletedGeneration:
    generation = Generation(task_id="a", status=Status.SUCCEEDED, outputs=(AssetURL(URL),))
    return CompletedGeneration(generation=generation, polls=3, waited=12.5)


@pytest.mark.parametrize("status", Status)
def test_only_three_states_are_final(status):
    """All states but three are waited for."""
    assert status.is_final == (status.value in {"succeeded", "failed", "cancelled"})


def test_an_asset_url_works_where_it_was_received():
    """Steps in one process can pass the full address on."""
    assert AssetURL(URL).reveal() == URL


@pytest.mark.parametrize(
    "show",
    [
        str,
        repr,
        lambda url: repr(finished()),
        lambda url: finished().model_dump_json(),
        lambda url: str(finished().model_dump()),
        lambda url: pickle.dumps(url).decode("latin-1"),
        lambda url: pickle.dumps(finished()).decode("latin-1"),
    ],
    ids=["str", "repr", "repr of a result", "json", "dump", "pickle", "pickle of a result"],
)
def test_an_asset_url_leaves_the_process_without_its_token(show):
    """A stored result does not give access to the video."""
    shown = show(AssetURL(URL))
    assert TOKEN not in shown
    assert "https://cdn.example.com/o.mp4" in shown


@pytest.mark.parametrize("path", ["<sha256:", "<sha256:0123456789ab>", "a?<sha256:0123456789ab>"])
def test_an_address_that_looks_as_if_it_were_hidden_is_hidden_all_the_same(path):
    """An untrusted address may contain the placeholder of a token as well as a token."""
    odd = AssetURL(f"https://h/{path}/o.mp4?{TOKEN}")
    assert TOKEN not in str(odd)
    assert odd.reveal() == f"https://h/{path}/o.mp4?{TOKEN}"


def test_a_stored_address_is_known_to_be_useless():
    """A stored address is recognised as redacted, so a new one is requested."""
    stored = pickle.loads(pickle.dumps(AssetURL(URL)))
    assert stored.reveal() is None
    again = CompletedGeneration.model_validate_json(finished().model_dump_json())
    assert again.generation.outputs[0].reveal() is None
    assert pickle.loads(pickle.dumps(stored)) == stored


def test_an_address_without_a_token_is_stored_as_it_is():
    """An address without a token is stored unchanged."""
    stored = pickle.loads(pickle.dumps(AssetURL("https://cdn.example.com/o.mp4")))
    assert stored.reveal() == "https://cdn.example.com/o.mp4"


def test_an_address_equals_its_stored_form():
    """A result is equal to itself after a restart."""
    stored = AssetURL(str(AssetURL(URL)))
    assert stored == AssetURL(URL)
    assert len({stored, AssetURL(URL), AssetURL(f"{URL}2")}) == 2
    assert AssetURL(URL) != URL


def test_an_asset_url_is_a_text_in_schemas():
    """The UI and other languages see a string."""
    schema = Generation.model_json_schema()["properties"]["outputs"]
    assert schema["items"] == {"type": "string"}
    with pytest.raises(ValidationError):
        Generation.model_validate({"task_id": "a", "status": "pending", "outputs": [5]})


@given(seconds=st.floats(-1e6, 1e6))
def test_an_age_is_never_negative(seconds):
    """An age is zero or more, even where the clocks of two machines differ."""
    submitted_at = datetime.now(UTC) - timedelta(seconds=seconds)
    age = Submission(idempotency_key="k", task_id="t", submitted_at=submitted_at).age()
    assert age >= 0.0
    assert abs(age - max(0.0, seconds)) < 60


def test_a_submission_is_named_by_the_beginning_of_its_id():
    """A submission is named by the prefix of its id, because the UI has little room."""
    submission = Submission(
        idempotency_key="k", task_id="3d957031-9a2a-45e2-9dc7", submitted_at=datetime.now(UTC)
    )
    assert submission.short_id == "3d957031"


def test_a_time_without_a_zone_is_refused():
    """A time without a zone would be ambiguous between machines."""
    with pytest.raises(ValidationError, match="timezone"):
        Submission(idempotency_key="k", task_id="t", submitted_at=datetime(2026, 11, 21))  # noqa: DTZ001


def test_values_cannot_be_changed():
    """A step cannot change a value that another step uses."""
    with pytest.raises(ValidationError):
        finished().polls = 4


def stored_at(uri: str, media_type: str = "image/png") -> StoredVideo:
    facts = {"sha256": "0" * 64, "size": 3, "width": 2, "height": 2, "frames": 1}
    return StoredVideo(
        uri=uri, sidecar="s.json", duration=0.0, codec="png", media_type=media_type, **facts
    )


def test_a_stored_picture_is_the_source_of_the_next_request(tmp_path):
    """A picture in a folder becomes a data URI of its own media type."""
    (tmp_path / "a.png").write_bytes(b"abc")
    assert stored_at(str(tmp_path / "a.png")).data_uri() == "data:image/png;base64,YWJj"


def test_a_file_that_is_elsewhere_is_no_data_uri():
    """The error names the location without a signature in it."""
    with pytest.raises(ValueError, match="cannot be read as a file of this machine") as caught:
        stored_at("s3://bucket/a.png?sig=s3cr3t").data_uri()
    assert "s3cr3t" not in str(caught.value)


def test_a_picture_is_told_by_its_media_type():
    """Results that were stored before pictures existed are videos."""
    assert stored_at("a.png").is_picture
    old = stored_at("a.mp4").model_dump(exclude={"media_type"})
    assert not StoredVideo.model_validate(old).is_picture
