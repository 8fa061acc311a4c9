# SPDX-License-Identifier: Apache-2.0
"""Run of one case, from its crash to its stored video, with all checks on the way."""

import asyncio
import json
import shlex
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from prefect_cometapi.runway.ledger.entry import Entry, State
from prefect_cometapi.runway.ledger.purchase import attach
from prefect_cometapi.runway.media.inspector import inspect_video

from .case_env import CaseEnv, sha256
from .fork_client import ProcessResult
from .plan import ACCEPTED_JOBS_AT, Case, CrashKind, Recovery


@dataclass
class CaseResult:
    """Result of a case.

    Attributes:
        case: The case.
        accepted: Jobs that the service had accepted at the end of the recovery.
        state: State after the recovery: stored, uncertain, or a problem.
        adopted: Whether its id was found at the service, and adopted.
        duplicates: Jobs that were paid for beyond the first.
        lost: Jobs that were paid for and not stored in the end.
        problems: Violations of the promises, as text.
        seconds: Duration of the case.
    """

    case: Case
    accepted: int = 0
    state: str = ""
    adopted: bool = False
    duplicates: int = 0
    lost: int = 0
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0


async def run_case(env: CaseEnv, case: Case) -> CaseResult:
    """Crash, recover and check; settle what is uncertain as a user would, and check again."""
    started = time.monotonic()
    run = _CaseRun(env, case)
    try:
        await run.run()
    except Exception as error:  # noqa: BLE001 -- the other cases run nevertheless
        run.add_problem(f"the case was aborted: {type(error).__name__}: {error}")
    result = run.result
    result.seconds = time.monotonic() - started
    return result


class _CaseRun:
    def __init__(self, env: CaseEnv, case: Case) -> None:
        self.env = env
        self.case = case
        self.name = case.name
        self.result = CaseResult(case)
        default = case.recovery in {Recovery.FLOW_RETRY, Recovery.RUN_RETRY}
        self.key = None if default else f"shop/{case.name} v1"

    def add_problem(self, problem: str) -> None:
        self.result.problems.append(problem)

    def expect(self, holds: object, problem: str) -> None:
        if not holds:
            self.add_problem(problem)

    async def run(self) -> None:
        """Run the case from its beginning to its end."""
        recovered = await self.recover(await self.run_victim())
        await self.check_recovery(recovered)
        match self.result.state:
            case "nothing":
                again = await self.run_flow()
                self.expect(again.succeeded, f"a new run failed: {again}")
                self.result.state = "stored"
                self.result.accepted = len(self.env.accepted(self.name))
            case "uncertain":
                await self.decide(recovered)
            case _:
                pass
        await self.check_end()

    # Crash and recovery

    async def run_victim(self) -> ProcessResult:
        victim = await self.env.run_victim(self.case, self.key)
        marker = self.env.folder / self.name / "crashed"
        was_killed, must_be_killed = victim.status == -9, self.case.crash is CrashKind.KILL
        as_planned = was_killed == must_be_killed and marker.exists()
        self.expect(as_planned, f"the process did not crash there: {victim}")
        self.check_storage("right after the crash", None)
        return victim

    async def recover(self, victim: ProcessResult) -> list[ProcessResult]:
        """Recover after the crash; return the results of its processes, that of a run first."""
        case, env = self.case, self.env
        flow_run = ""
        if case.hook or case.recovery is Recovery.RUN_RETRY:
            flow_run = await env.flow_run(self.name)
            await env.set_crashed(flow_run)
        if case.hook:
            hook = await env.run_process(self.name, "hook", sync=case.sync, flow_run=flow_run)
            self.expect(hook.outcome == {}, f"the hook failed: {hook}")
        match case.recovery:
            case Recovery.FLOW_RETRY:
                return [victim]
            case Recovery.RUN_RETRY:
                return [
                    await env.run_process(self.name, "retry", sync=case.sync, flow_run=flow_run)
                ]
            case Recovery.SAME_KEY:
                return [await self.run_flow()]
            case Recovery.COLLECT:
                return [await self.collect()]
            case Recovery.TWO_COLLECTORS:
                return list(await asyncio.gather(self.collect(), self.collect()))
            case Recovery.COLLECTOR_AND_RUN:
                return list(await asyncio.gather(self.run_flow(), self.collect()))

    async def run_flow(self, key: str | None = None) -> ProcessResult:
        key = key or self.key
        return await self.env.run_process(self.name, "run", sync=self.case.sync, key=key)

    async def collect(self) -> ProcessResult:
        return await self.env.run_process(self.name, "collect", sync=self.case.sync)

    # Check

    async def check_recovery(self, recovered: list[ProcessResult]) -> None:
        """Check the result of the recovery alone."""
        entries = await self.env.entries(self.name)
        accepted = self.env.accepted(self.name)
        self.result.accepted = len(accepted)
        states = [str(entry.state) for entry in entries]
        state = self.result.state = " and ".join(states) or "nothing"
        allowed = self.case.allowed_states()
        self.expect(state in allowed, f"it is {state}, not {' or '.join(allowed)}")
        bought = ACCEPTED_JOBS_AT.get(self.case.boundary, {1}) if state == "uncertain" else {1}
        bought = {0} if state == "nothing" else bought
        self.expect(len(accepted) in bought, f"the service accepted {len(accepted)} jobs")
        for process in recovered:
            if state == "uncertain":
                self.check_instructions(process, entries[0])
            else:
                self.expect(process.succeeded, f"recovery failed: {process}")
        outcome = recovered[0].outcome or {}
        if state == "stored" and "videos" in outcome:
            self.check_result(outcome, entries[0])

    def check_instructions(self, process: ProcessResult, entry: Entry) -> None:
        """Check that a run stops, or a collector lists it, with the commands to type."""
        text = process.text
        if process.outcome and not process.error:  # A collector does not fail.
            listed = [
                each
                for each in process.outcome["generations"]
                if each["idempotency_key"] == entry.idempotency_key
            ]
            self.expect(
                [each["state"] for each in listed] == ["uncertain"],
                f"a collector lists {listed}",
            )
            text = listed[0]["note"] if listed else ""
        elif "SubmissionUncertain" not in process.error + text:
            self.add_problem(f"it should have stopped as uncertain: {process}")
        key = shlex.quote(entry.idempotency_key)
        for command in (f"ledger adopt {key} TASK_ID", f"ledger resubmit {key}"):
            self.expect(f"prefect-cometapi {command}" in text, f"{command!r} is missing in: {text}")

    # Decision

    async def decide(self, recovered: list[ProcessResult]) -> None:
        """Adopt the job that the service has, or allow one more submission."""
        (entry,) = await self.env.entries(self.name)
        listed = await self.env.ledger.entries(states=[State.UNCERTAIN])
        self.expect(
            entry.idempotency_key in {each.idempotency_key for each in listed},
            "it is not listed as uncertain",
        )
        posts = self.env.posts()
        next_run = await self.run_flow(entry.idempotency_key)
        self.check_instructions(next_run, entry)
        self.expect(self.env.posts() == posts, "another run with the key sent something")
        jobs = self.env.accepted(self.name)
        if jobs:
            self.result.adopted = True
            await attach(self.env.ledger, entry, jobs[0].task_id)
            after = await self.collect()
        else:
            await self.env.ledger.mark_resubmit_allowed(entry, "by hand")
            after = await self.run_flow(entry.idempotency_key)
        self.expect(after.succeeded, f"after the decision: {after}")

    # End

    async def check_end(self) -> None:
        """Check that there is one paid job and that its whole video is in the storage."""
        accepted = {job.task_id for job in self.env.accepted(self.name)}
        entries = await self.env.entries(self.name)
        stored = {entry.task_id for entry in entries if entry.state is State.STORED}
        self.result.duplicates = max(0, len(accepted) - 1)
        self.result.lost = len(accepted - stored)
        self.expect(len(accepted) == 1, f"{len(accepted)} jobs were paid for")
        self.expect(stored == accepted, f"paid: {accepted}, stored: {stored}")
        self.expect(len(entries) == 1, f"the ledger has {len(entries)} entries")
        for entry in entries:
            if entry.task_id in stored:
                await self.check_files(entry)

    async def check_files(self, entry: Entry) -> None:
        """Check that the files match the ledger, and that the service delivers the same clip."""
        clip = await self.env.download_clip(entry.task_id or "")
        await asyncio.to_thread(self.check_storage, "at the end", clip)
        is_active = await self.env.ledger.leases.is_active(entry)
        self.expect(not is_active, f"{entry.owner} still works on it")
        location = self.env.location(self.name)
        videos = entry.videos.get(location.address, ())
        if len(videos) != 1 or set(entry.videos) != {location.address}:
            self.add_problem(f"the ledger has the videos {entry.videos}")
            return
        (video,) = videos
        recorded = {video.uri, video.poster, video.sidecar}
        visible = await asyncio.to_thread(location.names)
        self.expect(
            recorded == {location.uri(name) for name in visible}, f"in the storage are {visible}"
        )
        self.expect(video.sha256 == sha256(clip), "the SHA-256 in the ledger differs")
        here = [location.local(str(uri).rpartition("/")[2]) for uri in (video.uri, video.sidecar)]
        facts = vars(await asyncio.to_thread(inspect_video, here[0]))
        known = {name: getattr(video, name) for name in facts}
        self.expect(known == facts, f"the ledger has {known}, the file {facts}")
        origin = json.loads(here[1].read_text())
        same = (origin["task_id"], origin["video"]["sha256"]) == (entry.task_id, video.sha256)
        self.expect(same, "the JSON beside the video describes another one")

    def check_result(self, outcome: dict[str, Any], entry: Entry) -> None:
        """Check that the run returned the facts of the ledger."""
        videos = entry.model_dump(mode="json")["videos"].get(self.env.location(self.name).address)
        returned = (
            outcome["idempotency_key"],
            outcome["task_id"],
            outcome["status"],
            outcome["videos"],
        )
        recorded = (entry.idempotency_key, entry.task_id, "succeeded", videos)
        self.expect(returned == recorded, f"the run returned {returned}, the ledger has {recorded}")

    def check_storage(self, when: str, clip: bytes | None) -> None:
        """Check that every visible file is complete."""
        for problem in self.env.describe_damage(self.name, clip):
            self.add_problem(f"{when}, {problem}")


def problems_of(results: Iterable[CaseResult]) -> list[str]:
    """Return all violations, each with its case."""
    return [f"{result.case}: {problem}" for result in results for problem in result.problems]
