# SPDX-License-Identifier: Apache-2.0
"""Fuzz the client with documented replies that a seed bends and breaks.

    python -m tests.chaos.fuzz.replies --replies 100000 [--seed 1]

Each reply answers a purchase, a poll or a request to the feed, through the real client. The result
must be a valid value or one typed error. The text of an error holds no secret and has a limited
length. A success that names no id must never count as "nothing was bought". For each error, the
script also checks the decision to retry the step in Prefect: a purchase is retried only if
certainly nothing was bought, and after a bounded delay, whatever Retry-After says.
"""

import argparse
import asyncio
import gzip
import json
import random
import resource
import string
import time
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from prefect.client.schemas.objects import TaskRun
from prefect.states import Failed
from pydantic import SecretStr

from prefect_cometapi.flows.runtime.run_context import RunContext
from prefect_cometapi.flows.runtime.task_state import state_of
from prefect_cometapi.flows.steps.poll import POLL
from prefect_cometapi.flows.steps.submit import SUBMIT
from prefect_cometapi.runway import (
    CometAPIError,
    CometAPISettings,
    Generation,
    ImageToVideoRequest,
    ServiceUnavailable,
    SubmissionUncertain,
)
from prefect_cometapi.runway.api.client import RunwayClient
from prefect_cometapi.runway.api.reply_parser import read_task_id

ROOT = Path(__file__).parents[3]
DOCUMENTED = json.loads((ROOT / "tests/runway/documented.json").read_text(encoding="utf-8"))
KEY = "sk-canary-of-the-fuzzer-0123456789"
TOKEN = "canarysignature"
REQUEST = ImageToVideoRequest(prompt_image="https://example.com/cat.jpg")
LONGEST_MESSAGE = 4_000
LONGEST_WAIT = 86_400.0
"""Longest acceptable delay before another attempt, in seconds; a day or more counts as endless."""

SETTINGS = CometAPISettings(on_uncertain="stop", poll_interval=5)
NO_LEDGER: Any = None
SLOWEST = 5.0
"""Timeout of one call, in seconds; no reply takes that long to read."""

_STATUSES = [200, 200, 200, 200, 201, 204, 206, 302, 400, 401, 402, 403, 404, 409, 418, 422, 429]
_STATUSES += [500, 502, 503, 504, 520, 524, 599]
_TYPES = [
    "application/json",
    "text/html",
    "application/octet-stream",
    "",
    "application/json; x=\x7f",
]
_WORDS = ["id", "task_id", "status", "state", "data", "error", "code", "message", "msg", "output"]
_WORDS += [
    "progress",
    "fail_reason",
    "failure",
    "failureCode",
    "result_url",
    "video_url",
    "SUCCESS",
]
_WORDS += ["SUCCEEDED", "task_not_exist", "FAILURE", "", " ", "\x00", "\ud800", "ﬁ", "🎬", "0", "3"]


def _bodies() -> list[Any]:
    found = [sample["body"] for sample in DOCUMENTED["tasks"].values()]
    found += [body for body, _ in DOCUMENTED["created"].values()]
    return found + [body for _, body, _ in DOCUMENTED["errors"].values()]


BODIES = _bodies()


class Bender:
    """Source of replies that a seed determines."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.said = b""
        self.asked = "any"
        self.garbled = False

    def reply(self) -> httpx.Response:
        """Return the next reply."""
        chance = self.random
        body = json.loads(json.dumps(chance.choice(BODIES)))
        self.asked = read_task_id(body) or "any"
        body = self.bent(body, chance.randrange(6))
        self.garbled = False
        text = json.dumps(body, ensure_ascii=chance.random() < 0.5)
        content = text.encode("utf-8", "surrogatepass")
        headers = {"content-type": chance.choice(_TYPES)}
        if chance.random() < 0.3:
            content = self.broken(content)
        self.said = content
        if chance.random() < 0.1:
            content, headers["content-encoding"] = self.packed(content)
        if chance.random() < 0.1:
            headers["retry-after"] = chance.choice(["1", "-1", "1e400", "nan", "soon", "9" * 400])
        if chance.random() < 0.05:
            headers["location"] = chance.choice(
                [f"https://h/?_jwt={TOKEN}", "http://[", "//", "\x7f"]
            )
        stream = httpx.ByteStream(content)
        return httpx.Response(chance.choice(_STATUSES), headers=headers, stream=stream)

    def bent(self, body: Any, times: int) -> Any:
        """Return a JSON value with random changes."""
        for _ in range(times):
            body = self.random.choice(_BENDS)(self, body)
        return body

    def value(self) -> Any:
        """Return a value of a kind that does not belong there."""
        chance = self.random
        return chance.choice(
            [
                None,
                True,
                -1,
                10 ** chance.randrange(1, 400),
                chance.random() * 10 ** chance.randrange(-300, 300),
                chance.choice(_WORDS),
                "".join(chance.choices(string.printable, k=chance.randrange(40))),
                "x" * 10 ** chance.randrange(6),
                f"https://cdn.example.com/o.mp4?_jwt={TOKEN}",
                f"data:image/png;base64,{TOKEN}",
                f"Bearer {KEY}",
                f'Bearer "{TOKEN}"',
                [],
                {},
                [f"https://h/{n}?_jwt={TOKEN}" for n in range(chance.randrange(50))],
            ]
        )

    def place(self, body: Any) -> tuple[Any, Any] | None:
        """Return a container somewhere in the value, and one of its keys."""
        while isinstance(body, (dict, list)) and body:
            keys = list(body) if isinstance(body, dict) else list(range(len(body)))
            key = self.random.choice(keys)
            inner = body[key]
            if not isinstance(inner, (dict, list)) or not inner or self.random.random() < 0.4:
                return body, key
            body = inner
        return None

    def broken(self, content: bytes) -> bytes:
        """Return bytes that may no longer be JSON."""
        chance = self.random
        at = chance.randrange(len(content) + 1)
        # This byte may be part of the mark by which a secret is recognized.
        if chance.random() < 0.2:
            self.garbled = True
            return content[:at] + bytes([chance.randrange(256)]) + content[at + 1 :]
        return chance.choice(
            [
                content[:at],
                content * 2,
                b"\xef\xbb\xbf" + content,
                b"[" * chance.randrange(100_000),
                b'{"data":' * 3000 + content + b"}" * 3000,
                b'{"id":' + b"9" * 5000 + b"}",
                b"",
                b"<html>" + content,
                content.replace(b'"', b"'"),
            ]
        )

    def packed(self, content: bytes) -> tuple[bytes, str]:
        """Return a body with a content encoding, which may be false or a decompression bomb."""
        chance = self.random
        if chance.random() < 0.02:
            return gzip.compress(b" " * 64_000_000, 9), "gzip"
        return chance.choice(
            [
                (gzip.compress(content), "gzip"),
                (zlib.compress(content), "deflate"),
                (content, "gzip"),
                (gzip.compress(gzip.compress(content)), "gzip, gzip"),
                (content, "br"),
                (content, "identity"),
            ]
        )


def _replaced(bender: Bender, body: Any) -> Any:
    if place := bender.place(body):
        holder, key = place
        holder[key] = bender.value()
        return body
    return bender.value()


def _dropped(bender: Bender, body: Any) -> Any:
    if place := bender.place(body):
        holder, key = place
        del holder[key]
    return body


def _added(bender: Bender, body: Any) -> Any:
    if isinstance(body, dict):
        body[bender.random.choice(_WORDS)] = bender.value()
    return body


def _wrapped(bender: Bender, body: Any) -> Any:
    return {"code": bender.random.choice(["success", 200, "no", None]), "data": body}


def _listed(_bender: Bender, body: Any) -> Any:
    return [body]


def _moved(bender: Bender, body: Any) -> Any:
    if place := bender.place(body):
        holder, key = place
        if isinstance(holder, dict):
            holder[bender.random.choice(_WORDS)] = holder.pop(key)
    return body


_BENDS: list[Callable[[Bender, Any], Any]] = [
    _replaced, _replaced, _dropped, _added, _wrapped, _listed, _moved,
]  # fmt: skip


@dataclass
class Findings:
    """Findings of a run."""

    replies: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    again: int = 0
    slowest: float = 0.0
    grown: float = 0.0


async def fuzz(replies: int, seed: int) -> Findings:
    """Send N replies and check the results."""
    found, bender = Findings(), Bender(seed)
    reply = httpx.Response(200)
    transport = httpx.MockTransport(lambda _request: reply)
    async with RunwayClient(SecretStr(KEY), transport=transport) as client:
        calls: list[tuple[str, Callable[[], Any]]] = [
            ("create", lambda: client.create(REQUEST)),
            ("get", lambda: client.get(bender.asked)),
            ("feed", lambda: client.feed(bender.asked)),
        ]
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for number in range(replies):
            name, call = calls[number % len(calls)]
            reply = bender.reply()
            begun = time.perf_counter()
            try:
                outcome: Any = await asyncio.wait_for(call(), SLOWEST)
            except Exception as error:  # noqa: BLE001 -- which it is, is looked at
                outcome = error
            took = time.perf_counter() - begun
            found.replies += 1
            found.slowest = max(found.slowest, took)
            found.outcomes[f"{name}: {_kind(outcome)}"] += 1
            problem = _problem(name, outcome, reply, bender.said, garbled=bender.garbled)
            if problem := problem or _wrong_decision(name, outcome, found):
                found.wrong.append(f"seed {seed}, reply {number}, {name}: {problem}")
    found.grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1000
    return found


def _kind(outcome: Any) -> str:
    return type(outcome).__name__ if not isinstance(outcome, str) else "an id"


def _problem(name: str, outcome: Any, reply: httpx.Response, said: bytes, *, garbled: bool) -> str:
    """Return the problem of an outcome, or an empty text; pure."""
    if isinstance(outcome, CometAPIError):
        told = f"{outcome}{outcome!r}{outcome.__cause__!r}{outcome.__context__!r}"
        if (KEY in told or TOKEN in told) and not garbled:
            return f"a secret is told: {told[:300]}"
        if len(str(outcome)) > LONGEST_MESSAGE:
            return "the message has no end"
        if name == "create" and reply.is_success and not isinstance(outcome, SubmissionUncertain):
            return "" if _says_no(said) else "a success counts as nothing bought"
        return ""
    if isinstance(outcome, Exception):
        return f"{type(outcome).__name__} is no error of ours"
    if isinstance(outcome, Generation):
        urls = [url.reveal() or "" for url in outcome.outputs]
        if not all(url.lower().startswith(("http://", "https://")) for url in urls):
            return "an output is no URL"
        if outcome.progress is not None and not 0 <= outcome.progress <= 1:
            return "a progress beyond its end"
        return "a secret is shown" if TOKEN in repr(outcome) else ""
    return "" if isinstance(outcome, str) and outcome.strip() else "no id, and no error"


def _wrong_decision(name: str, outcome: Any, found: Findings) -> str:
    """Return the problem of the decision to retry after this outcome, or of its delay."""
    if not isinstance(outcome, CometAPIError):
        return ""
    task_run = TaskRun(task_key="step", dynamic_key="0")
    step = SUBMIT if name == "create" else POLL
    with RunContext(settings=SETTINGS, opened_ledger=NO_LEDGER).active():
        again = step["retry_condition_fn"](None, task_run, Failed(data=outcome))
    found.again += again
    if again and name == "create" and not isinstance(outcome, ServiceUnavailable):
        return f"a purchase that ended as {type(outcome).__name__} is sent again"
    delay = state_of(task_run).delay
    if again and not (delay is not None and 0 <= delay <= LONGEST_WAIT):
        return f"it is tried again after {delay} s"
    return ""


def _says_no(said: bytes) -> bool:
    """Return whether a body can be a refusal: an error in JSON, or an HTML page."""
    try:
        body = json.loads(said)
    except (ValueError, RecursionError):
        return said.lstrip().startswith(b"<")
    return isinstance(body, dict) and bool({"error", "code"} & body.keys())


def main() -> None:
    """Run the fuzzer, print the findings, and exit with 1 if anything is wrong."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--replies", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args()
    begun = time.perf_counter()
    found = asyncio.run(fuzz(chosen.replies, chosen.seed))
    print(f"{found.replies:,} replies in {time.perf_counter() - begun:.0f} s, seed {chosen.seed}")
    print(f"slowest {found.slowest:.2f} s, {found.grown:.0f} MB more at the peak")
    print(f"{found.again:,} would be tried again")
    for name, count in sorted(found.outcomes.items()):
        print(f"  {count:>7,}  {name}")
    for problem in found.wrong[:20]:
        print(f"WRONG {problem}")
    raise SystemExit(bool(found.wrong))


if __name__ == "__main__":
    main()
