# SPDX-License-Identifier: Apache-2.0
"""A mistake that is known before a run is refused before Prefect has one."""

import asyncio
import json
import os
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

import pytest
from prefect.blocks.system import Secret
from prefect.client.orchestration import get_client

from prefect_cometapi.flows import agenerate_batch, aimage_to_video
from prefect_cometapi.runway import CometAPIError, ImageToVideoRequest

pytestmark = pytest.mark.server

URL = "https://example.com/cat.jpg"
IMAGE = ["image-to-video", URL]


def runs() -> set[UUID]:
    """Return the flow runs that the server knows."""
    with get_client(sync_client=True) as client:
        return {run.id for run in client.read_flow_runs(limit=200)}


@pytest.fixture
def refused(prefect_server, sandbox, command, capsys, monkeypatch, tmp_path) -> Callable[..., str]:
    """Return a function that runs a command which must be refused, and returns what it says."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text(json.dumps({"id": "a", "promptImage": URL}))

    def refuse(*words: str, **variables: str) -> str:
        os.environ.update(variables)
        before = runs()
        assert command(*words) == 1
        assert runs() == before
        assert sandbox.accepted == []
        told = capsys.readouterr()
        assert told.out.strip() == ""
        return told.err

    return refuse


def test_a_strict_batch_lists_every_row_and_leaves_no_run(refused, tmp_path):
    """Each row that is not valid is a line of its own, also if all have the same problem."""
    rows = [{"id": f"r{n}", "promptImage": URL, "duration": 70} for n in range(12)]
    rows.append({"id": "good", "promptImage": URL})
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    lines = refused("batch", "rows.jsonl", "--strict").splitlines()
    assert [line.split(":")[0].strip() for line in lines[:12]] == [
        f"line {n + 1} (id r{n})" for n in range(12)
    ]
    assert lines[12] == "InvalidManifest: not every row is valid"


@pytest.mark.parametrize(
    ("words", "variables", "says"),
    [
        (
            [*IMAGE, "--credentials", "none"],
            {"COMETAPI_KEY": ""},
            "AuthenticationError: the block cometapi-credentials/none cannot be loaded",
        ),
        (IMAGE, {"COMETAPI_LEDGER_URL": "foo"}, "the ledger's URL is 'foo', which is not"),
        (IMAGE, {"COMETAPI_KEY": ""}, "AuthenticationError: there is no API key"),
        (["batch", "rows.jsonl"], {"COMETAPI_KEY": ""}, "AuthenticationError: there is no API key"),
        (["finish", "some-id"], {"COMETAPI_KEY": ""}, "AuthenticationError: there is no API key"),
        (IMAGE, {"COMETAPI_KEY": "Bearer x"}, "COMETAPI_KEY: the API key begins with the word"),
        (IMAGE, {"COMETAPI_BASE_URL": "http://example.com"}, "COMETAPI_BASE_URL: must be https"),
        (["collect"], {"COMETAPI_BASE_URL": "http://a.test"}, "COMETAPI_BASE_URL: must be https"),
        (["batch", "rows.jsonl"], {"COMETAPI_MAX_IN_FLIGHT": "0"}, "COMETAPI_MAX_IN_FLIGHT: "),
        (IMAGE, {"COMETAPI_LEDGER_URL": "mysql://a/b"}, "LedgerUnavailable: "),
        (["collect"], {"COMETAPI_LEDGER_URL": "sqlite:///x.db"}, "needs an absolute path"),
        (IMAGE, {"COMETAPI_LEDGER_URL": "generation-ledger/none"}, "LedgerUnavailable: the block"),
        ([*IMAGE, "--storage", "rows.jsonl/x"], {}, "StorageUnavailable: "),
        ([*IMAGE, "--storage", "s3-bucket/none"], {}, "the block s3-bucket/none cannot be loaded"),
        ([*IMAGE, "--storage", "secret/of-tests"], {}, "the block secret/of-tests cannot store"),
        (["batch", "rows.jsonl", "--storage", "s3-bucket/none"], {}, "StorageUnavailable: "),
        (["collect", "--storage", "s3-bucket/none"], {}, "StorageUnavailable: the block"),
        (["batch", "rows.jsonl", "--max-spend", "9"], {}, "max_spend needs prices. Set COMETAPI"),
        (["batch", "no.jsonl"], {}, "InvalidManifest: no.jsonl cannot be read: the file does not"),
        ([*IMAGE, "--duration", "77"], {}, "duration: Input should be less than"),
        (["image-to-video", "no.png"], {}, "SourceUnavailable: "),
    ],
)
def test_a_mistake_leaves_no_run_behind(refused, words, variables, says):
    """Each mistake that can be seen beforehand is refused with its reason, without a flow run."""
    Secret(value="s").save("of-tests", overwrite=True)  # pyright: ignore[reportArgumentType]
    assert says in " ".join(refused(*words, **variables).split())


def words_of(error: CometAPIError) -> str:
    """Return an error as the commands print it."""
    first, *rest = str(error).splitlines()
    kept = [line for line in rest if not line.startswith("Generation: ")]  # a run has a key
    return "\n  ".join([f"{type(error).__name__}: {first}", *kept]) + "\n"


@pytest.mark.parametrize(
    ("variables", "storage"),
    [
        ({"COMETAPI_KEY": ""}, None),
        ({"COMETAPI_LEDGER_URL": "mysql://a/b"}, None),
        ({"COMETAPI_BASE_URL": "http://example.com"}, None),
        ({}, "rows.jsonl/x"),
        ({}, "s3-bucket/none"),
    ],
)
def test_a_refusal_has_the_words_of_the_flow(refused, variables, storage):
    """A command refuses in the words, and with the advice, that the flow itself would have."""
    words = ["--storage", storage] if storage else []
    told = refused(*IMAGE, *words, **variables)
    assert told == words_of(refusal_of_flow(storage))


def refusal_of_flow(storage: str | None) -> CometAPIError:
    """Return the error of the flow with the same request."""
    with pytest.raises(CometAPIError) as refusal:
        asyncio.run(aimage_to_video(ImageToVideoRequest(prompt_image=URL), storage=storage))
    return refusal.value


def test_a_missing_manifest_has_the_words_of_the_flow(refused):
    """The command refuses a missing manifest as the flow does."""
    told = refused("batch", "no.jsonl")
    with pytest.raises(CometAPIError) as refusal:
        asyncio.run(agenerate_batch("no.jsonl"))
    assert told == words_of(refusal.value)


def test_the_collector_may_have_nothing_to_do(prefect_server, sandbox, command, monkeypatch):
    """The collector needs a key and the usual storage only if there is something to collect."""
    monkeypatch.setenv("COMETAPI_KEY", "")
    monkeypatch.setenv("COMETAPI_STORAGE", "s3-bucket/none")
    assert command("collect") == 0


def test_a_check_leaves_only_the_folder_for_the_videos(refused, tmp_path):
    """A refusal after the check of the storage leaves no file of that check."""
    refused("batch", "no.jsonl", "--storage", "kept")
    assert [path.name for path in Path(tmp_path / "kept").rglob("*") if path.is_file()] == []
