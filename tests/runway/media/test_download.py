# SPDX-License-Identifier: Apache-2.0
"""Downloads survive broken connections, expired tokens and redirects."""

import asyncio
import logging
from datetime import UTC, datetime

import httpx
import pytest

from prefect_cometapi.runway import (
    DownloadInterrupted,
    InvalidOutput,
    OutputExpired,
    StorageError,
    Submission,
)
from prefect_cometapi.runway.api.polling import PollPolicy, wait_until_finished
from prefect_cometapi.runway.media import download as module
from prefect_cometapi.runway.media.download import MAX_REDIRECTS, MAX_RESUMPTIONS
from prefect_cometapi.runway.media.inspector import inspect_video

from .fetching import BODY, URL, digest, download


class Broken(httpx.AsyncByteStream):
    """A body that ends in a broken connection."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    async def __aiter__(self):
        yield self.content
        raise httpx.ReadError("reset")


class CDN(httpx.MockTransport):
    """A server that sends a body in portions, each of which ends in a broken connection."""

    def __init__(self, *portions: int, etag: str = '"1"', body: bytes = BODY) -> None:
        super().__init__(self.answer)
        self.portions, self.etag, self.body = list(portions), etag, body
        self.ranges: list[str | None] = []

    def answer(self, request: httpx.Request) -> httpx.Response:
        asked = request.headers.get("range")
        self.ranges.append(asked)
        start = int(asked[6:-1]) if asked else 0
        rest = self.body[start:]
        headers = {"content-length": str(len(rest)), "etag": self.etag}
        if asked:
            headers["content-range"] = f"bytes {start}-{len(self.body) - 1}/{len(self.body)}"
        stream: httpx.AsyncByteStream = httpx.ByteStream(rest)
        if self.portions:
            stream = Broken(rest[: self.portions.pop(0)])
        return httpx.Response(206 if asked else 200, headers=headers, stream=stream)


@pytest.fixture
def target(tmp_path):
    return tmp_path / "o.mp4"


@pytest.fixture
def finished_job(sandbox, client_of, request_):
    """Return a function that makes a finished sandbox job: (service, client, address, renew)."""

    async def make(*faults: str, **options):
        service = sandbox(*faults, **options)
        client = await client_of(service.url)
        task_id = await client.create(request_)
        await asyncio.to_thread(service.settle, 20)
        submission = Submission(
            idempotency_key="k", task_id=task_id, submitted_at=datetime.now(UTC)
        )
        finished = await wait_until_finished(client, submission, PollPolicy(interval=0.01))

        async def renew() -> str:
            return (await client.get(task_id)).outputs[0].reveal() or ""

        return service, finished.generation.outputs[0].reveal() or "", renew

    return make


def asset_requests(service):
    return [request for request in service.requests if request.route == "asset"]


async def test_an_output_arrives_whole_with_its_hash(finished_job, target):
    """The hash is that of the file on the disk, which is a video."""
    service, url, _ = await finished_job()
    sha256 = await download(url, target, trusted={"127.0.0.1"})
    assert digest(target.read_bytes()) == sha256
    assert inspect_video(target).frames > 100
    assert len(asset_requests(service)) == 1


@pytest.mark.parametrize(
    "fault", ["truncated:times=2", "500", "503", "429", "reset-before", "slow:value=0.2"]
)
async def test_a_download_survives_a_bad_connection(finished_job, target, no_waiting, fault):
    """The complete file arrives despite broken connections, temporary refusals and slowness."""
    _, url, _ = await finished_job(f"asset:{fault}")
    sha256 = await download(url, target, trusted={"127.0.0.1"})
    assert digest(target.read_bytes()) == sha256
    assert inspect_video(target).frames > 100


async def test_a_broken_download_goes_on_where_it_stopped(finished_job, target, no_waiting):
    """Only the rest is requested, and only if the file is unchanged."""
    service, url, _ = await finished_job("asset:truncated")
    await download(url, target, trusted={"127.0.0.1"})
    first, second = asset_requests(service)
    assert "range" not in first.headers
    assert int(second.headers["range"].removeprefix("bytes=").removesuffix("-")) > 0
    assert second.headers["if-range"].startswith('"')
    assert second.status == 206


async def test_a_server_without_ranges_sends_it_again(finished_job, target, no_waiting):
    """The first part is discarded and not prepended."""
    service, url, _ = await finished_job("asset:truncated", "asset:ignore-range")
    sha256 = await download(url, target, trusted={"127.0.0.1"})
    assert asset_requests(service)[1].status == 200
    assert digest(target.read_bytes()) == sha256
    assert inspect_video(target).frames > 100


@pytest.mark.parametrize("fault", ["expired", "gone"])
async def test_an_expired_address_is_renewed_in_the_middle(finished_job, target, no_waiting, fault):
    """The new address continues where the old one expired."""
    service, url, renew = await finished_job("asset:truncated", f"asset:{fault}")
    sha256 = await download(url, target, renew=renew, trusted={"127.0.0.1"})
    assert [request.status for request in asset_requests(service)] == [
        200,
        403 if fault == "expired" else 404,
        206,
    ]
    assert digest(target.read_bytes()) == sha256
    assert inspect_video(target).frames > 100


async def test_an_address_whose_time_is_over_is_renewed_at_the_start(
    finished_job, target, no_waiting
):
    """An address that expired while the run was down is renewed first."""
    service, url, _ = await finished_job(asset_ttl=0.0)
    with pytest.raises(OutputExpired):
        await download(url, target, trusted={"127.0.0.1"})

    async def renew_in_vain() -> str:
        return url

    with pytest.raises(OutputExpired) as caught:
        await download(url, target, renew=renew_in_vain, trusted={"127.0.0.1"})
    assert caught.value.http_status == 403
    assert len(asset_requests(service)) == 1 + 1


REFUSALS = [400, 401, 402, 403, 404, 405, 409, 410, 411, 412, 414, 418, 421, 422, 423, 451, 499]


@pytest.mark.parametrize("status", REFUSALS)
async def test_any_refusal_is_worth_one_fresh_address(answers, target, status):
    """Each store refuses an expired signature in its own way, and none is asked again."""
    script = answers((status, b"<Error/>"), (status, b"<Error/>"))
    fresh = iter([f"{URL}-2", f"{URL}-3", f"{URL}-4"])

    async def renew() -> str:
        return next(fresh)

    dead: dict[str, int] = {}
    with pytest.raises(OutputExpired) as caught:
        await download(URL, target, renew=renew, transport=script, dead=dead)
    assert caught.value.http_status == status
    assert [str(request.url) for request in script.requests] == [URL, f"{URL}-2"]
    assert dead == {URL: status, f"{URL}-2": status}
    assert "s3cr3t" not in str(caught.value)


async def test_a_dead_address_is_not_asked_in_a_later_attempt(answers, target):
    """Only a fresh address is asked; the service may still return the old one."""
    script = answers((200, BODY))
    dead = {URL: 400}

    async def renew(found: str = URL) -> str:
        return found

    with pytest.raises(OutputExpired, match="HTTP 400"):
        await download(URL, target, renew=renew, transport=script, dead=dead)
    assert script.requests == []

    async def renew_in_time() -> str:
        return f"{URL}-2"

    sha256 = await download(URL, target, renew=renew_in_time, transport=script, dead=dead)
    assert sha256 == digest(BODY)
    assert [str(request.url) for request in script.requests] == [f"{URL}-2"]


@pytest.mark.parametrize(
    ("url", "status"), [(URL, 404), (URL.partition("?")[0], 404), (URL.partition("?")[0], 403)]
)
async def test_what_may_recover_is_asked_in_a_later_attempt(answers, target, url, status):
    """A file may still be on its way to its server, and an address without a signature stays."""
    assert await download(
        url, target, transport=answers((200, BODY)), dead={url: status}
    ) == digest(BODY)


async def test_a_redirect_to_a_dead_address_is_not_followed_again(answers, target):
    """A fixed address may lead to a fresh one the next time."""
    moved = {"location": "https://other.example.com/o.mp4?t=1"}
    fresh = {"location": "https://other.example.com/o.mp4?t=2"}
    script = answers((302, b"", moved), (400, b""), (302, b"", fresh), (200, BODY))

    async def renew() -> str:
        return URL

    assert await download(URL, target, renew=renew, transport=script) == digest(BODY)
    same = answers((302, b"", moved), (400, b""), (302, b"", moved), (200, BODY))
    with pytest.raises(OutputExpired):
        await download(URL, target, renew=renew, transport=same)
    assert len(same.requests) == 3


async def test_an_address_may_expire_many_times_while_data_arrives(answers, target, no_waiting):
    """A long download with short signatures takes a fresh one for each part."""
    tag = {"etag": '"1"', "content-length": str(len(BODY))}
    parts: list[object] = []
    for start in range(0, 3000, 1000):
        rest = {"content-range": f"bytes {start}-9/10"} if start else {}
        content = BODY[start : start + 1000]
        parts += [(206 if start else 200, content, {**tag, "content-length": "9000", **rest})]
        parts += [(403, b"")]
    end = {"content-range": f"bytes 3000-{len(BODY) - 1}/{len(BODY)}"}
    numbers = iter(range(9))

    async def renew() -> str:
        return f"{URL}{next(numbers)}"

    script = answers(*parts, (206, BODY[3000:], end))
    assert await download(URL, target, renew=renew, transport=script) == digest(BODY)


@pytest.mark.parametrize("status", [408, 425, 429])
async def test_a_busy_store_is_asked_again(answers, target, no_waiting, status):
    """A server that is busy says nothing about the address."""
    script = answers((status, b""), (200, BODY))
    assert await download(URL, target, transport=script) == digest(BODY)


@pytest.mark.parametrize(
    ("fault", "reason"), [("html-asset", "begins with b'<!doctype ht'"), ("empty", "is empty")]
)
async def test_what_is_no_output_is_refused(finished_job, target, fault, reason):
    """A page or an empty body is not accepted as a video."""
    _, url, _ = await finished_job(f"asset:{fault}")

    async def deliver() -> None:
        await download(url, target, trusted={"127.0.0.1"})
        inspect_video(target)

    with pytest.raises(InvalidOutput, match=reason):
        await deliver()


async def test_a_file_that_was_cut_before_it_was_sent_is_found_out(finished_job, target):
    """Length and hash of a truncated file can be right, so the video itself is checked."""
    _, url, _ = await finished_job("asset:truncated-silent")
    await download(url, target, trusted={"127.0.0.1"})
    with pytest.raises(InvalidOutput):
        inspect_video(target)


async def test_the_api_key_never_goes_to_the_assets_host(finished_job, target, api_key):
    """The API key is sent only to CometAPI."""
    service, url, renew = await finished_job("asset:expired")
    await download(url, target, renew=renew, trusted={"127.0.0.1"})
    for request in asset_requests(service):
        assert "authorization" not in request.headers
        assert api_key not in str(request.headers)


async def test_a_log_line_shows_a_signed_url_without_its_token(finished_job, target, caplog):
    """At INFO, httpx logs every URL of a client, so the tokens of outputs are hidden there."""
    caplog.set_level(logging.INFO, logger="httpx")
    _, url, _ = await finished_job()
    await download(url, target, trusted={"127.0.0.1"})
    async with httpx.AsyncClient() as http:
        await http.get(url)
    token = url.partition("_jwt=")[2]
    lines = [record.getMessage() for record in caplog.records if "/assets/" in record.getMessage()]
    assert lines
    assert url.partition("?")[0] in lines[0]
    assert "<sha256:" in lines[0]
    assert token not in caplog.text


async def test_every_break_goes_on_from_the_last_byte(target, no_waiting):
    """Any number of breaks is survived as long as data arrives."""
    cdn = CDN(*[1024] * 8)
    assert await download(URL, target, transport=cdn) == digest(BODY)
    assert cdn.ranges == [None, *(f"bytes={1024 * n}-" for n in range(1, 9))]


async def test_without_a_strong_etag_a_broken_download_starts_again(target, no_waiting):
    """Parts of two different files are never joined."""
    cdn = CDN(2048, etag='W/"1"')
    assert await download(URL, target, transport=cdn) == digest(BODY)
    assert cdn.ranges == [None, None]


async def test_a_download_that_makes_no_progress_is_given_up(answers, target, no_waiting):
    """A few attempts are made, with growing pauses of at most five seconds."""
    script = answers(httpx.ConnectError("refused https://h/x?t=s3cr3t"))
    with pytest.raises(
        DownloadInterrupted, match=r"cdn\.example\.com was interrupted: ConnectError"
    ) as caught:
        await download(URL, target, transport=script)
    assert len(script.requests) == MAX_RESUMPTIONS
    assert no_waiting == sorted(no_waiting)
    assert max(no_waiting) <= 5.0
    assert "s3cr3t" not in str(caught.value)


async def test_a_busy_server_does_not_cost_what_arrived(target, no_waiting):
    """A 503 between two parts is waited for, and the download continues."""
    cdn = CDN(4096)
    calls: list[int] = []

    def busy_once(request: httpx.Request) -> httpx.Response:
        calls.append(1)
        return httpx.Response(503) if len(calls) == 2 else cdn.answer(request)

    assert await download(URL, target, transport=httpx.MockTransport(busy_once)) == digest(BODY)
    assert cdn.ranges == [None, "bytes=4096-"]


async def test_a_part_beyond_the_end_starts_again(answers, target, no_waiting):
    """A 416 means that the file has changed."""
    short = {"etag": '"1"', "content-length": "4000"}
    script = answers((200, BODY[:2000], short), (416, b""), (200, BODY[:1000]))
    assert await download(URL, target, transport=script) == digest(BODY[:1000])
    assert target.read_bytes() == BODY[:1000]
    assert "range" in script.requests[1].headers
    assert "range" not in script.requests[2].headers


@pytest.mark.parametrize("content_range", ["bytes 5-9/10", "", "rows 1-2"])
async def test_another_part_than_was_asked_for_is_refused(answers, target, content_range):
    """A different part would leave a gap in the file."""
    script = answers((206, BODY, {"content-range": content_range}))
    with pytest.raises(DownloadInterrupted, match="a different part"):
        await download(URL, target, transport=script)


async def test_an_output_without_an_announced_length_is_taken_to_its_end(target):
    """Some servers do not send a length."""

    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, stream=httpx.ByteStream(BODY))

    assert await download(URL, target, transport=httpx.MockTransport(answer)) == digest(BODY)


async def test_a_file_that_ends_early_without_an_error_is_asked_for_again(
    answers, target, no_waiting
):
    """The announced length decides, not the end of the stream."""
    short = {"content-length": str(len(BODY))}
    script = answers((200, BODY[:3000], short), (200, BODY))
    assert await download(URL, target, transport=script) == digest(BODY)


async def test_redirects_are_followed_by_hand(answers, target):
    """Relative and absolute redirects are followed, and each hop is checked."""
    script = answers(
        (302, b"", {"location": "/moved/o.mp4?t=1"}),
        (307, b"", {"location": "https://other.example.com/o.mp4"}),
        (200, BODY),
    )
    assert await download(URL, target, transport=script) == digest(BODY)
    assert [str(request.url) for request in script.requests[1:]] == [
        "https://cdn.example.com/moved/o.mp4?t=1",
        "https://other.example.com/o.mp4",
    ]


async def test_redirects_in_a_circle_end(answers, target):
    """Redirects end after a few hops."""
    script = answers((302, b"", {"location": URL}))
    with pytest.raises(InvalidOutput, match="redirects more than 5 times"):
        await download(URL, target, transport=script)
    assert len(script.requests) == MAX_REDIRECTS + 1


@pytest.mark.parametrize(
    "address",
    [
        "http://cdn.example.com/o.mp4?t=s3cr3t",
        "http://169.254.169.254/latest?t=s3cr3t",
        "file:///etc/passwd",
        "ftp://cdn.example.com/o.mp4",
        "//cdn.example.com",
        "",
        "https://",
        "https://[bad",
        "https://cdn.example.com:99999999/o",
        "https://cdn.example.com/\x00",
    ],
)
async def test_only_https_and_the_configured_service_are_asked(answers, target, address):
    """An untrusted address reaches neither this machine nor its network without encryption."""
    with pytest.raises(InvalidOutput, match=r"is not https|output is not valid") as caught:
        await download(address, target, transport=answers((200, BODY)))
    assert "s3cr3t" not in str(caught.value)


@pytest.mark.parametrize(
    "location",
    [
        "http://cdn.example.com/o.mp4",
        "http://169.254.169.254/latest",
        "file:///etc/passwd",
        "https://[bad",
        "https://cdn.example.com:99999999/o",
    ],
)
async def test_a_redirect_leads_to_https_only(answers, target, location):
    """A valid address cannot redirect to an invalid one."""
    script = answers((302, b"", {"location": location}), (200, BODY))
    with pytest.raises(InvalidOutput, match=r"is not https|output is not valid|an invalid URL"):
        await download(URL, target, transport=script)
    assert len(script.requests) == 1


async def test_an_address_in_capitals_is_https_too(answers, target):
    """URL schemes are not case-sensitive."""
    assert await download(
        URL.replace("https", "HTTPS"), target, transport=answers((200, BODY))
    ) == digest(BODY)


async def test_the_configured_service_may_serve_plain_http(answers, target):
    """The sandbox on this machine may use plain http, and other hosts may not."""
    script = answers((200, BODY))
    await download("http://127.0.0.1:1/o", target, trusted={"127.0.0.1"}, transport=script)
    with pytest.raises(InvalidOutput):
        await download("http://127.0.0.2:1/o", target, trusted={"127.0.0.1"}, transport=script)


@pytest.mark.parametrize("status", [204, 302, 304])
async def test_an_answer_that_is_no_file_is_told_with_its_status(answers, target, status):
    """The download is not retried here, but the whole step may be."""
    script = answers((status, b""))
    with pytest.raises(DownloadInterrupted, match=f"HTTP {status}"):
        await download(URL, target, transport=script)
    assert len(script.requests) == 1


async def test_a_disk_that_does_not_take_the_file_is_told_as_such(tmp_path):
    """The storage error names the location and says how to continue."""
    target = tmp_path / "gone" / "o.mp4"
    with pytest.raises(
        StorageError, match=r"the download could not be written to .*gone: No such file"
    ) as told:
        await download(URL, target, transport=CDN())
    assert "fetching it again is free" in str(told.value)
    assert "s3cr3t" not in str(told.value)


async def test_a_file_of_one_byte_per_connection_is_given_up(target, no_waiting, monkeypatch):
    """Each connection makes progress, but the whole download would never end."""
    clock = iter(range(10_000_000))
    monkeypatch.setattr(module, "monotonic", lambda: float(next(clock)))
    with pytest.raises(DownloadInterrupted, match=r"slower than 10,000 bytes/s"):
        await download(URL, target, transport=CDN(*[1] * 5000))
