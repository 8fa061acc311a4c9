# SPDX-License-Identifier: Apache-2.0
"""All cases of a matrix, two at a time, each on a service and a ledger of its own."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from prefect_cometapi.runway.ledger.entry import State
from prefect_cometapi.sandbox import Sandbox

from ...postgres import Postgres
from .case_env import Lane
from .fork_client import ROOT, nursery, pictures, prefect_server
from .places import object_store
from .plan import REMOTE, Case, Database, Kind
from .run_case import Tally, play

AT_ONCE = 2
"""Cases at a time; two suit two cores."""

PICTURE = ROOT / "deployments" / "commands" / "comet.jpg"


@asynccontextmanager
async def lanes(
    folder: Path,
    *,
    api: str | None = None,
    postgres: Postgres | None = None,
    mutant: str | None = None,
    at_once: int = AT_ONCE,
    remote: bool = False,
) -> AsyncIterator[list[dict[Database, Lane]]]:
    """Yield environments for cases: for each database, as many as run at the same time.

    Args:
        folder: Empty folder for all files.
        api: Address of a Prefect server's API; without one, a server is started.
        postgres: Server for ledgers in PostgreSQL.
        mutant: Fault that is put into the product on purpose.
        at_once: Number of environments per database.
        remote: Whether some cases keep their videos in an object store.
    """
    async with AsyncExitStack() as stack:
        if api is None:
            database = postgres.create_database() if postgres else None
            server = prefect_server(folder / "server", database)
            api = await stack.enter_async_context(server)
        address = stack.enter_context(pictures(PICTURE))
        environment = {
            "PREFECT_API_URL": api,
            "PREFECT_HOME": str(folder / "home"),
            "PREFECT_LOCAL_STORAGE_PATH": str(folder / "results"),
        }
        start = await stack.enter_async_context(nursery(environment))
        objects = stack.enter_context(object_store()) if remote else None
        made: list[dict[Database, Lane]] = []
        for number in range(at_once):
            urls: dict[Database, str] = {"SQLite": f"sqlite:///{folder}/ledger-{number}.db"}
            if postgres:
                urls["PostgreSQL"] = postgres.create_database()
            made.append({})
            for database, url in urls.items():
                sandbox = stack.enter_context(Sandbox())
                here = folder / f"{database.lower()}-{number}"
                lane = Lane(sandbox, url, here, address, start, api, mutant, objects)
                stack.push_async_callback(lane.ledger.database.close)
                made[-1][database] = lane
        await _warm_up(made[0]["SQLite"])
        yield made


async def _warm_up(lane: Lane) -> None:
    """Run a flow once, which draws the clip and imports everything that later runs need."""
    kinds: tuple[Kind, ...] = ("a folder", *(REMOTE if lane.objects else ()))
    for number, kind in enumerate(kinds):
        name = f"warm-up-{number}"
        lane.kinds[name] = kind
        await lane.prepare(name)
        ended = await lane.play(name, "warm up", key=name)
        assert ended.succeeded, f"a run without any strike failed: {ended}"


async def play_all(
    places: Sequence[dict[Database, Lane]],
    cases: Sequence[Case],
    tell: Callable[[Tally], None] = lambda _tally: None,
) -> list[Tally]:
    """Run the cases in every environment, one after the other; return the tallies in order."""
    waiting = deque(cases)
    tallies: list[Tally] = []

    async def work(lane_of: dict[Database, Lane]) -> None:
        while waiting:
            case = waiting.popleft()
            tally = await play(lane_of[case.database], case)
            tallies.append(tally)
            tell(tally)

    async with asyncio.TaskGroup() as group:
        for place in places:
            group.create_task(work(place))
    return sorted(tallies, key=lambda tally: cases.index(tally.case))


async def audit(places: Sequence[dict[Database, Lane]]) -> list[str]:
    """Compare whole ledgers with whole services; return the differences in words."""
    problems: list[str] = []
    for lane in (lane for place in places for lane in place.values()):
        entries = await lane.ledger.entries()
        paid = sorted(job.task_id for job in lane.sandbox.accepted)
        known = sorted(entry.task_id or "" for entry in entries)
        if paid != known:
            problems.append(
                f"{lane.folder.name}: {len(paid)} were paid for, {len(known)} are known"
            )
        problems += [
            f"{lane.folder.name}: {entry.idempotency_key} is {entry.state} in the end"
            for entry in entries
            if entry.state is not State.STORED
        ]
    return problems
