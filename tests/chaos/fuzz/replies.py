# SPDX-License-Identifier: Apache-2.0
"""Fuzz the client with documented replies that a seed mutates and corrupts.

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
    bodies = [sample["body"] for sample in DOCUMENTED["tasks"].values()]
    bodies += [body for body, _ in DOCUMENTED["created"].values()]
    return bodies + [body for _, body, _ in DOCUMENTED["errors"].values()]


BODIES = _bodies()


class ReplyMutator:
    """Source of replies that a seed determines."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.content = b""
        self.task_id = "any"
        self.garbled = False

    def reply(self) -> httpx.Response:
        """Return the next reply."""
        rng = self.random
        body = json.loads(json.dumps(rng.choice(BODIES)))
        self.task_id = read_task_id(body) or "any"
        body = self.mutate(body, rng.randrange(6))
        self.garbled = False
        text = json.dumps(body, ensure_ascii=rng.random() < 0.5)
        content = text.encode("utf-8", "surrogatepass")
        headers = {"content-type": rng.choice(_TYPES)}
        if rng.random() < 0.3:
            content = self.corrupt(content)
        self.content = content
        if rng.random() < 0.1:
            content, headers["content-encoding"] = self.encode(content)
        if rng.random() < 0.1:
            headers["retry-after"] = rng.choice(["1", "-1", "1e400", "nan", "soon", "9" * 400])
        if rng.random() < 0.05:
            headers["location"] = rng.choice([f"https://h/?_jwt={TOKEN}", "http://[", "//", "\x7f"])
        stream = httpx.ByteStream(content)
        return httpx.Response(rng.choice(_STATUSES), headers=headers, stream=stream)

    def mutate(self, body: Any, times: int) -> Any:
        """Return a JSON value with random changes."""
        for _ in range(times):
            body = self.random.choice(_MUTATIONS)(self, body)
        return body

    def value(self) -> Any:
        """Return a value of a kind that does not belong there."""
        rng = self.random
        return rng.choice(
            [
                None,
                True,
                -1,
                10 ** rng.randrange(1, 400),
                rng.random() * 10 ** rng.randrange(-300, 300),
                rng.choice(_WORDS),
                "".join(rng.choices(string.printable, k=rng.randrange(40))),
                "x" * 10 ** rng.randrange(6),
                f"https://cdn.example.com/o.mp4?_jwt={TOKEN}",
                f"data:image/png;base64,{TOKEN}",
                f"Bearer {KEY}",
                f'Bearer "{TOKEN}"',
                [],
                {},
                [f"https://h/{n}?_jwt={TOKEN}" for n in range(rng.randrange(50))],
            ]
        )

    def choose_slot(self, body: Any) -> tuple[Any, Any] | None:
        """Return a container somewhere in the value, and one of its keys."""
        while isinstance(body, (dict, list)) and body:
            keys = list(body) if isinstance(body, dict) else list(range(len(body)))
            key = self.random.choice(keys)
            inner = body[key]
            if not isinstance(inner, (dict, list)) or not inner or self.random.random() < 0.4:
                return body, key
            body = inner
        return None

    def corrupt(self, content: bytes) -> bytes:
        """Return bytes that may no longer be JSON."""
        rng = self.random
        at = rng.randrange(len(content) + 1)
        # This byte may be part of the mark by which a secret is recognized.
        if rng.random() < 0.2:
            self.garbled = True
            return content[:at] + bytes([rng.randrange(256)]) + content[at + 1 :]
        return rng.choice(
            [
                content[:at],
                content * 2,
                b"\xef\xbb\xbf" + content,
                b"[" * rng.randrange(100_000),
                b'{"data":' * 3000 + content + b"}" * 3000,
                b'{"id":' + b"9" * 5000 + b"}",
                b"",
                b"<html>" + content,
                content.replace(b'"', b"'"),
            ]
        )

    def encode(self, content: bytes) -> tuple[bytes, str]:
        """Return a body with a content encoding, which may be false or a decompression bomb."""
        rng = self.random
        if rng.random() < 0.02:
            return gzip.compress(b" " * 64_000_000, 9), "gzip"
        return rng.choice(
            [
                (gzip.compress(content), "gzip"),
                (zlib.compress(content), "deflate"),
                (content, "gzip"),
                (gzip.compress(gzip.compress(content)), "gzip, gzip"),
                (content, "br"),
                (content, "identity"),
            ]
        )


def _replace(mutator: ReplyMutator, body: Any) -> Any:
    if slot := mutator.choose_slot(body):
        holder, key = slot
        holder[key] = mutator.value()
        return body
    return mutator.value()


def _drop(mutator: ReplyMutator, body: Any) -> Any:
    if slot := mutator.choose_slot(body):
        holder, key = slot
        del holder[key]
    return body


def _add(mutator: ReplyMutator, body: Any) -> Any:
    if isinstance(body, dict):
        body[mutator.random.choice(_WORDS)] = mutator.value()
    return body


def _wrap(mutator: ReplyMutator, body: Any) -> Any:
    return {"code": mutator.random.choice(["success", 200, "no", None]), "data": body}


def _list(_mutator: ReplyMutator, body: Any) -> Any:
    return [body]


def _move(mutator: ReplyMutator, body: Any) -> Any:
    if slot := mutator.choose_slot(body):
        holder, key = slot
        if isinstance(holder, dict):
            holder[mutator.random.choice(_WORDS)] = holder.pop(key)
    return body


_MUTATIONS: list[Callable[[ReplyMutator, Any], Any]] = [
    _replace, _replace, _drop, _add, _wrap, _list, _move,
]  # fmt: skip


@dataclass
class Findings:
    """Findings of a run."""

    replies: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    retried: int = 0
    slowest: float = 0.0
    grown: float = 0.0


async def fuzz(replies: int, seed: int) -> Findings:
    """Send N replies and check the results."""
    findings, mutator = Findings(), ReplyMutator(seed)
    reply = httpx.Response(200)
    transport = httpx.MockTransport(lambda _request: reply)
    async with RunwayClient(SecretStr(KEY), transport=transport) as client:
        calls: list[tuple[str, Callable[[], Any]]] = [
            ("create", lambda: client.create(REQUEST)),
            ("get", lambda: client.get(mutator.task_id)),
            ("feed", lambda: client.feed(mutator.task_id)),
        ]
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for number in range(replies):
            name, call = calls[number % len(calls)]
            reply = mutator.reply()
            started = time.perf_counter()
            try:
                outcome: Any = await asyncio.wait_for(call(), SLOWEST)
            except Exception as error:  # noqa: BLE001 -- the check examines its type
                outcome = error
            seconds = time.perf_counter() - started
            findings.replies += 1
            findings.slowest = max(findings.slowest, seconds)
            findings.outcomes[f"{name}: {_kind(outcome)}"] += 1
            problem = _problem(name, outcome, reply, mutator.content, garbled=mutator.garbled)
            if problem := problem or _wrong_decision(name, outcome, findings):
                findings.wrong.append(f"seed {seed}, reply {number}, {name}: {problem}")
    findings.grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1000
    return findings


def _kind(outcome: Any) -> str:
    return type(outcome).__name__ if not isinstance(outcome, str) else "an id"


def _problem(
    name: str, outcome: Any, reply: httpx.Response, content: bytes, *, garbled: bool
) -> str:
    """Return the problem of an outcome, or an empty text; pure."""
    if isinstance(outcome, CometAPIError):
        text = f"{outcome}{outcome!r}{outcome.__cause__!r}{outcome.__context__!r}"
        if (KEY in text or TOKEN in text) and not garbled:
            return f"a secret is in the error: {text[:300]}"
        if len(str(outcome)) > LONGEST_MESSAGE:
            return "the message is too long"
        if name == "create" and reply.is_success and not isinstance(outcome, SubmissionUncertain):
            return "" if _is_refusal(content) else "a success counts as nothing bought"
        return ""
    if isinstance(outcome, Exception):
        return f"{type(outcome).__name__} is not an error of the package"
    if isinstance(outcome, Generation):
        urls = [url.reveal() or "" for url in outcome.outputs]
        if not all(url.lower().startswith(("http://", "https://")) for url in urls):
            return "an output is no URL"
        if outcome.progress is not None and not 0 <= outcome.progress <= 1:
            return "the progress is out of range"
        return "a secret is in the repr" if TOKEN in repr(outcome) else ""
    return "" if isinstance(outcome, str) and outcome.strip() else "no id, and no error"


def _wrong_decision(name: str, outcome: Any, findings: Findings) -> str:
    """Return the problem of the decision to retry after this outcome, or of its delay."""
    if not isinstance(outcome, CometAPIError):
        return ""
    task_run = TaskRun(task_key="step", dynamic_key="0")
    step = SUBMIT if name == "create" else POLL
    with RunContext(settings=SETTINGS, opened_ledger=NO_LEDGER).active():
        is_retried = step["retry_condition_fn"](None, task_run, Failed(data=outcome))
    findings.retried += is_retried
    if is_retried and name == "create" and not isinstance(outcome, ServiceUnavailable):
        return f"a purchase that ended as {type(outcome).__name__} is retried"
    delay = state_of(task_run).delay
    if is_retried and not (delay is not None and 0 <= delay <= LONGEST_WAIT):
        return f"it is retried after {delay} s"
    return ""


def _is_refusal(content: bytes) -> bool:
    """Return whether a body can be a refusal: an error in JSON, or an HTML page."""
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        return content.lstrip().startswith(b"<")
    return isinstance(body, dict) and bool({"error", "code"} & body.keys())


def main() -> None:
    """Run the fuzzer, print the findings, and exit with 1 if anything is wrong."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--replies", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    started = time.perf_counter()
    findings = asyncio.run(fuzz(options.replies, options.seed))
    seconds = time.perf_counter() - started
    print(f"{findings.replies:,} replies in {seconds:.0f} s, seed {options.seed}")
    print(f"slowest {findings.slowest:.2f} s, {findings.grown:.0f} MB more at the peak")
    print(f"{findings.retried:,} would be retried")
    for name, count in sorted(findings.outcomes.items()):
        print(f"  {count:>7,}  {name}")
    for problem in findings.wrong[:20]:
        print(f"WRONG {problem}")
    raise SystemExit(bool(findings.wrong))


if __name__ == "__main__":
    main()
