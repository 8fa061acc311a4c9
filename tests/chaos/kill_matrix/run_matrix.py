# SPDX-License-Identifier: Apache-2.0
"""Runs of all cases of a matrix, two at a time, each with a service and a ledger of its own."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from prefect_cometapi.runway.ledger.entry import State
from prefect_cometapi.sandbox import Sandbox

from ...postgres import Postgres
from ..harness.servers import prefect_server
from ..harness.sources import PICTURE, serve_file
from .case_env import CaseEnv
from .fork_client import start_fork_server
from .plan import REMOTE, Case, Database, StorageKind
from .run_case import CaseResult, run_case
from .storages import object_store

AT_ONCE = 2
"""Cases at a time; two suit two cores."""

CaseEnvs = dict[Database, CaseEnv]
"""Environments of the cases that run one after the other, by database."""


@asynccontextmanager
async def case_envs(
    folder: Path,
    *,
    api: str | None = None,
    postgres: Postgres | None = None,
    mutant: str | None = None,
    at_once: int = AT_ONCE,
    remote: bool = False,
) -> AsyncIterator[list[CaseEnvs]]:
    """Yield environments for cases: for each database, as many as run at the same time.

    Args:
        folder: Empty folder for all files.
        api: Address of a Prefect server's API; without one, a server is started.
        postgres: Server for ledgers in PostgreSQL.
        mutant: Bug that is put into the product on purpose.
        at_once: Number of environments per database.
        remote: Whether some cases keep their videos in an object store.
    """
    async with AsyncExitStack() as stack:
        if api is None:
            database = postgres.create_database() if postgres else None
            server = prefect_server(folder / "server", database)
            api = await stack.enter_async_context(server)
        pictures = stack.enter_context(serve_file(PICTURE))
        environment = {
            "PREFECT_API_URL": api,
            "PREFECT_HOME": str(folder / "home"),
            "PREFECT_LOCAL_STORAGE_PATH": str(folder / "results"),
        }
        forks = await stack.enter_async_context(start_fork_server(environment))
        objects = stack.enter_context(object_store()) if remote else None
        groups: list[CaseEnvs] = []
        for number in range(at_once):
            urls: dict[Database, str] = {"SQLite": f"sqlite:///{folder}/ledger-{number}.db"}
            if postgres:
                urls["PostgreSQL"] = postgres.create_database()
            groups.append({})
            for database, url in urls.items():
                sandbox = stack.enter_context(Sandbox())
                own = folder / f"{database.lower()}-{number}"
                env = CaseEnv(sandbox, url, own, pictures, forks, api, mutant, objects)
                stack.push_async_callback(env.ledger.database.close)
                groups[-1][database] = env
        await _warm_up(groups[0]["SQLite"])
        yield groups


async def _warm_up(env: CaseEnv) -> None:
    """Run a flow once, which draws the clip and imports everything that later runs need."""
    storages: tuple[StorageKind, ...] = ("a folder", *(REMOTE if env.objects else ()))
    for number, storage in enumerate(storages):
        name = f"warm-up-{number}"
        env.storages[name] = storage
        await env.prepare(name)
        result = await env.run_process(name, "warm up", key=name)
        assert result.succeeded, f"a run without a crash failed: {result}"


async def run_cases(
    groups: Sequence[CaseEnvs],
    cases: Sequence[Case],
    on_result: Callable[[CaseResult], None] = lambda _result: None,
) -> list[CaseResult]:
    """Run the cases, in each group one after the other; return the results in order."""
    waiting = deque(cases)
    results: list[CaseResult] = []

    async def work(envs: CaseEnvs) -> None:
        while waiting:
            case = waiting.popleft()
            result = await run_case(envs[case.database], case)
            results.append(result)
            on_result(result)

    async with asyncio.TaskGroup() as tasks:
        for envs in groups:
            tasks.create_task(work(envs))
    return sorted(results, key=lambda result: cases.index(result.case))


async def audit(groups: Sequence[CaseEnvs]) -> list[str]:
    """Compare whole ledgers with whole services; return the differences as text."""
    problems: list[str] = []
    for env in (env for envs in groups for env in envs.values()):
        entries = await env.ledger.entries()
        paid = sorted(job.task_id for job in env.sandbox.accepted)
        known = sorted(entry.task_id or "" for entry in entries)
        if paid != known:
            problems.append(f"{env.folder.name}: {len(paid)} were paid for, {len(known)} are known")
        problems += [
            f"{env.folder.name}: {entry.idempotency_key} is {entry.state} at the end"
            for entry in entries
            if entry.state is not State.STORED
        ]
    return problems
