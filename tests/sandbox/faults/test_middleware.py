# SPDX-License-Identifier: Apache-2.0
"""Each kind of fault as a client sees it, and its effect on the number of paid jobs."""

import io
import socket
import time
from email.utils import parsedate_to_datetime

import av
import httpx
import pytest

from prefect_cometapi.sandbox import Fault, create_app
from prefect_cometapi.sandbox.faults.plan import KINDS

ANSWERS = {
    "429": (429, "Too many requests"),
    "500": (500, "Internal server error"),
    "502": (502, "error code: 502"),
    "503": (503, "overloaded"),
    "504": (504, "error code: 504"),
    "524": (524, "error code: 524"),
    "invalid-request": (500, '"code":"invalid_request"'),
    "model-not-found": (503, '"code":"model_not_found"'),
    "quota": (403, '"code":"quota_not_enough"'),
    "unauthorized": (401, "Invalid token"),
    "html": (200, "<!doctype html>"),
    "cloudflare": (502, "Cloudflare"),
    "firewall": (403, "Just a moment..."),
    "redirect": (301, ""),
    "not-visible": (400, '{"code":"task_not_exist","message":"task_not_exist","data":null}'),
    "not-visible-200": (200, '{"status":"task_not_exist"}'),
    "error-in-200": (200, '{"code":500,"msg":"system error","data":null}'),
    "expired": (403, "AccessDenied"),
    "gone": (404, "NoSuchKey"),
    "html-asset": (200, "<!doctype html>"),
    "empty": (200, ""),
}

DASHBOARD = {
    "unauthorized": (401, "invalid access token"),
    "error-in-200": (200, '{"success":false,"message":"system error"}'),
}
"""Answers of the routes below /api, which have the envelope of the dashboard."""


@pytest.mark.parametrize(
    ("route", "kind"),
    [(route, kind) for kind in KINDS if kind in ANSWERS for route in KINDS[kind].routes],
)
@pytest.mark.heavy
def test_a_fault_answers_instead_of_the_service_and_is_then_over(talk, route, kind):
    """A fault replaces one response and accepts no job, and the next request succeeds."""
    conversation = talk()
    task_id = conversation.finished()
    url = conversation.output(task_id)
    ask = {
        "create": conversation.create,
        "task": lambda: conversation.task(task_id),
        "feed": lambda: conversation.feed(task_id),
        "asset": lambda: conversation.client.get(url),
        "models": lambda: conversation.client.get("/api/models"),
        "tasks": lambda: conversation.account("/api/task/self"),
        "log": lambda: conversation.account("/api/log/self"),
        "billing": lambda: conversation.client.get("/v1/dashboard/billing/usage"),
    }[route]
    conversation.sandbox.add_fault(f"{route}:{kind}")
    status, text = (DASHBOARD if route in {"models", "tasks", "log"} else {}).get(
        kind, ANSWERS[kind]
    )
    answer = ask()
    assert (answer.status_code, text in answer.text) == (status, True)
    assert len(conversation.sandbox.accepted) == 1
    noted = conversation.sandbox.requests[-1]
    assert (noted.route, noted.fault, noted.status) == (route, kind, status)
    assert ask().status_code == 200


def test_429_says_when_to_come_back(talk):
    """Retry-After is absent, a number of seconds or a date, as configured."""
    faults = ["create:429", "create:429:value=7", "create:429:value=date:60"]
    conversation = talk(faults=faults)
    absent, seconds, date = (conversation.create().headers.get("Retry-After") for _ in range(3))
    assert (absent, seconds) == (None, "7")
    assert date is not None
    assert parsedate_to_datetime(date).timestamp() == pytest.approx(time.time() + 60, abs=2)


def test_a_redirect_leads_to_a_web_page(talk):
    """A redirect names a web page in its Location header."""
    answer = talk(faults=["create:redirect"]).create()
    assert answer.headers["Location"] == "https://www.cometapi.com/"


def test_reset_before_accepts_nothing(talk):
    """`reset-before` breaks the connection, and no job exists."""
    conversation = talk(faults=["create:reset-before"])
    with pytest.raises(httpx.ReadError):
        conversation.create()
    assert conversation.sandbox.accepted == []
    assert conversation.sandbox.requests[0].status is None


def test_reset_after_accepts_the_job(talk):
    """`reset-after` breaks the connection, and the job exists and is charged."""
    conversation = talk(faults=["create:reset-after"])
    with pytest.raises(httpx.ReadError):
        conversation.create()
    assert len(conversation.sandbox.accepted) == 1
    assert conversation.sandbox.requests[0].status is None


def test_a_reset_is_a_real_one(talk):
    """A reset reaches the client's system as an RST and not as an orderly end."""
    conversation = talk(faults=["task:reset-before"])
    address = httpx.URL(conversation.sandbox.url)
    with socket.create_connection((address.host, address.port or 0), timeout=5) as connection:
        connection.sendall(b"GET /runwayml/v1/tasks/x HTTP/1.1\r\nHost: x\r\n\r\n")
        with pytest.raises(ConnectionResetError):
            connection.recv(1)


def test_silent_after_accepts_the_job_and_says_nothing(talk):
    """`silent-after` accepts the job, and closes the connection after a silence."""
    conversation = talk(faults=["create:silent-after:value=0.2"])
    with pytest.raises(httpx.RemoteProtocolError, match="disconnected without sending"):
        conversation.create()
    assert len(conversation.sandbox.accepted) == 1


def test_silent_after_outlasts_an_impatient_client(talk):
    """`silent-after` lets the read timeout of a client expire."""
    conversation = talk(faults=["create:silent-after"])
    conversation.client.timeout = 0.2
    with pytest.raises(httpx.ReadTimeout):
        conversation.create()
    assert len(conversation.sandbox.accepted) == 1


def test_error_after_accepts_the_job_and_answers_an_error(talk):
    """`error-after` accepts the job and answers with a gateway's error."""
    conversation = talk(faults=["create:error-after", "create:error-after:value=524"])
    assert [conversation.create().status_code for _ in range(2)] == [504, 524]
    assert len(conversation.sandbox.accepted) == 2


def test_no_id_accepts_the_job_and_keeps_its_name(talk):
    """`no-id` accepts the job and answers with an empty object."""
    conversation = talk(faults=["create:no-id"])
    answer = conversation.create()
    assert (answer.status_code, answer.json()) == (200, {})
    assert len(conversation.sandbox.accepted) == 1


def test_a_request_that_is_refused_anyhow_gets_its_refusal(talk):
    """A fault after acceptance does not hide a refusal."""
    conversation = talk(faults=["create:reset-after"])
    assert conversation.create(duration=7).status_code == 400
    assert conversation.sandbox.accepted == []


@pytest.mark.parametrize(
    ("fault", "code", "words"),
    [
        ("create:failed", "INTERNAL.BAD_OUTPUT.CODE01", "quality"),
        ("create:failed:value=SAFETY.INPUT.TEXT", "SAFETY.INPUT.TEXT", "moderation"),
        ("create:failed:value=ASSET.INVALID", "ASSET.INVALID", "asset"),
    ],
)
def test_failed_fails_with_a_code_and_a_reason(talk, fault, code, words):
    """`failed` accepts the job and ends it as FAILED, with a code and a reason."""
    conversation = talk(faults=[fault])
    task = conversation.task(conversation.finished()).json()
    assert (task["status"], task["failureCode"]) == ("FAILED", code)
    assert words in task["failure"]
    assert "output" not in task


def test_cancelled_ends_cancelled(talk):
    """`cancelled` accepts the job and ends it as CANCELLED."""
    conversation = talk(faults=["create:cancelled"])
    assert conversation.task(conversation.finished()).json()["status"] == "CANCELLED"
    assert len(conversation.sandbox.accepted) == 1


@pytest.mark.parametrize("shape", ["bare", "wrapped", "integer_code"])
def test_an_unknown_status_is_no_end(talk, shape):
    """One reply has an unknown status and no output."""
    conversation = talk(shapes=[shape], faults=["task:unknown-status"])
    task_id = conversation.finished()
    reply = conversation.task(task_id)
    assert "mp4" not in reply.text
    assert "REMIXING" in reply.text or '"status":"9"' in reply.text
    assert "mp4" in conversation.task(task_id).text


def test_a_truncated_clip_breaks_off_half_way(talk):
    """A truncated clip is announced with its whole length, and only half of it is sent."""
    conversation = talk(faults=["asset:truncated"])
    url = conversation.output(conversation.finished())
    pieces = []
    with conversation.client.stream("GET", url) as answer:
        with pytest.raises(httpx.RemoteProtocolError, match="without sending complete message"):
            pieces.extend(answer.iter_bytes())
        announced = int(answer.headers["Content-Length"])
    whole = conversation.client.get(url).content
    assert announced == len(whole)
    assert b"".join(pieces) == whole[: len(whole) // 2]


def test_a_silently_truncated_clip_still_opens(talk):
    """A silently truncated clip is half of the file, but its header looks intact."""
    conversation = talk(faults=["asset:truncated-silent"])
    url = conversation.output(conversation.finished())
    half, whole = (conversation.client.get(url) for _ in range(2))
    assert int(half.headers["Content-Length"]) == len(half.content) == len(whole.content) // 2
    with av.open(io.BytesIO(half.content), "r") as container:
        assert container.duration == 5_000_000
        assert container.streams.video[0].width == 1280


def test_a_server_without_ranges_sends_everything(talk):
    """A Range request is answered with the whole file."""
    conversation = talk(faults=["asset:ignore-range"])
    url = conversation.output(conversation.finished())
    whole, part = (conversation.client.get(url, headers={"Range": "bytes=9-"}) for _ in range(2))
    assert (whole.status_code, part.status_code) == (200, 206)
    assert len(whole.content) == len(part.content) + 9


def test_a_slow_download_comes_in_pieces(talk):
    """A slow download brings the whole file, spread over the configured time."""
    conversation = talk(faults=["asset:slow:value=0.4"])
    url = conversation.output(conversation.finished())
    started = time.monotonic()
    slow = conversation.client.get(url)
    assert time.monotonic() - started >= 0.35
    assert slow.content == conversation.client.get(url).content


def test_a_fault_with_a_rate_strikes_the_same_requests_again(talk):
    """Two sandboxes with one seed have the same faults, and another seed has others."""
    runs = [
        [talk_to.task("x").status_code for _ in range(40)]
        for talk_to in (talk(faults=["task:503:rate=0.5"], seed=seed) for seed in (1, 1, 2))
    ]
    assert runs[0] == runs[1] != runs[2]
    assert {400, 503} == set(runs[0])


def test_a_fault_counts_the_requests_of_its_own_route(talk):
    """Requests of other routes, and earlier ones, do not count for a fault."""
    conversation = talk()
    task_id = conversation.finished()
    conversation.sandbox.add_fault(Fault(route="task", kind="500", after=1))
    assert [conversation.task(task_id).status_code for _ in range(3)] == [200, 500, 200]
    assert conversation.create().status_code == 200


async def test_an_application_without_a_socket_raises_what_a_socket_would():
    """In-process clients get a reset as the error that a socket would raise."""
    app = create_app()
    app.add_fault(Fault.parse("task:reset-before"))
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://sandbox") as client:
        with pytest.raises(ConnectionResetError):
            await client.get("/runwayml/v1/tasks/x")
