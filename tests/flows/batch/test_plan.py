# SPDX-License-Identifier: Apache-2.0
"""The key of a batch is derived from its manifest."""

import inspect
import tempfile
from pathlib import Path

import pytest
from prefect.runner import Runner
from prefect.workers.process import ProcessWorker

from prefect_cometapi.flows.batch.plan import _batch_key, check_output, make_plan
from prefect_cometapi.runway import InvalidRequest, StorageUnavailable
from prefect_cometapi.runway.batch.rows import batch_keys


@pytest.mark.parametrize(
    "signed",
    [
        "https://bucket.example.com/catalogue.jsonl?X-Amz-Signature=aaa",
        "https://bucket.example.com/catalogue.jsonl?X-Amz-Signature=bbb#c",
        "https://bob:secret@bucket.example.com/catalogue.jsonl",
        "https://bucket.example.com/catalogue.jsonl?Policy=x/TopSecretPiece~__",
    ],
)
def test_a_fresh_signature_is_no_other_manifest(signed):
    """A new signature in a manifest's URL does not change the key or become part of it."""
    assert _batch_key(signed) == _batch_key("https://bucket.example.com/catalogue.jsonl")
    assert _batch_key(signed).startswith("catalogue-")


def test_two_sheets_of_one_document_are_two_manifests():
    """The number of a sheet is part of the key, and how the document is exported is not."""
    sheet = "https://docs.google.com/spreadsheets/d/1aB/export?format=csv"
    assert _batch_key(f"{sheet}&gid=1") == _batch_key(f"{sheet}&gid=1&single=true")
    assert len({_batch_key(sheet), _batch_key(f"{sheet}&gid=1"), _batch_key(f"{sheet}&gid=2")}) == 3


def test_another_manifest_has_another_key():
    """Another host, another path or another file of the same name gives another key."""
    places = ["https://a/b.csv", "https://c/b.csv", "https://a/x/b.csv", "s3://a/b.csv", "/a/b.csv"]
    assert len({_batch_key(place) for place in places}) == len(places)


@pytest.mark.parametrize(
    "written",
    [
        "../catalogue.csv",
        "./../catalogue.csv",
        "../out/../catalogue.csv",
        "/{}/catalogue.csv",
        "file://{}/catalogue.csv",
    ],
)
def test_a_manifest_is_the_same_from_whichever_folder(tmp_path, monkeypatch, written):
    """The key of a manifest does not depend on the working folder."""
    key = _batch_key("catalogue.csv")
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path / "out")
    assert _batch_key(written.format(tmp_path)) == key


@pytest.mark.parametrize("link", ["file", "folder", "both"])
def test_a_manifest_is_the_same_through_a_link(tmp_path, monkeypatch, link):
    """A link to a manifest or its folder gives the same key, and another file another key."""
    real = tmp_path / "real"
    real.mkdir()
    (real / "catalogue.csv").write_text("id\n")
    (real / "other.csv").write_text("id\n")
    (tmp_path / "linked").symlink_to(real)
    (tmp_path / "link.csv").symlink_to("real/catalogue.csv")
    (tmp_path / "twice.csv").symlink_to("linked/catalogue.csv")
    monkeypatch.chdir(tmp_path)
    written = {"file": "link.csv", "folder": "./linked/catalogue.csv", "both": "twice.csv"}[link]
    assert _batch_key(written) == _batch_key(str(real / "catalogue.csv"))
    assert _batch_key(written) == _batch_key((tmp_path / written).as_uri())
    assert _batch_key(written) != _batch_key("real/other.csv")


def test_results_do_not_replace_a_manifest_that_is_reached_through_a_link(tmp_path):
    """Results do not overwrite a manifest through a link to it."""
    (tmp_path / "rows.jsonl").write_text("{}\n")
    (tmp_path / "link.jsonl").symlink_to("rows.jsonl")
    with pytest.raises(StorageUnavailable, match="would overwrite the manifest"):
        check_output(str(tmp_path / "link.jsonl"), str(tmp_path / "rows.jsonl"))


@pytest.mark.parametrize("name", ["sk-november-2026.csv", "a?b=c.csv"])
def test_any_name_of_a_manifest_leads_to_a_key(tmp_path, name):
    """Any file name gives a valid key, even one that looks like a secret."""
    key = _batch_key(str(tmp_path / name))
    assert batch_keys(key)
    assert key != _batch_key(str(tmp_path / "other" / name))


def test_a_manifest_in_a_folder_of_one_run_needs_a_key(tmp_path, monkeypatch):
    """A manifest in the folder of one run needs an explicit key, as its path changes each night."""
    with tempfile.TemporaryDirectory(suffix="prefect") as folder:
        monkeypatch.chdir(folder)
        rows = Path("catalogue.jsonl")
        rows.write_text('{"id": "a", "promptImage": "https://example.com/cat.jpg"}\n')
        for named in (rows.name, str(rows.absolute()), rows.absolute().as_uri()):
            with pytest.raises(InvalidRequest, match="Pass idempotency_key, or set"):
                make_plan(named, None)
        assert make_plan(rows.name, "catalogue").items[0].idempotency_key == "catalogue/a"
        monkeypatch.chdir(tmp_path)
    pulled = f"{tempfile.gettempdir()}/runner_storage/5c9f/catalogue.jsonl"
    with pytest.raises(InvalidRequest, match="for this run only"):
        make_plan(pulled, None)


def test_prefect_makes_such_folders():
    """Prefect still creates folders with these names, which its documentation does not mention."""
    assert 'TemporaryDirectory(suffix="prefect")' in inspect.getsource(ProcessWorker.run)
    assert '"runner_storage"' in inspect.getsource(Runner)
