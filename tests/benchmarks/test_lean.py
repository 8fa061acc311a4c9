# SPDX-License-Identifier: Apache-2.0
"""The benchmark service replies as the sandbox does and counts its requests."""

import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from statistics import fmean, pstdev

import httpx
import pytest

from prefect_cometapi.sandbox import Sandbox

SCRIPTS = Path(__file__).parents[2] / "benchmarks"
HEADERS = {"Authorization": "Bearer benchmark", "X-Runway-Version": "2024-11-06"}
BODY = {"promptImage": "https://example.com/cat.jpg", "promptText": "zoom", "model": "gen3a_turbo"}
CLIP = bytes(range(256)) * 1000


@pytest.fixture(autouse=True)
def _scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the benchmarks importable as top-level modules, as they import each other."""
    monkeypatch.setattr(sys, "path", [str(SCRIPTS), *sys.path])


@pytest.fixture
def lean(tmp_path: Path) -> Iterator[httpx.Client]:
    from service import lean_process

    clip = tmp_path / "clip.mp4"
    clip.write_bytes(CLIP)
    with (
        lean_process(clip, rendering=0.3) as url,
        httpx.Client(base_url=url, headers=HEADERS) as http,
    ):
        yield http


def shape(reply: httpx.Response) -> tuple[int, object]:
    """Return the status and the names in a reply, without ids and times, which differ."""

    def names(value: object) -> object:
        if isinstance(value, dict):
            return {name: names(inner) for name, inner in value.items()}
        return [names(inner) for inner in value] if isinstance(value, list) else type(value)

    return reply.status_code, names(reply.json())


@pytest.mark.heavy
def test_it_replies_as_the_sandbox_does(lean: httpx.Client) -> None:
    """The benchmark service gives the same replies as the sandbox."""
    with (
        Sandbox(render_seconds=2) as sandbox,
        httpx.Client(base_url=sandbox.url, headers=HEADERS) as real,
    ):
        told = [[], []]
        for http, replies in zip((lean, real), told, strict=True):
            create = "/runwayml/v1/image_to_video"
            created = http.post(create, json=BODY)
            path = f"/runwayml/v1/tasks/{created.json()['id']}"
            states = [http.get(path)]
            while states[-1].json()["status"] != "SUCCEEDED":
                time.sleep(0.05)
                states.append(http.get(path))
            words = {reply.json()["status"]: reply for reply in states}
            replies += [
                created,
                *(words[word] for word in ("PENDING", "RUNNING", "SUCCEEDED")),
                http.get("/runwayml/v1/tasks/unknown"),
                http.get(path, headers={"Authorization": ""}),
                http.post("/runwayml/v1/video_to_video", json=BODY),
                http.post("/runwayml/v1/video_to_video", json=BODY | {"model": "gen4_aleph"}),
                http.post(create, json=BODY | {"duration": 7}),
                http.get("/nowhere"),
            ]
            asset = words["SUCCEEDED"].json()["output"][0]
            whole = http.get(asset, headers={"Authorization": ""})
            assert whole.headers["content-length"] == str(len(whole.content))
            part = http.get(
                asset, headers={"Range": "bytes=100-", "If-Range": whole.headers["etag"]}
            )
            assert part.status_code == 206
            assert part.content == whole.content[100:]
            other = http.get(asset, headers={"Range": "bytes=100-", "If-Range": '"other"'})
            assert other.content == whole.content
        assert [shape(reply) for reply in told[0]] == [shape(reply) for reply in told[1]]


def test_it_measures_when_a_client_learned_of_an_end(lean: httpx.Client) -> None:
    """The lag in the tables is the service's own measurement."""
    from lean import Stats

    created = lean.post("/runwayml/v1/image_to_video", json=BODY)
    path = f"/runwayml/v1/tasks/{created.json()['id']}"
    assert lean.get(path).json()["status"] != "SUCCEEDED"
    time.sleep(0.5)
    told = lean.get(path).json()
    assert lean.get(told["output"][0]).content == CLIP
    assert lean.get(path).json() == told
    seen = Stats(**lean.get("/_stats").json())
    assert (seen.accepted, seen.polls, seen.most_polls, seen.downloads) == (1, 3, 3, 1)
    assert 0.2 <= seen.lag_mean == seen.lag_p95 == seen.lag_max < 2
    assert seen.last_ready == pytest.approx(0.3)


def test_times_follow_the_parameters_and_repeat_with_the_seed() -> None:
    """The same seed gives the same times, so all contestants wait for the same generations."""
    from lean import rendering_times

    times = list(islice(rendering_times(20, 0.3, seed=1), 20_000))
    assert fmean(times) == pytest.approx(20, rel=0.02)
    assert pstdev(times) == pytest.approx(6, rel=0.05)
    assert times[:10] == list(islice(rendering_times(20, 0.3, seed=1), 10))
    assert {round(time, 9) for time in islice(rendering_times(20, 0, seed=2), 10)} == {20.0}
