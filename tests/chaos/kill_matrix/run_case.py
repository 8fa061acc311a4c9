# SPDX-License-Identifier: Apache-2.0
"""Run of one case, from its strike to its stored video, with all checks on the way."""

import asyncio
import json
import shlex
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from prefect_cometapi.runway.ledger.entry import Entry, State
from prefect_cometapi.runway.ledger.purchase import attach
from prefect_cometapi.runway.media.inspector import inspect_video

from .case_env import Lane, sha256
from .fork_client import Ended
from .plan import BOUGHT, Case, How, Way


@dataclass
class Tally:
    """Result of a case.

    Attributes:
        case: The case.
        accepted: Jobs that the service had accepted at the end of the recovery.
        standing: State after the recovery: stored, uncertain, or a problem.
        adopted: Whether its id was found at the service, and adopted.
        duplicates: Jobs that were paid for beyond the first.
        lost: Jobs that were paid for and not stored in the end.
        problems: Violations of the promises, in words.
        seconds: Duration of the case.
    """

    case: Case
    accepted: int = 0
    standing: str = ""
    adopted: bool = False
    duplicates: int = 0
    lost: int = 0
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0


async def play(lane: Lane, case: Case) -> Tally:
    """Strike, recover and check; settle what is uncertain as a user would, and check again."""
    started = time.monotonic()
    playing = _Playing(lane, case)
    try:
        await playing.through()
    except Exception as error:  # noqa: BLE001 -- the other cases are played all the same
        playing.complain(f"the case broke off: {type(error).__name__}: {error}")
    tally = playing.tally
    tally.seconds = time.monotonic() - started
    return tally


class _Playing:
    def __init__(self, lane: Lane, case: Case) -> None:
        self.lane = lane
        self.case = case
        self.name = case.name
        self.tally = Tally(case)
        default = case.way in {Way.FLOW_RETRY, Way.RUN_RETRY}
        self.key = None if default else f"shop/{case.name} v1"

    def complain(self, problem: str) -> None:
        self.tally.problems.append(problem)

    def expect(self, holds: object, problem: str) -> None:
        if not holds:
            self.complain(problem)

    async def through(self) -> None:
        """Run the case from its beginning to its end."""
        recovered = await self.recovered(await self.victim())
        await self.look(recovered)
        match self.tally.standing:
            case "nothing":
                again = await self.run()
                self.expect(again.succeeded, f"a new run failed: {again}")
                self.tally.standing = "stored"
                self.tally.accepted = len(self.lane.accepted(self.name))
            case "uncertain":
                await self.decide(recovered)
            case _:
                pass
        await self.end()

    # Strike and recovery

    async def victim(self) -> Ended:
        struck = await self.lane.struck(self.case, self.key)
        marker = self.lane.folder / self.name / "struck"
        as_meant = (struck.status == -9) == (self.case.how is How.KILL) and marker.exists()
        self.expect(as_meant, f"it was not struck there: {struck}")
        self.nothing_is_half("right after the strike", None)
        return struck

    async def recovered(self, struck: Ended) -> list[Ended]:
        """Recover after the strike; return the ends of the processes that did, a run's first."""
        case, lane = self.case, self.lane
        flow_run = await lane.flow_run(self.name) if case.hook or case.way is Way.RUN_RETRY else ""
        if flow_run:
            await lane.set_crashed(flow_run)
        if case.hook:
            told = await lane.play(self.name, "hook", sync=case.sync, flow_run=flow_run)
            self.expect(told.outcome == {}, f"the hook failed: {told}")
        match case.way:
            case Way.FLOW_RETRY:
                return [struck]
            case Way.RUN_RETRY:
                return [await lane.play(self.name, "retry", sync=case.sync, flow_run=flow_run)]
            case Way.SAME_KEY:
                return [await self.run()]
            case Way.COLLECT:
                return [await self.collect()]
            case Way.TWO_COLLECTORS:
                return list(await asyncio.gather(self.collect(), self.collect()))
            case Way.COLLECTOR_AND_RUN:
                return list(await asyncio.gather(self.run(), self.collect()))

    async def run(self, key: str | None = None) -> Ended:
        key = key or self.key
        return await self.lane.play(self.name, "run", sync=self.case.sync, key=key)

    async def collect(self) -> Ended:
        return await self.lane.play(self.name, "collect", sync=self.case.sync)

    # Check

    async def look(self, recovered: list[Ended]) -> None:
        """Check the result of the recovery alone."""
        entries = await self.lane.entries(self.name)
        accepted = self.lane.accepted(self.name)
        self.tally.accepted = len(accepted)
        states = [str(entry.state) for entry in entries]
        standing = self.tally.standing = " and ".join(states) or "nothing"
        allowed = self.case.may_end()
        self.expect(standing in allowed, f"it is {standing}, not {' or '.join(allowed)}")
        bought = BOUGHT.get(self.case.boundary, {1}) if standing == "uncertain" else {1}
        bought = {0} if standing == "nothing" else bought
        self.expect(len(accepted) in bought, f"the service accepted {len(accepted)} jobs")
        for process in recovered:
            if standing == "uncertain":
                self.tells_what_to_do(process, entries[0])
            else:
                self.expect(process.succeeded, f"recovery failed: {process}")
        result = recovered[0].outcome or {}
        if standing == "stored" and "videos" in result:
            self.is_result(result, entries[0])

    def tells_what_to_do(self, process: Ended, entry: Entry) -> None:
        """Check that a run stops at it, or a collector lists it, with the commands."""
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
            self.complain(f"it should have stopped as uncertain: {process}")
        key = shlex.quote(entry.idempotency_key)
        for command in (f"ledger adopt {key} TASK_ID", f"ledger resubmit {key}"):
            self.expect(f"prefect-cometapi {command}" in text, f"{command!r} is not told: {text}")

    # Decision

    async def decide(self, recovered: list[Ended]) -> None:
        """Look at the service and adopt its job, or allow one more submission."""
        (entry,) = await self.lane.entries(self.name)
        listed = await self.lane.ledger.entries(states=[State.UNCERTAIN])
        self.expect(
            entry.idempotency_key in {each.idempotency_key for each in listed},
            "it is not listed as uncertain",
        )
        posts = self.lane.posts()
        further = await self.run(entry.idempotency_key)
        self.tells_what_to_do(further, entry)
        self.expect(self.lane.posts() == posts, "a further run with the key sent something")
        found = self.lane.accepted(self.name)
        if found:
            self.tally.adopted = True
            await attach(self.lane.ledger, entry, found[0].task_id)
            after = await self.collect()
        else:
            await self.lane.ledger.mark_resubmit_allowed(entry, "by hand")
            after = await self.run(entry.idempotency_key)
        self.expect(after.succeeded, f"after the decision: {after}")

    # End

    async def end(self) -> None:
        """Check that there is one paid job and that its whole video is in the storage."""
        accepted = {job.task_id for job in self.lane.accepted(self.name)}
        entries = await self.lane.entries(self.name)
        stored = {entry.task_id for entry in entries if entry.state is State.STORED}
        self.tally.duplicates = max(0, len(accepted) - 1)
        self.tally.lost = len(accepted - stored)
        self.expect(len(accepted) == 1, f"{len(accepted)} jobs were paid for")
        self.expect(stored == accepted, f"paid: {accepted}, stored: {stored}")
        self.expect(len(entries) == 1, f"the ledger has {len(entries)} entries")
        for entry in entries:
            if entry.task_id in stored:
                await self.is_whole(entry)

    async def is_whole(self, entry: Entry) -> None:
        """Check that the files match the ledger, and that the service delivers the same clip."""
        clip = await self.lane.delivered(entry.task_id or "")
        await asyncio.to_thread(self.nothing_is_half, "in the end", clip)
        living = await self.lane.ledger.leases.is_active(entry)
        self.expect(not living, f"{entry.owner} still works on it")
        location = self.lane.location(self.name)
        kept = entry.videos.get(location.wanted, ())
        if len(kept) != 1 or set(entry.videos) != {location.wanted}:
            self.complain(f"the ledger has its videos as {entry.videos}")
            return
        (video,) = kept
        named = {video.uri, video.poster, video.sidecar}
        seen = await asyncio.to_thread(location.names)
        self.expect(named == {location.uri(name) for name in seen}, f"in the storage are {seen}")
        self.expect(video.sha256 == sha256(clip), "the ledger's SHA-256 is another")
        here = [location.local(str(uri).rpartition("/")[2]) for uri in (video.uri, video.sidecar)]
        facts = asdict(await asyncio.to_thread(inspect_video, here[0]))
        told = video.model_dump(include=set(facts))
        self.expect(told == facts, f"the ledger tells {told}, the file is {facts}")
        origin = json.loads(here[1].read_text())
        same = (origin["task_id"], origin["video"]["sha256"]) == (entry.task_id, video.sha256)
        self.expect(same, "the JSON beside the video is about another one")

    def is_result(self, result: dict[str, Any], entry: Entry) -> None:
        """Check that the run returned the facts of the ledger."""
        videos = entry.model_dump(mode="json")["videos"].get(self.lane.location(self.name).wanted)
        told = (result["idempotency_key"], result["task_id"], result["status"], result["videos"])
        known = (entry.idempotency_key, entry.task_id, "succeeded", videos)
        self.expect(told == known, f"the run returned {told}, the ledger has {known}")

    def nothing_is_half(self, when: str, clip: bytes | None) -> None:
        for problem in self.lane.broken(self.name, clip):
            self.complain(f"{when}, {problem}")


def problems_of(tallies: Iterable[Tally]) -> list[str]:
    """Return all violations, each with its case."""
    return [f"{tally.case}: {problem}" for tally in tallies for problem in tally.problems]
