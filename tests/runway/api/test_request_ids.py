# SPDX-License-Identifier: Apache-2.0
"""CometAPI's id of a call is kept and named, so that its support can find the call."""

import httpx
import pytest

from prefect_cometapi.runway import (
    GenerationNotFound,
    QuotaExceeded,
    ServiceUnavailable,
    SubmissionUncertain,
    UnexpectedResponse,
)
from prefect_cometapi.runway.api.error_mapping import read_request_id

HEADER = {"x-cometapi-request-id": "20261128-abc"}


def own(code: str) -> dict[str, str]:
    """Return an error in CometAPI's own words."""
    return {"message": "no", "type": "comet_api_error", "param": "", "code": code}


SUPPORT = "Support: CometAPI's request id is 20261128-abc."


async def test_the_id_of_a_purchase_is_reported(sandbox, client_of, request_):
    """The caller receives the id of the call that bought the generation."""
    running, ids = sandbox(), []
    client = await client_of(running.url)
    await client.create(request_, on_request_id=ids.append)
    assert ids == [running.accepted[0].request_id] == [running.requests[0].request_id]


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ((403, {"error": own("quota_not_enough")}, HEADER), QuotaExceeded),
        ((500, {"error": {"message": "no"}}, HEADER), SubmissionUncertain),
        ((200, {}, HEADER), SubmissionUncertain),
    ],
)
async def test_the_error_of_a_submission_names_the_id(answers, client_of, request_, answer, error):
    """A refusal and an unknown outcome name the id of the call, also to the caller."""
    client, ids = await client_of(answers(answer)), []
    with pytest.raises(error) as caught:
        await client.create(request_, on_request_id=ids.append)
    assert str(caught.value).splitlines()[-1] == SUPPORT
    assert ids == ["20261128-abc"]


async def test_a_reply_that_breaks_off_has_its_id_nevertheless(client_of, request_):
    """The header arrives before the body, so an uncertain submission may have an id."""

    class Broken(httpx.AsyncByteStream):
        async def __aiter__(self):
            yield b'{"id": '
            raise httpx.ReadError("reset")

    transport = httpx.MockTransport(lambda _: httpx.Response(200, headers=HEADER, stream=Broken()))
    client, ids = await client_of(transport), []
    with pytest.raises(SubmissionUncertain) as caught:
        await client.create(request_, on_request_id=ids.append)
    assert caught.value.request_id == "20261128-abc"
    assert ids == ["20261128-abc"]


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ((200, {"data": None}, HEADER), ServiceUnavailable),
        ((503, {"error": {"message": "busy"}}, HEADER), ServiceUnavailable),
        ((400, {"error": own("invalid_request")}, HEADER), GenerationNotFound),
    ],
)
async def test_the_error_of_a_poll_names_the_id(answers, client_of, answer, error):
    """Each failed call has an id of its own."""
    client = await client_of(answers(answer))
    with pytest.raises(error) as caught:
        await client.get("task-1")
    assert caught.value.request_id == "20261128-abc"


async def test_a_generation_that_is_not_known_is_no_error_with_an_id(answers, client_of):
    """An unknown id is a state of the generation, and a foreign answer to a key an error."""
    client = await client_of(answers((200, {"status": "task_not_exist"}, HEADER)))
    assert (await client.get("task-1")).task_id == "task-1"
    client = await client_of(answers((200, {"status": "RUNNING"}, HEADER)))
    with pytest.raises(UnexpectedResponse) as caught:
        await client.check_key()
    assert caught.value.request_id == "20261128-abc"


@pytest.mark.parametrize("value", ["", "  ", "a b", "x" * 101, "<script>", "a\x1b[1m"])
def test_a_header_that_is_not_an_id_is_ignored(value):
    """The id is printed and stored, so it has only letters, digits and a few signs."""
    assert read_request_id({"x-cometapi-request-id": value}) is None
    assert read_request_id({"x-cometapi-request-id": " A1._- "}) == "A1._-"
    assert read_request_id({}) is None
