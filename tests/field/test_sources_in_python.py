# SPDX-License-Identifier: Apache-2.0
"""People pass what they have in Python: a path, bytes, an open file, a stored result, a block."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import pytest
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.exceptions import ParameterTypeError
from prefect.filesystems import LocalFileSystem, RemoteFileSystem
from pydantic import SecretStr

from prefect_cometapi.blocks import CometAPICredentials
from prefect_cometapi.flows import (
    RunwayJob,
    collect,
    fetch_output,
    finish_generation,
    generate_batch,
    image_to_video,
    persist_output,
    poll_generation,
    submit_generation,
    text_to_image,
    video_to_video,
)
from prefect_cometapi.runway import AuthenticationError, StorageError, StorageUnavailable

from ..conftest import KEY
from ..pictures import picture

pytestmark = pytest.mark.server

URL = "https://example.com/cat.jpg"
PNG = picture()
DATA = f"data:image/png;base64,{base64.b64encode(PNG).decode()}"


def pictured(source: Any) -> Any:
    """Return a request as a dict, which a flow takes too."""
    return {"promptImage": source}


def parameters(state: Any) -> dict[str, Any]:
    """Return the parameters of a run as Prefect has stored them."""
    client = get_client(sync_client=True)
    assert isinstance(client, SyncPrefectClient)
    return client.read_flow_run(state.state_details.flow_run_id).parameters


def test_a_flow_takes_a_picture_as_python_has_it(prefect_server, sandbox, tmp_path):
    """Each way sends the picture, and Prefect stores no byte of it."""
    (tmp_path / "cat").write_bytes(PNG)
    with (tmp_path / "cat").open("rb") as file:
        for given in (tmp_path / "cat", (tmp_path / "cat").as_uri(), PNG, file, DATA[22:]):
            state = image_to_video(pictured(given), return_state=True)
            assert state.is_completed()
            assert sandbox.accepted[-1].body["promptImage"] == DATA
            stored = parameters(state)["request"]["promptImage"]
            assert len(stored) < 200
            assert DATA[30:60] not in stored
    with pytest.raises(ParameterTypeError, match="its content is not a JPEG, PNG or WebP"):
        image_to_video(pictured(b"a text"))
    assert len(sandbox.accepted) == 5


@pytest.mark.heavy
def test_a_result_is_the_source_of_the_next_flow(prefect_server, sandbox):
    """A result stands for its first video or picture, in a list too."""
    drawing: Any = {"promptText": "cat", "ratio": "1280:720", "referenceImages": [{"uri": URL}]}
    painted = text_to_image(drawing)
    shown = image_to_video(pictured(painted))
    restyled: Any = {"videoUri": shown, "promptText": "snow", "references": [{"uri": painted}]}
    assert video_to_video(restyled).videos
    listed = [{"videoUri": shown.videos[0], "promptText": "rain"}, pictured(PNG)]
    assert generate_batch(listed).succeeded == 2
    sent = sandbox.accepted[2].body
    assert sent["videoUri"].startswith("data:video/mp4;base64,")
    assert sent["references"][0]["uri"].startswith("data:image/png;base64,")
    with pytest.raises(ParameterTypeError, match="has no picture"):
        image_to_video(pictured(shown))


def test_storage_and_credentials_are_given_as_blocks_or_names(prefect_server, sandbox, tmp_path):
    """Every flow, task and batch takes both forms; the ledger has the name of the block."""
    account = CometAPICredentials(api_key=SecretStr(KEY), base_url=sandbox.url)
    account.save("of-the-shop", overwrite=True)
    block = LocalFileSystem(basepath=str(tmp_path / "in-block"))
    block.save("of-the-shop", overwrite=True)
    given: dict[str, Any] = {"credentials": "of-the-shop", "storage": block}
    state = image_to_video(pictured(URL), **given, return_state=True)
    result = state.result()
    assert Path(result.videos[0].uri).parent == tmp_path / "in-block"
    assert parameters(state)["storage"] == "local-file-system/of-the-shop"
    others: list[Any] = [
        finish_generation(result.task_id, **given),
        generate_batch([pictured(URL)], **given),
        collect(**given),
    ]
    assert (others[0].task_id, others[1].succeeded, others[2].failed) == (result.task_id, 1, 0)
    given["credentials"] = "cometapi-credentials/of-the-shop"
    job = RunwayJob(request=pictured(URL), idempotency_key="sku-17", **given)
    assert Path(job.trigger().fetch_result().videos[0].uri).parent == tmp_path / "in-block"

    @flow
    def mine() -> str:
        submission = submit_generation(pictured(URL), **given)
        finished = poll_generation(submission, given["credentials"])
        fetched = fetch_output(submission, finished, **given)
        return persist_output(submission, finished, fetched, given["storage"])[0].uri

    assert Path(mine()).parent == tmp_path / "in-block"
    beside = image_to_video(pictured(URL), storage=tmp_path / "beside").videos[0]
    assert Path(beside.uri).parent == tmp_path / "beside"
    manifest: Any = tmp_path / "spring.jsonl"
    manifest.write_text(json.dumps({"id": 1, "promptImage": URL}))
    assert generate_batch(manifest).succeeded == 1


def test_a_block_that_no_other_run_finds_buys_nothing(prefect_server, sandbox):
    """The message says that it must be saved; a wrong name is told, and an API key not repeated."""
    secret = RemoteFileSystem(basepath="memory://a", settings={"secret": "canary-4711"})
    with pytest.raises(StorageUnavailable, match="is not saved") as caught:
        image_to_video(pictured(URL), storage=secret)
    assert "Money: nothing was charged" in str(caught.value)
    with pytest.raises(AuthenticationError, match="cometapi-credentials/absent cannot be loaded"):
        image_to_video(pictured(URL), credentials="absent")
    with pytest.raises(AuthenticationError, match="and not an API key") as refused:
        image_to_video(pictured(URL), credentials="sk-canary-0123456789")
    assert "canary" not in str(refused.value)
    LocalFileSystem().save("no-account", overwrite=True)
    with pytest.raises(AuthenticationError, match="does not hold CometAPI credentials"):
        image_to_video(pictured(URL), credentials="local-file-system/no-account")
    assert sandbox.accepted == []
    submission = submit_generation(pictured(URL), idempotency_key="sku-17")
    finished = poll_generation(submission)
    with pytest.raises(StorageError, match="is not saved"):
        fetch_output(submission, finished, storage=secret)


def test_a_block_whose_location_says_all_needs_no_name(prefect_server, sandbox, tmp_path):
    """A folder, or a file system without settings, is found by its path."""
    folder = LocalFileSystem(basepath=str(tmp_path / "plain"))
    assert Path(image_to_video(pictured(URL), storage=folder).videos[0].uri).is_file()
    memory = RemoteFileSystem(basepath="memory://plain")
    stored = image_to_video(pictured(io.BytesIO(PNG)), storage=memory)
    assert stored.videos[0].uri.startswith("memory://plain/")
