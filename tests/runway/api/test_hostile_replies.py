# SPDX-License-Identifier: Apache-2.0
"""Malicious replies, or replies that are as harmful."""

import gzip
import tracemalloc
import zlib

import pytest

from prefect_cometapi.runway import (
    CompletedGeneration,
    ServiceUnavailable,
    State,
    SubmissionUncertain,
)
from prefect_cometapi.runway.api import client as wire
from prefect_cometapi.runway.api.reply_parser import MAX_OUTPUTS

from ..factories import put


def bomb(layers: int) -> bytes:
    """Return two hundred megabytes of blanks, compressed."""
    packed = b" " * 200_000_000
    for _ in range(layers):
        packed = gzip.compress(packed, 1)
    return packed


@pytest.mark.parametrize(("layers", "encoding"), [(1, "gzip"), (2, "gzip, gzip"), (2, "gzip")])
async def test_a_reply_that_unpacks_to_far_more_takes_no_memory(
    answers, client_of, request_, layers, encoding
):
    """A decompression bomb is not an answer; its purchase is uncertain, as it may be accepted."""
    client = await client_of(answers((200, bomb(layers), {"content-encoding": encoding})))
    tracemalloc.start()
    with pytest.raises(SubmissionUncertain):
        await client.create(request_)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * wire.MAX_REPLY_BYTES


@pytest.mark.parametrize("pack", [gzip.compress, zlib.compress])
async def test_a_packed_reply_is_read_though_none_was_asked_for(answers, client_of, request_, pack):
    """A gateway may compress any reply, and the purchase is not lost."""
    packed = pack(b'{"id": "task-1"}')
    script = answers(
        (200, packed, {"content-encoding": "gzip" if pack is gzip.compress else "deflate"})
    )
    assert await (await client_of(script)).create(request_) == "task-1"
    assert script.requests[0].headers["accept-encoding"] == "identity"


@pytest.mark.parametrize(
    "odd", ["x; touch /tmp/pwned #", "[/x]", "a\x1b[31m", "gen\0x", "a b", "-rf", "x" * 201, "ä"]
)
async def test_an_id_that_is_none_is_told_and_not_used(answers, client_of, request_, odd):
    """An invalid id is reported and not used; the generation was possibly charged."""
    client = await client_of(answers({"id": odd}))
    with pytest.raises(SubmissionUncertain, match="returned the invalid task id") as raised:
        await client.create(request_)
    assert str(raised.value).isprintable() or "\n" in str(raised.value)
    assert "\x1b" not in str(raised.value)


async def test_a_label_with_a_key_or_an_escape_in_it_is_cleaned(answers, client_of, api_key):
    """All untrusted text is redacted, including the media type."""
    label = f"\x1b[2J Bearer {api_key} {'A' * 50_000}"
    script = answers((500, b"oops", {"content-type": label.encode("latin-1")}))
    with pytest.raises(ServiceUnavailable) as raised:
        await (await client_of(script)).get("t")
    assert api_key not in str(raised.value)
    assert "\x1b" not in str(raised.value)
    assert len(str(raised.value)) < 1000


@pytest.mark.parametrize(
    "outputs",
    [
        [f"https://h.example/{n}" for n in range(60_000)],
        [f"https://h.example/{'a' * 3_000_000}"],
    ],
    ids=["many", "long"],
)
async def test_outputs_without_end_do_not_fill_the_ledger(answers, client_of, file_ledger, outputs):
    """The outputs of a reply that are stored in the database are limited."""
    made = await put(file_ledger, State.SUBMITTED, task_id="t")
    reply = answers({"id": "t", "status": "SUCCEEDED", "output": outputs})
    generation = await (await client_of(reply)).get("t")
    ended = CompletedGeneration(generation=generation, polls=1, waited=1.0)
    done = await file_ledger.mark_succeeded(made.submission(), ended)
    assert sum(len(str(output)) for output in done.outputs) < 100_000
    assert len(done.outputs) in {0, MAX_OUTPUTS + 1}  # one more shows the excess
