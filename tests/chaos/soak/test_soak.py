# SPDX-License-Identifier: Apache-2.0
"""One minute of the soak, with killed processes, restarts of a database, and faults on the wire."""

import asyncio

import pytest

from ..harness.markdown import cells
from ..harness.processes import SETTINGS_PREFIXES, inherited_environment
from ..harness.servers import prefect_server
from .report import markdown, summary
from .run_soak import SETTINGS, Plan, Soak, run_soak, soak_service

TIME_LIMIT = 180
"""Time limit in seconds; a tenth of it is enough on an idle machine."""


def is_done(soak: Soak, seconds: float) -> bool:
    """Return whether everything that the test checks has happened."""
    assert seconds < TIME_LIMIT, soak.disturbances
    needed = ("resident processes killed", "PostgreSQL restarted")
    return len(soak.sandbox.accepted) > 20 and all(soak.disturbances[name] >= 2 for name in needed)


@pytest.fixture
async def environment(postgres, tmp_path):
    """Return the environment of processes whose Prefect and ledger are in one PostgreSQL."""
    prefect, ledger = postgres.create_database(), postgres.create_database()
    async with prefect_server(tmp_path / "home-server", prefect) as api:
        yield inherited_environment(*SETTINGS_PREFIXES) | {
            "PREFECT_API_URL": api,
            "COMETAPI_LEDGER_URL": ledger,
            "COMETAPI_STORAGE": str(tmp_path / "videos"),
            **SETTINGS,
        }
    postgres.drop_database(prefect)
    postgres.drop_database(ledger)


@pytest.mark.server
@pytest.mark.heavy
async def test_kills_restarts_and_faults_cost_nothing_and_lose_nothing(
    environment, postgres, tmp_path
):
    """Each purchase ends as a whole file, none is made twice, and no secret is written."""
    plan = Plan(measure=0.5, flow=0.5, kill=5, restart=8)
    with soak_service() as sandbox:
        reached = environment | {"COMETAPI_BASE_URL": sandbox.url}
        outcome = await asyncio.to_thread(
            run_soak, is_done, plan, tmp_path, reached, sandbox, postgres, print
        )
    print(summary(outcome))
    assert [str(violation) for violation in outcome.violations] == []
    assert outcome.states["stored"] == outcome.accepted
    assert outcome.faulted > 0
    page = cells(markdown("soak.py", outcome))
    assert "| resident: descriptors" in page
    assert "| the ledger: connections" in page
