# SPDX-License-Identifier: Apache-2.0
"""The account is read completely, or the answer says that it is incomplete and why."""

import asyncio
import itertools
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr, ValidationError

from prefect_cometapi.runway.api import account
from prefect_cometapi.runway.api.account import AccountClient, Listing, Page, read_page
from prefect_cometapi.runway.models.account import (
    AccountBalance,
    AccountTask,
    ChargeRow,
    TaskRow,
    distinct_tasks,
    read_cost,
    read_number,
    read_time,
    within,
)

KEY = "sk-test-0123456789abcdef"
TOKEN = "sandbox-access-token"
OTHER_TOKEN = "at-0123456789abcdef0123456789"
NOW = datetime(2026, 11, 28, 12, 0, 0, tzinfo=UTC)
SECOND = timedelta(seconds=1)


def client(target: Any, *, key: str | None = KEY, token: str | None = TOKEN) -> AccountClient:
    """Return a client of a sandbox or of scripted answers."""
    where: dict[str, Any] = (
        {"transport": target}
        if isinstance(target, httpx.AsyncBaseTransport)
        else {"base_url": target.url}
    )
    return AccountClient(
        api_key=SecretStr(key) if key else None,
        access_token=SecretStr(token) if token else None,
        **where,
    )


def listed(*rows: dict[str, Any], total: int | None = None) -> dict[str, Any]:
    """Return the reply with one page of a list."""
    return {"success": True, "data": {"items": list(rows), "total": total}}


def row(task_id: str = "task-1", **fields: Any) -> dict[str, Any]:
    """Return a row of the list of tasks."""
    return {"task_id": task_id, "submit_time": int(NOW.timestamp())} | fields


def charge_of(quota: float | None) -> Any:
    """Return the refund in a row of the log."""
    return ChargeRow(type=6, quota=quota).charge()


async def tasks_of(target: Any, **options: Any) -> Any:
    """Return the tasks of an hour around now."""
    hour = timedelta(hours=1)
    moment = NOW if isinstance(target, httpx.AsyncBaseTransport) else datetime.now(UTC)
    platforms = options.pop("platforms", ("runwayml",))
    async with client(target, **options) as asked:
        return await asked.tasks(moment - hour, moment + hour, platforms)


async def buy(sandbox: Any, number: int, **fields: Any) -> list[str]:
    """Submit some generations to a sandbox, and return their task ids."""
    body = {"promptImage": "http://127.0.0.1:9/cat.jpg", "model": "gen3a_turbo"} | fields
    headers = {"Authorization": f"Bearer {KEY}", "X-Runway-Version": "2024-11-06"}
    async with httpx.AsyncClient(base_url=sandbox.url, headers=headers) as http:
        posts = [http.post("/runwayml/v1/image_to_video", json=body) for _ in range(number)]
        return [reply.json()["id"] for reply in await asyncio.gather(*posts)]


async def test_every_task_of_the_account_is_listed(sandbox, monkeypatch):
    """Each generation is found with its model, time and cost, over as many pages as are needed."""
    monkeypatch.setattr(account, "PAGE_SIZE", 2)
    running = sandbox()
    bought = await buy(running, 5)
    found = await tasks_of(running)
    assert (found.is_complete, found.problem) == (True, None)
    assert {task.task_id for task in found.tasks} == set(bought)
    assert {(task.model, task.cost, task.platform) for task in found.tasks} == {
        ("gen3a_turbo", 0.256, "runwayml")
    }
    assert all(datetime.now(UTC) - task.submitted_at < timedelta(minutes=1) for task in found.tasks)
    assert found.asked_at <= datetime.now(UTC)


@pytest.mark.parametrize(
    ("fault", "problem"),
    [
        ("unauthorized", "HTTP 401: Unauthorized, invalid access token"),
        ("500", "HTTP 500: Internal server error"),
        ("502", "HTTP 502 without JSON"),
        ("html", "HTTP 200 without JSON: text/html"),
        ("cloudflare", "HTTP 502 without JSON"),
        ("redirect", "a redirect to https://www.cometapi.com/"),
        ("error-in-200", "system error"),
        ("truncated", "no answer"),
        ("truncated-silent", "HTTP 200 without JSON"),
        ("reset-before", "no answer"),
        ("missing-pages:after=0,times=9", "1 of 3 rows are missing"),
        ("changing-total:after=1", "the total changed from 3 to 4"),
        ("changing-total:times=9", "1 of 4 rows are missing"),
        ("500:after=1", "HTTP 500"),
    ],
)
@pytest.mark.heavy
async def test_a_list_that_goes_wrong_is_incomplete(sandbox, monkeypatch, fault, problem):
    """No failure raises an error, and none lets a list pass as complete."""
    monkeypatch.setattr(account, "PAGE_SIZE", 2)
    running = sandbox(f"tasks:{fault}")
    await buy(running, 3)
    found = await tasks_of(running)
    assert not found.is_complete
    assert problem in found.problem
    assert "/api/task/self" in found.problem


async def test_rows_that_are_written_late_appear_later(sandbox):
    """A list without the newest rows is complete, so the reader has to wait for the delay."""
    running = sandbox("tasks:late-rows")
    bought = await buy(running, 1)
    assert (await tasks_of(running)).tasks == ()
    assert [task.task_id for task in (await tasks_of(running)).tasks] == bought


async def test_rows_of_other_clients_are_listed_too(sandbox):
    """The list is the account's, not this package's."""
    running = sandbox("tasks:foreign-rows:value=2")
    await buy(running, 1)
    assert len((await tasks_of(running)).tasks) == 3


async def test_without_an_access_token_nothing_is_asked(sandbox):
    """The list is incomplete, and no request is sent."""
    running = sandbox()
    found = await tasks_of(running, token=None)
    assert not found.is_complete
    assert "COMETAPI_ACCESS_TOKEN" in found.problem
    assert running.requests == []


@pytest.mark.parametrize("platforms", [("runwayml",), ("runwayml", "runway")])
async def test_a_task_on_two_platforms_is_one_task(answers, platforms):
    """A service that ignores the platform lists each task once, and other platforms not at all."""
    service = answers(
        listed(
            row(platform="runwayml"),
            row("task-2"),
            row("song", platform="suno"),
            total=3,
        )
    )
    found = await tasks_of(service, platforms=platforms)
    assert found.is_complete
    assert [task.task_id for task in found.tasks] == ["task-1", "task-2"]


async def test_the_period_and_the_platform_are_asked_for(answers):
    """The query has whole seconds that include the period."""
    service = answers(listed(total=0))
    async with client(service) as asked:
        await asked.tasks(NOW + SECOND / 2, NOW + 1.5 * SECOND)
    queries = [dict(request.url.params) for request in service.requests]
    start = int(NOW.timestamp())
    common = {"p": "1", "page_size": "100"}
    period = {"start_timestamp": str(start), "end_timestamp": str(start + 2)}
    assert queries == [
        common | period | {"platform": platform} for platform in ("runwayml", "runway")
    ]


async def test_a_service_that_ignores_the_period_does_not_matter(answers):
    """Rows outside the period are left out; a row without a time is not."""
    day = timedelta(days=1)
    service = answers(
        listed(
            row("early", submit_time=(NOW - day).timestamp()),
            row("late", submit_time=(NOW + day).timestamp()),
            row("now"),
            row("unknown", submit_time=0),
            row("created", submit_time=None, created_at=NOW.timestamp() * 1000),
            total=5,
        )
    )
    found = await tasks_of(service)
    assert [task.task_id for task in found.tasks] == ["now", "unknown", "created"]


@pytest.mark.parametrize(
    ("pages", "problem"),
    [
        ([listed(row(), total=1)], None),
        ([{"data": []}], None),
        ([{"data": None, "total": 0}], None),
        ([{"data": [row()]}, {"data": []}], None),
        ([{"data": [row()]}, {"data": [row("task-2")]}, {"data": []}], None),
        ([{"data": [row()]}], "page 2 repeats a row"),
        ([listed(row(progress=1), total=2), listed(row(progress=2), total=2)], "repeats a row"),
        ([listed(row(), row(), total=2)], "page 1 repeats a row"),
        ([listed(row(), row("task-2"), total=1)], "more rows than its total of 1"),
        ([listed({"progress": 1}, total=1)], "a row cannot be read"),
        ([listed({"task_id": 17}, total=1)], "a row cannot be read"),
        ([listed(row("a b"), total=1)], "a row cannot be read"),
        ([{"data": None}], "the reply has no list"),
        ([{"data": "none"}], "the reply has no list"),
        ([{"data": [1]}], "the reply has no list"),
        ([{"success": False, "message": "no"}], "HTTP 200: no"),
        ([{"error": {"message": "bad"}}], "HTTP 200: bad"),
        ([{"success": False}], "no reason given"),
        ([(200, b"[]")], "without JSON"),
        ([(204, b"")], "without JSON"),
        ([(201, listed(total=0))], "HTTP 201"),
        ([httpx.ReadTimeout("")], "no answer: ReadTimeout"),
    ],
)
async def test_only_a_list_that_fits_together_is_complete(answers, pages, problem):
    """Totals, pages and rows have to agree; a list without a total ends with an empty page."""
    found = await tasks_of(answers(*pages))
    assert found.is_complete == (problem is None)
    assert problem is None or problem in found.problem


async def test_a_list_without_end_is_given_up(answers):
    """After a hundred pages the list is incomplete."""
    numbers = itertools.count()
    service = answers(lambda _: {"data": [row(f"task-{next(numbers)}")]})
    found = await tasks_of(service)
    assert not found.is_complete
    assert "more than 100 pages" in found.problem
    assert len(service.requests) == 100


@given(st.lists(st.integers(0, 4), max_size=6), st.integers(0, 12), st.integers(0, 1))
def test_a_complete_list_has_every_row_of_its_total(sizes, total, drift):
    """No sequence of pages is complete unless as many distinct rows as the total arrived."""
    listing, numbers = Listing(), itertools.count()
    for index, size in enumerate(sizes):
        if listing.is_done:
            break
        rows = tuple(row(f"task-{next(numbers)}") for _ in range(size))
        listing.add(Page(rows, total + (drift if index else 0)))
    if listing.is_done and listing.problem is None:
        assert len(listing.rows) == total


async def test_a_slow_service_is_given_up(answers, monkeypatch):
    """The total time of a request is limited, whatever arrives in between."""

    async def never(_request: httpx.Request) -> httpx.Response:
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr(account, "TOTAL_TIMEOUT", 0.01)
    found = await tasks_of(httpx.MockTransport(never))
    assert "no answer: TimeoutError" in found.problem


async def test_charges_and_refunds_are_listed(sandbox):
    """A failed generation has a charge and a refund with the id of its request."""
    running = sandbox("create:failed")
    await buy(running, 2)
    running.settle()
    hour = timedelta(hours=1)
    async with client(running) as asked:
        found = await asked.charges(datetime.now(UTC) - hour, datetime.now(UTC) + hour)
    assert found.is_complete
    kinds = sorted((charge.kind, charge.cost, charge.model) for charge in found.charges)
    charge, refund = ("charge", 0.256, "gen3a_turbo"), ("refund", 0.256, "gen3a_turbo")
    assert kinds == [charge, charge, refund]
    ids = {job.request_id for job in running.accepted}
    assert {found.request_id for found in found.charges} == ids


async def test_charges_that_go_wrong_are_incomplete(sandbox):
    """As with the tasks, a failure is a reason and not an error."""
    running = sandbox("log:500")
    async with client(running) as asked:
        found = await asked.charges(NOW, NOW)
    assert not found.is_complete
    assert "/api/log/self: HTTP 500" in str(found.problem)


async def test_rows_of_another_kind_are_no_charges(answers):
    """A service that ignores the type of the log returns each row once."""
    kinds = [{"type": kind, "created_at": NOW.timestamp()} for kind in (1, 2, 5, 6)]
    async with client(answers(listed(*kinds, total=4))) as asked:
        found = await asked.charges(NOW, NOW)
    assert [charge.kind for charge in found.charges] == ["charge", "refund"]
    costs = [row.cost for quota in (-500_000, None) if (row := charge_of(quota))]
    assert costs == [1, None]


@pytest.mark.parametrize(("funds", "usd"), [(100.0, 99.744), (0.0, -0.256), (None, None)])
async def test_the_balance_is_the_limit_less_the_usage(sandbox, funds, usd):
    """The usage comes in cents; a hundred million dollars are no limit."""
    running = sandbox(balance=funds)
    await buy(running, 1)
    async with client(running, token=None) as asked:
        balance = await asked.balance()
    assert balance.usd == (usd if usd is None else pytest.approx(usd))
    assert (balance.is_unlimited, balance.problem) == (funds is None, None)


@pytest.mark.parametrize("fault", ["500", "html", "unauthorized", "truncated", "error-in-200"])
@pytest.mark.parametrize("after", [0, 1])
async def test_a_balance_that_cannot_be_read_is_unknown(sandbox, fault, after):
    """A failure of either of the two requests leaves the balance unknown."""
    async with client(sandbox(f"billing:{fault}:after={after}")) as asked:
        balance = await asked.balance()
    assert (balance.usd, balance.is_unlimited) == (None, False)
    assert ("subscription", "usage")[after] in balance.problem


async def test_without_a_key_the_balance_is_unknown(sandbox):
    """Nothing is sent, also if the key cannot be sent in a header."""
    running = sandbox()
    for key in (None, "", "not\na key"):
        async with client(running, key=key) as asked:
            assert "no API key" in str((await asked.balance()).problem)
    assert running.requests == []


@given(
    st.one_of(st.none(), st.floats(allow_nan=False, allow_infinity=False)),
    st.one_of(st.none(), st.floats(0, allow_nan=False, allow_infinity=False)),
)
def test_an_unknown_balance_covers_everything(usd, estimate):
    """Only a known balance below a known estimate does not cover it."""
    covers = AccountBalance(usd=usd).covers(estimate)
    assert covers == (usd is None or estimate is None or estimate <= usd)


@pytest.mark.parametrize(
    ("fault", "token", "is_accepted", "problem"),
    [
        ("500:after=9", TOKEN, True, None),
        ("500:after=9", OTHER_TOKEN, False, "401"),
        ("500", TOKEN, None, "500"),
        ("html", TOKEN, None, "text/html"),
        ("firewall", TOKEN, None, "HTTP 403 without JSON"),
        ("firewall:value=401", OTHER_TOKEN, None, "HTTP 401 without JSON"),
        ("500", None, None, "no access token"),
    ],
)
async def test_a_token_is_checked(sandbox, fault, token, is_accepted, problem):
    """Only a list proves that the token is accepted, and only a refusal that it is not."""
    async with client(sandbox(f"tasks:{fault}"), token=token) as asked:
        check = await asked.check_token()
        assert asked.has_access_token == (token is not None)
    assert check.is_accepted is is_accepted
    assert check.problem is problem is None or problem in check.problem


async def test_a_reply_without_a_list_says_nothing_about_the_token(answers):
    """An object of another shape is neither an acceptance nor a refusal."""
    async with client(answers({"success": True})) as asked:
        check = await asked.check_token()
    assert (check.is_accepted, check.problem) == (None, "/api/task/self: the reply has no list")


async def test_key_and_token_go_to_their_own_routes_only(sandbox):
    """The token never reaches /v1, and the key never reaches /api."""
    running = sandbox()
    async with client(running) as asked:
        await asked.tasks(NOW, NOW)
        await asked.charges(NOW, NOW)
        await asked.balance()
        await asked.check_token()
    sent = {
        (request.path.split("/")[1], request.headers["authorization"])
        for request in running.requests
    }
    assert sent == {("api", f"Bearer {TOKEN}"), ("v1", f"Bearer {KEY}")}


async def test_no_secret_leaves_through_a_redirect(sandbox):
    """A redirect to another server is not followed."""
    other = sandbox()
    moved = {"location": f"{other.url}/api/task/self"}
    service = httpx.MockTransport(lambda _: httpx.Response(307, headers=moved))
    assert "redirect" in (await tasks_of(service)).problem
    async with client(service) as asked:
        assert (await asked.balance()).usd is None
    assert other.requests == []


async def test_no_secret_is_in_an_answer(answers):
    """A service that repeats the token or the key does not get it into a problem or a row."""
    service = answers((500, {"message": f"token {OTHER_TOKEN} and Bearer {OTHER_TOKEN}"}))
    found = await tasks_of(service, token=OTHER_TOKEN)
    assert OTHER_TOKEN not in f"{found} {found.problem}"
    service = answers(listed(row(model_name=OTHER_TOKEN), total=1))
    assert OTHER_TOKEN not in str(await tasks_of(service, token=OTHER_TOKEN))
    escaped = "".join(f"\\u{ord(sign):04x}" for sign in OTHER_TOKEN)
    service = answers((500, f'{{"message": "{escaped}"}}'.encode()))
    assert "<hidden key>" in str(await tasks_of(service, token=OTHER_TOKEN))
    service = answers(httpx.ConnectError(f"cannot send {OTHER_TOKEN}"))
    assert OTHER_TOKEN not in str(await tasks_of(service, token=OTHER_TOKEN))
    async with client(answers((500, KEY.encode()))) as asked:
        assert KEY not in str(await asked.balance())
        assert TOKEN not in repr(asked)


@given(
    st.one_of(st.none(), st.booleans(), st.text(), st.floats(), st.integers(), st.lists(st.none()))
)
def test_no_value_of_an_untrusted_row_raises(value):
    """A number, time or cost that cannot be read is unknown."""
    number, cost, moment = read_number(value), read_cost(value), read_time(value)
    assert number is None or abs(number) < float("inf")
    assert cost is None or cost >= 0
    assert moment is None or moment.tzinfo is not None
    read = TaskRow(task_id="task-1", quota=value, submit_time=value, status=value, action=value)
    assert read.task().task_id == "task-1"


def test_times_are_read_in_seconds_and_in_milliseconds():
    """Both notations give the same time, as a number or as a text."""
    seconds = NOW.timestamp()
    assert read_time(seconds) == read_time(seconds * 1000) == read_time(str(int(seconds))) == NOW
    assert read_time(NOW) is NOW
    assert read_time(0) is read_time(-1) is read_time("soon") is read_time(1e300) is None
    assert read_time(True) is None


def test_half_a_second_does_not_exclude_a_row():
    """A row has whole seconds, so the start of a period is rounded down."""
    assert within(NOW, NOW + SECOND / 2, NOW + SECOND)
    assert not within(NOW - SECOND, NOW + SECOND / 2, NOW + SECOND)
    assert not within(NOW + 2 * SECOND, NOW, NOW + SECOND)
    assert within(None, NOW, NOW)


def test_the_first_of_two_equal_tasks_is_kept():
    """Tasks with the same id count once, in the order of the list."""
    one, again, two = (
        AccountTask(task_id=name, action=action) for name, action in ("1a", "1b", "2a")
    )
    assert distinct_tasks([one, again, two]) == (one, two)


def test_tasks_cannot_be_changed():
    """The lists are evidence, so nothing changes them afterwards."""
    with pytest.raises(ValidationError):
        AccountTask(task_id="1").task_id = "2"


def test_a_total_has_to_be_a_number_from_zero():
    """Anything else counts as no total."""
    for total in (True, -1, "3", None, 2.0):
        assert read_page({"data": {"data": [], "total": total}}) == Page((), None)
    assert read_page({"data": [], "total": 0}) == Page((), 0)
    assert read_page({}) is None
