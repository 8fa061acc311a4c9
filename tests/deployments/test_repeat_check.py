# SPDX-License-Identifier: Apache-2.0
"""A command that repeats a purchase of the last minutes asks first, or warns."""

import asyncio
import io
import os
import sys
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_cometapi.deployments.repeat_check import (
    RECENT,
    confirm_repetition,
    described,
    earlier_purchases,
    repetition,
)
from prefect_cometapi.flows.runtime.block_sources import open_source
from prefect_cometapi.runway import CometAPISettings, ImageToVideoRequest, State
from prefect_cometapi.runway.ledger.entry import Entry, Intent
from prefect_cometapi.runway.ledger.store import get_ledger
from prefect_cometapi.runway.models.keys import default_key, variation_of
from prefect_cometapi.runway.sources.preparation import MIN_VALIDITY, prepare

from ..pictures import picture

NOW = datetime(2026, 11, 29, 9, 30, tzinfo=UTC)
REQUEST = ImageToVideoRequest(prompt_image="https://example.com/cat.jpg", prompt_text="zoom")


def entry(key: str = "run-1-a", **values: object) -> Entry:
    known = {"idempotency_key": key, "base_url": "https://api.cometapi.com", "state": "submitted"}
    times = {"created_at": NOW, "changed_at": NOW}
    return Entry.model_validate({**known, **times, "claim": "c", **values})


async def bought(request: ImageToVideoRequest, key: str, state: State, **versions: str) -> None:
    ledger = get_ledger(os.environ["COMETAPI_LEDGER_URL"])
    intent = Intent(
        idempotency_key=key,
        base_url="https://api.cometapi.com",
        route=request.route,
        model=request.model,
        fingerprint=request.fingerprint(versions),
        request=request.redacted(versions),
    )
    await ledger._insert(intent, state, f"claim-{key}", task_id=f"id-{key}")


@given(numbers=st.lists(st.integers(1, 5), max_size=5), wanted=st.integers(1, 6))
def test_a_variation_repeats_only_itself_and_the_first_one_repeats_any(numbers, wanted):
    """The suggested variation is always a new one."""
    same = [entry(default_key(f"r{at}", REQUEST, number)) for at, number in enumerate(numbers)]
    found = repetition(same, wanted)
    assert (found is not None) == (wanted in numbers or (wanted == 1 and bool(numbers)))
    if found:
        assert found.next_variation not in numbers
        assert repetition(same, found.next_variation) is None


@pytest.mark.parametrize(
    ("key", "number"), [("run-1-a", 1), ("run-1-a-variation-3", 3), ("k-variation-3", 1)]
)
def test_the_variation_of_a_key_is_read_from_it(key, number):
    """A key of the user's own has no variation, whatever its text is."""
    assert variation_of(key) == number


def test_an_earlier_purchase_is_described_by_where_its_video_is():
    """The sentence has the age, and the file or the command that stores it."""
    late = NOW + timedelta(minutes=3)
    assert "bought 3 minutes ago: prefect-cometapi finish t-1" in described(
        entry(task_id="t-1"), late
    )
    assert "bought a moment ago" in described(entry(task_id="t-1"), NOW)
    assert "possibly charged: prefect-cometapi ledger list" in described(entry(), NOW)


async def test_only_a_recent_purchase_of_the_same_request_and_service_counts(monkeypatch):
    """Another request, another service, and a failed generation are no repetition."""
    other = ImageToVideoRequest(prompt_image="https://example.com/dog.jpg")
    for number, state in enumerate(State):
        await bought(REQUEST, f"run-{number}", state)
    await bought(other, "run-other", State.STORED)
    found = await earlier_purchases(CometAPISettings(), REQUEST)
    assert {it.state for it in found} == {
        State.CLAIMED, State.UNCERTAIN, State.SUBMITTED, State.SUCCEEDED, State.STORED
    }  # fmt: skip
    monkeypatch.setenv("COMETAPI_BASE_URL", "https://other.example.com")
    assert await earlier_purchases(CometAPISettings(), REQUEST) == []
    assert timedelta(minutes=5) < RECENT


async def test_a_picture_that_was_changed_is_another_request(tmp_path):
    """A local file counts by its content, and one that is gone is left to the flow."""
    path = tmp_path / "cat.png"
    path.write_bytes(picture("PNG"))
    request = ImageToVideoRequest.model_validate({"promptImage": str(path)})
    await bought(request, "run-1", State.STORED, promptImage="sha256:" + "0" * 64)
    assert await earlier_purchases(CometAPISettings(), request) == []
    versions = (await prepare(request, open_source, MIN_VALIDITY)).versions
    await bought(request, "run-2", State.STORED, **versions)
    (found,) = await earlier_purchases(CometAPISettings(), request)
    assert found.idempotency_key == "run-2"
    path.unlink()
    await asyncio.to_thread(confirm_repetition, CometAPISettings(), request, 1)


@pytest.mark.parametrize(
    ("answer", "buys"), [("y\n", True), ("yes\n", True), ("\n", False), ("", False)]
)
async def test_a_terminal_is_asked(monkeypatch, answer, buys):
    """Only a yes buys again; an empty answer and the end of the input do not."""
    await bought(REQUEST, "run-1", State.SUBMITTED)

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    shown = Terminal()
    monkeypatch.setattr(sys, "stdin", Terminal(answer))
    monkeypatch.setattr(sys, "stderr", shown)
    if buys:
        await asyncio.to_thread(confirm_repetition, CometAPISettings(), REQUEST, 1)
    else:
        with pytest.raises(SystemExit) as end:
            await asyncio.to_thread(confirm_repetition, CometAPISettings(), REQUEST, 1)
        assert end.value.code == 1
        assert "Nothing was bought." in shown.getvalue()
    assert "prefect-cometapi finish id-run-1 stores it" in shown.getvalue()
    assert "--variation 2 or --idempotency-key KEY does not ask" in shown.getvalue()


async def test_without_a_terminal_it_is_only_a_warning(capsys):
    """A script gets the warning on standard error, and goes on."""
    await asyncio.to_thread(confirm_repetition, CometAPISettings(), REQUEST, 1)
    assert capsys.readouterr().err == ""
    await bought(REQUEST, "run-1", State.SUBMITTED)
    await asyncio.to_thread(confirm_repetition, CometAPISettings(), REQUEST, 1)
    told = capsys.readouterr()
    assert told.err.startswith("Warning: the same request was bought a moment ago")
    assert told.out == ""
    await asyncio.to_thread(confirm_repetition, CometAPISettings(), REQUEST, 2)
    assert capsys.readouterr().err == ""
