# SPDX-License-Identifier: Apache-2.0
"""An older copy of a ledger and a second ledger for one storage are detected before a purchase."""

import asyncio
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from prefect_cometapi.flows import generate_batch, image_to_video, submit_generation
from prefect_cometapi.flows.runtime.sync import run_sync
from prefect_cometapi.runway import LedgerOutdated, State
from prefect_cometapi.runway.ledger.marks import FOLDER
from prefect_cometapi.runway.ledger.store import get_ledger

pytestmark = pytest.mark.server


@pytest.fixture
def older_copy(prefect_server, sandbox, image, ledger_probe, tmp_path, monkeypatch) -> None:
    """Create a ledger on a new machine that has key a and lacks the stored purchase b."""
    image_to_video(image, idempotency_key="a")
    copy = shutil.copyfile(tmp_path / "ledger.db", tmp_path / "backup.db")
    image_to_video(image, idempotency_key="b")
    moved = tmp_path / "restored.db"
    copy.rename(moved)
    monkeypatch.setenv("COMETAPI_LEDGER_URL", f"sqlite:///{moved}")


def cli(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("prefect-cometapi")), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def test_an_older_copy_buys_nothing_until_the_stored_videos_are_read_back(
    older_copy, sandbox, image, ledger_probe, caplog
):
    """An older copy buys nothing until the stored videos are read back, and then reuses them."""
    for buy in (
        lambda: image_to_video(image, idempotency_key="b"),
        lambda: image_to_video(image, idempotency_key="c"),
        lambda: generate_batch([image], idempotency_key="batch"),
    ):
        with pytest.raises(LedgerOutdated, match="ledger rebuild"):
            buy()
    assert len(sandbox.accepted) == 2
    done = cli("ledger", "rebuild")
    assert done.returncode == 0, done.stderr
    assert "purchases already in the ledger: 1; restored: 1" in " ".join(done.stdout.split())
    assert ledger_probe["b"].state is State.STORED
    result = image_to_video(image, idempotency_key="b")
    assert Path(result.videos[0].uri).exists()
    assert len(sandbox.accepted) == 2
    assert image_to_video(image, idempotency_key="c").videos
    assert len(sandbox.accepted) == 3


@pytest.mark.heavy
def test_a_video_that_was_read_back_and_is_deleted_is_delivered_again(
    older_copy, sandbox, image, ledger_probe
):
    """A deleted video that was read back is fetched again with an address from the service."""
    assert cli("ledger", "rebuild").returncode == 0
    (video,) = ledger_probe["b"].videos.values()
    Path(video[0].uri).unlink()
    result = image_to_video(image, idempotency_key="b")
    assert Path(result.videos[0].uri).exists()
    assert len(sandbox.accepted) == 2


@pytest.mark.heavy
def test_purchases_that_no_stored_video_tells_of_are_the_users_decision(
    older_copy, sandbox, image, ledger_probe, tmp_path
):
    """Missing purchases without a stored video block new ones until the user decides."""
    for sidecar in (tmp_path / "videos").glob("*-b-*.json"):
        sidecar.unlink()
    refused = cli("ledger", "rebuild")
    assert refused.returncode == 1
    assert "Up to 1 purchases are missing" in refused.stderr
    assert "rebuild --accept-missing" in refused.stderr
    with pytest.raises(LedgerOutdated):
        image_to_video(image, idempotency_key="c")
    assert cli("ledger", "rebuild", "--accept-missing").returncode == 0
    assert image_to_video(image, idempotency_key="c").videos


@pytest.mark.heavy
def test_two_ledgers_for_one_storage_are_reported_and_hide_no_file(
    prefect_server, sandbox, image, ledger_probe, tmp_path, monkeypatch, caplog
):
    """Two ledgers for one storage are reported, and the videos of both are there."""
    image_to_video(image, idempotency_key="sku-17")
    assert "another ledger" not in caplog.text
    monkeypatch.setenv("COMETAPI_LEDGER_URL", f"sqlite:///{tmp_path}/second.db")
    image_to_video(image, idempotency_key="sku-17")
    assert "is also used with another ledger" in caplog.text
    assert "the same COMETAPI_LEDGER_URL" in caplog.text
    assert len(sandbox.accepted) == 2
    assert len(list((tmp_path / "videos").glob("*.mp4"))) == 2
    assert len(list((tmp_path / "videos" / FOLDER).iterdir())) == 2
    told = " ".join(cli("doctor").stdout.split())
    assert "is also used with another ledger" in told


@pytest.mark.heavy
def test_a_step_of_an_own_flow_compares_too(older_copy, sandbox, image, ledger_probe):
    """A step of a user's own flow compares ledger and storage, too."""
    with pytest.raises(LedgerOutdated):
        submit_generation(image, idempotency_key="c")
    assert len(sandbox.accepted) == 2


@pytest.mark.heavy
def test_a_batch_compares_once_and_leaves_a_mark_at_its_end(
    prefect_server, sandbox, image, ledger_probe, tmp_path
):
    """A batch compares once, and ends with the mark of its last claim."""
    generate_batch([image, {**image, "promptText": "pan"}], idempotency_key="batch")
    ledger = get_ledger(f"sqlite:///{tmp_path}/ledger.db")
    mark = run_sync(ledger.history.mark())
    (left,) = (tmp_path / "videos" / FOLDER).iterdir()
    assert f'"serial":{mark.serial},' in left.read_text()
    assert mark.serial == 2
    assert asyncio.run(ledger.history.claims_since(0)) == {1, 2}
