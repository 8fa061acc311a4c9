# SPDX-License-Identifier: Apache-2.0
"""The decoder starts while the first download is under way."""

import asyncio
from contextlib import nullcontext
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest

from prefect_cometapi.flows.steps import fetch
from prefect_cometapi.runway import DownloadInterrupted, StorageError
from prefect_cometapi.runway.media import inspector
from prefect_cometapi.runway.models.generation import (
    CompletedGeneration,
    Generation,
    Status,
    Submission,
)

from ... import waiting

SUBMISSION = Submission(
    idempotency_key="fetch", task_id="task", submitted_at=datetime.now(UTC), request={}
)
FINISHED = CompletedGeneration(
    generation=Generation.model_validate(
        {"task_id": "task", "status": Status.SUCCEEDED, "outputs": ["https://example.com/a.mp4"]}
    ),
    polls=1,
    waited=1.0,
)


CONTEXT: Any = SimpleNamespace(
    settings=SimpleNamespace(allowed_asset_hosts=frozenset()),
    base_url="https://example.com",
    open_assets=nullcontext,
)


async def test_the_decoder_starts_during_the_first_download(tmp_path, monkeypatch):
    """A single clip does not wait for the decoder to start once it is here."""
    monkeypatch.setattr(fetch, "_examiner", fetch._examiner.__wrapped__)
    decoder = inspector.Decoder()
    monkeypatch.setattr(inspector, "_decoder", lambda _process: decoder)

    async def until_it_runs(*_arguments: object, **_options: object) -> str:
        await asyncio.to_thread(waiting.until, lambda: decoder._process, "the decoder")
        raise DownloadInterrupted("the connection is gone")

    monkeypatch.setattr(fetch, "download", until_it_runs)
    with pytest.raises(DownloadInterrupted):
        await fetch._fetch(CONTEXT, SUBMISSION, FINISHED, 0, tmp_path)
    decoder.close()


def test_a_decoder_that_does_not_start_is_reported_with_the_file(tmp_path, monkeypatch):
    """The early start of the decoder fails silently, and the first file reports the reason."""
    decoder = inspector.Decoder(tmp_path / "absent.py")
    monkeypatch.setattr(inspector, "_decoder", lambda _process: decoder)
    inspector.start_decoder()
    file = tmp_path / "clip.mp4"
    file.write_bytes(b"clip")
    with pytest.raises(StorageError, match="cannot read videos"):
        inspector.inspect_video(file)
