# SPDX-License-Identifier: Apache-2.0
"""Restarting databases and full disks cause no second purchase and no loss."""

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest
from prefect.filesystems import LocalFileSystem

from prefect_cometapi.blocks import GenerationLedger
from prefect_cometapi.flows import collect, image_to_video
from prefect_cometapi.runway import AuthenticationError, LedgerUnavailable, State, StorageError

pytestmark = pytest.mark.server


@pytest.mark.heavy
@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_a_database_that_restarts_while_a_clip_renders_costs_nothing(
    prefect_server, sandbox, image, postgres, monkeypatch, mode
):
    """A run that polls while PostgreSQL stops or crashes ends stored and recorded."""
    monkeypatch.setenv("COMETAPI_LEDGER_URL", postgres.create_database())
    from prefect_cometapi.flows.steps import poll

    restarts: list[str] = []
    patience = poll._policy

    def restart_and_wait(*args):
        restarts.append(postgres.restart(mode))
        return patience(*args)

    monkeypatch.setattr(poll, "_policy", restart_and_wait)
    result = image_to_video(image, idempotency_key="restarted")
    monkeypatch.undo()
    assert len(restarts) == 1
    assert Path(result.videos[0].uri).exists()
    assert len(sandbox.accepted) == 1


@pytest.mark.heavy
def test_a_ledger_that_goes_away_after_the_purchase_costs_no_clip(
    prefect_server, sandbox, image, postgres, monkeypatch, caplog, ledger_probe
):
    """A clip is delivered without the ledger, with a warning, and is recorded later."""
    monkeypatch.setenv("COMETAPI_LEDGER_URL", postgres.create_database())
    from prefect_cometapi.flows.steps import poll

    patience = poll._policy

    def stop_and_wait(*args):
        ledger_probe.ledger.database.retry_timeout = 0.2
        postgres.stop("immediate")
        return patience(*args)

    monkeypatch.setattr(poll, "_policy", stop_and_wait)
    try:
        first = image_to_video(image, idempotency_key="gone")
    finally:
        postgres.start()
    monkeypatch.setattr(poll, "_policy", patience)
    assert Path(first.videos[0].uri).exists()
    assert "the delivery continues without it" in caplog.text
    assert ledger_probe["gone"].state is State.SUBMITTED
    assert collect().stored == 1
    assert ledger_probe["gone"].state is State.STORED
    assert len(sandbox.accepted) == 1


@pytest.mark.heavy
def test_a_full_disk_under_the_ledger_stops_before_money_moves(
    prefect_server, sandbox, image, small_disk, monkeypatch
):
    """A claim that cannot be written is a clear error, and nothing is sent."""
    disk = small_disk(1000)
    monkeypatch.setenv("COMETAPI_LEDGER_URL", f"sqlite:///{disk.folder}/ledger.db")
    image_to_video(image, idempotency_key="fits", wait=False)
    disk.fill()
    with pytest.raises(LedgerUnavailable, match="database or disk is full") as told:
        image_to_video(image, idempotency_key="full")
    assert "nothing was charged" in str(told.value)
    assert len(sandbox.accepted) == 1
    disk.make_room()
    assert collect().stored == 1


@pytest.mark.heavy
def test_a_disk_under_the_ledger_that_fills_after_the_purchase_costs_no_clip(
    prefect_server, sandbox, image, small_disk, monkeypatch, caplog, ledger_probe
):
    """A full disk under the ledger after the purchase leaves a clip that `collect` stores later."""
    disk = small_disk(1000)
    monkeypatch.setenv("COMETAPI_LEDGER_URL", f"sqlite:///{disk.folder}/ledger.db")
    from prefect_cometapi.flows.steps import poll

    patience = poll._policy

    def fill_and_wait(*args):
        disk.fill()
        return patience(*args)

    monkeypatch.setattr(poll, "_policy", fill_and_wait)
    first = image_to_video(image, idempotency_key="filled")
    monkeypatch.setattr(poll, "_policy", patience)
    assert Path(first.videos[0].uri).exists()
    assert "is full; make room on its disk; the delivery continues without it" in caplog.text
    disk.make_room()
    assert ledger_probe["filled"].state is State.SUBMITTED
    assert collect().stored == 1
    assert ledger_probe["filled"].state is State.STORED
    assert len(sandbox.accepted) == 1


@pytest.mark.heavy
def test_a_full_disk_under_the_storage_loses_no_clip(
    prefect_server, sandbox, image, small_disk, tmp_path, ledger_probe, monkeypatch
):
    """A full disk is reported with the next step, and the same key delivers to another storage."""
    # The disk has become full since it was checked.
    monkeypatch.setattr("prefect_cometapi.runway.storage.base.MIN_FREE", 0)
    disk = small_disk(100).folder  # A clip of the sandbox is larger.
    with pytest.raises(StorageError, match="No space left on device") as told:
        image_to_video(image, idempotency_key="full", storage=str(disk / "videos"))
    assert f"prefect-cometapi finish {sandbox.accepted[0].task_id}" in str(told.value)
    assert [path for path in disk.rglob("*.mp4") if path.is_file()] == []
    assert ledger_probe["full"].state is State.SUCCEEDED
    video = image_to_video(image, idempotency_key="full", storage=str(tmp_path / "large")).videos[0]
    assert hashlib.sha256(Path(video.uri).read_bytes()).hexdigest() == video.sha256
    assert len(sandbox.accepted) == 1


def test_the_ledger_holds_no_secret(prefect_server, sandbox, tmp_path, ledger_probe):
    """The ledger's files have no API key, no tokens of signed addresses and no pictures."""
    signed: Any = {"promptImage": "https://example.com/cat.jpg?Signature=canary-token"}
    picture: Any = {"promptImage": "data:image/png;base64,Y2FuYXJ5LXBpY3R1cmU="}
    image_to_video(signed, idempotency_key="a")
    image_to_video(picture, idempotency_key="b", wait=False)
    sandbox.add_fault("create:unauthorized")
    with pytest.raises(AuthenticationError):
        image_to_video(picture, idempotency_key="c")
    content = b"".join(path.read_bytes() for path in tmp_path.glob("ledger.db*"))
    assert b"<sha256:" in content
    for secret in (os.environ["COMETAPI_KEY"], "canary-token", "Y2FuYXJ5LXBpY3R1cmU"):
        assert secret.encode() not in content


def test_a_saved_block_says_where_the_ledger_is(
    prefect_server, sandbox, image, tmp_path, monkeypatch
):
    """A worker finds the ledger by the name of its block, and refuses a block of another kind."""
    GenerationLedger.model_validate({"url": f"sqlite:///{tmp_path}/block.db"}).save(
        "ledger-of-a-test", overwrite=True
    )
    monkeypatch.setenv("COMETAPI_LEDGER_URL", "generation-ledger/ledger-of-a-test")
    image_to_video(image, idempotency_key="by-block", wait=False)
    assert (tmp_path / "block.db").exists()
    LocalFileSystem(basepath=str(tmp_path)).save("no-ledger", overwrite=True)
    monkeypatch.setenv("COMETAPI_LEDGER_URL", "local-file-system/no-ledger")
    with pytest.raises(LedgerUnavailable, match="no-ledger is not a Generation Ledger block"):
        image_to_video(image, idempotency_key="by-block", wait=False)
    assert len(sandbox.accepted) == 1
