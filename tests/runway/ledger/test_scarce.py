# SPDX-License-Identifier: Apache-2.0
"""Nothing is bought while the machine lacks a resource that is needed to record it."""

import json
import subprocess
import sys

import pytest

OUT_OF_FILES = """
import asyncio, json, resource, sys
from contextlib import suppress
from pathlib import Path

from pydantic import SecretStr

from prefect_cometapi.runway import CometAPIError, ImageToVideoRequest
from prefect_cometapi.runway.api.account import AccountClient
from prefect_cometapi.runway.api.client import RunwayClient
from prefect_cometapi.runway.media.download import AssetClients, download

REQUEST = ImageToVideoRequest(prompt_image="https://example.com/cat.jpg")


async def told(call):
    try:
        return [True, str(await call)]
    except CometAPIError as error:
        return [type(error).__name__, str(error)]


async def main(service):
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    async with RunwayClient(SecretStr("sk-out-of-files"), base_url=service) as client:
        async with AssetClients() as clients:
            # libraries import some of their parts late: httpx of the account, aiohttp of a poll
            async with AccountClient(api_key=SecretStr("sk"), base_url=service) as account:
                await account.balance()
            await told(client.get("any"))
            held = []
            with suppress(OSError):
                while True:
                    held.append(open("/dev/null"))
            without = await told(client.create(REQUEST))
            video = await told(
                download(clients, service + "/o", Path("o.mp4"), trusted={"127.0.0.1"})
            )
            for file in held:
                file.close()
            print(json.dumps([without, video, await told(client.create(REQUEST))]))


asyncio.run(main(sys.argv[1]))
"""


def test_without_a_free_descriptor_nothing_is_bought_and_it_is_told(sandbox, tmp_path):
    """The request was not sent, and it works when descriptors are free again."""
    service = sandbox()
    done = subprocess.run(
        [sys.executable, "-c", OUT_OF_FILES, service.url],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    without, video, with_them = json.loads(done.stdout)
    assert without[0] == "ServiceUnavailable"
    assert "nothing was charged" in without[1]
    assert video[0] == "StorageError"
    assert "Too many open files" in video[1]
    assert with_them == [True, service.accepted[0].task_id]
    assert len(service.accepted) == 1


@pytest.mark.parametrize("jump", [-86_400.0, 86_400.0])
async def test_a_clock_that_jumps_changes_no_wait(jump, sandbox, request_, client_of, monkeypatch):
    """Waits use a monotonic clock, so the wall clock may jump by a day."""
    import time

    from prefect_cometapi.runway import Submission
    from prefect_cometapi.runway.api.polling import PollPolicy, wait_until_finished

    service = sandbox(render_seconds=1)
    client = await client_of(service.url)
    task_id = await client.create(request_)
    submission = Submission.model_validate(
        {"idempotency_key": "k", "task_id": task_id, "submitted_at": "2026-11-22T00:00:00Z"}
    )
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + jump)
    finished = await wait_until_finished(
        client, submission, PollPolicy(interval=0.1, timeout=30, not_found_grace=5)
    )
    assert finished.generation.outputs
