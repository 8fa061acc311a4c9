# SPDX-License-Identifier: Apache-2.0
"""Process of the matrix: it runs a flow, retries one, or collects, possibly with a crash."""

import asyncio
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect import tags
from prefect.client.orchestration import get_client
from prefect.flow_engine import _run_flow_from_runtime_entrypoint
from prefect.flows import load_flow_from_entrypoint
from prefect.states import Scheduled
from pydantic import BaseModel

from prefect_cometapi.flows import acollect, aimage_to_video, collect, image_to_video
from prefect_cometapi.flows.runtime.hooks import release_leases

from ..harness.processes import clear_environment
from .crash_points import FLOW_TIMEOUT, INSTALL, Crash
from .mutants import MUTANTS
from .plan import Boundary, CrashKind
from .storages import save_block

Spec = dict[str, Any]
Outcome = dict[str, Any]


def perform(spec: Spec) -> Outcome:
    """Run a specification in this process, which has no other work; return the outcome."""
    clear_environment("COMETAPI_")
    os.environ |= spec["env"]
    os.chdir(spec["folder"])
    if mutant := spec.get("mutant"):
        MUTANTS[mutant]()
    if point := spec.get("crash"):
        crash = Crash(
            CrashKind(point["kind"]), Path(point["marker"]), point["storage"], point["file"]
        )
        INSTALL[Boundary(point["boundary"])](crash)
    try:
        with tags(spec["tag"]):
            result = _ACTIONS[spec["do"]](spec)
    except Exception as error:  # noqa: BLE001 -- the checks examine it
        return {"error": type(error).__name__, "text": str(error)}
    return result.model_dump(mode="json") if isinstance(result, BaseModel) else result


def _run(spec: Spec) -> Any:
    flow: Any = image_to_video if spec["sync"] else aimage_to_video
    kind = (spec.get("crash") or {}).get("kind")
    if kind in {CrashKind.ERROR, CrashKind.TIMEOUT}:
        limit = FLOW_TIMEOUT if kind == CrashKind.TIMEOUT else None
        flow = flow.with_options(retries=1, timeout_seconds=limit)
    call = flow(spec["request"], idempotency_key=spec["key"], wait=spec.get("wait", True))
    return call if spec["sync"] else asyncio.run(call)


def _collect(spec: Spec) -> Any:
    return collect() if spec["sync"] else asyncio.run(acollect())


def _entrypoint(spec: Spec) -> str:
    return f"prefect_cometapi.flows.{'' if spec['sync'] else 'a'}image_to_video"


def _call_hooks(spec: Spec) -> Outcome:
    """Call the flow's hooks in a process of their own, as a worker does when a process died."""
    flow = load_flow_from_entrypoint(_entrypoint(spec), use_placeholder_flow=False)
    with get_client(sync_client=True) as client:
        flow_run = client.read_flow_run(UUID(spec["flow_run"]))
    assert flow_run.state
    release_leases(flow, flow_run, flow_run.state)
    return {}


def _retry(spec: Spec) -> Any:
    """Retry a flow run as ``prefect flow-run retry`` does; it cannot await an async flow."""
    flow_run_id = UUID(spec["flow_run"])
    with suppress(SystemExit):
        if spec["sync"]:
            from prefect.cli.flow_run import retry

            asyncio.run(retry(spec["flow_run"], entrypoint=_entrypoint(spec)))
        else:
            with get_client(sync_client=True) as client:
                client.set_flow_run_state(flow_run_id, Scheduled(), force=True)
            _run_flow_from_runtime_entrypoint(flow_run_id, _entrypoint(spec))
    return asyncio.run(_result_in_prefect(flow_run_id))


async def _result_in_prefect(flow_run_id: UUID) -> Any:
    async with get_client() as client:
        state = (await client.read_flow_run(flow_run_id)).state
    assert state
    if state.is_completed():
        return await state.aresult()
    return {"error": state.name, "text": state.message or ""}


def _warm_up(spec: Spec) -> Outcome:
    """Run each flow once, and return the modules that it imported."""
    results = [_run(spec | {"sync": sync}).model_dump(mode="json") for sync in (False, True)]
    _collect(spec | {"sync": False})
    return {"videos": results[0]["videos"], "modules": sorted(sys.modules)}


def _save_block(spec: Spec) -> Outcome:
    save_block(spec["s3"], spec["tag"])
    return {}


_ACTIONS: dict[str, Callable[[Spec], Any]] = {
    "run": _run,
    "collect": _collect,
    "hook": _call_hooks,
    "retry": _retry,
    "warm up": _warm_up,
    "save block": _save_block,
}
