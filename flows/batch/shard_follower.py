# SPDX-License-Identifier: Apache-2.0
"""Follower of the shards of a batch until their runs have ended.

It reads their states and their results, schedules crashed ones again, and stops all of them once no
more may be bought. If Prefect or the ledger does not answer, it tries again.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.input.run_input import asend_input
from prefect.states import Cancelled, Crashed, Scheduled

from ...runway.batch.results import next_write
from ...runway.batch.sharding import reason_to_stop_shards, results_name
from ...runway.errors import LedgerUnavailable, StorageError
from ...runway.ledger.leases import OwnerStatus, owner_status
from ..runtime import log
from ..runtime.run_context import RunContext
from .progress import BatchProgress
from .shard_files import listed_files, read_results
from .shard_runs import (
    UNAVAILABLE,
    Liveness,
    Shard,
    Step,
    change_state,
    close_crashed,
    liveness,
    next_step,
    owners_of,
    read_runs,
)

if TYPE_CHECKING:
    from prefect.client.schemas.responses import DeploymentResponse

POLL_INTERVAL = 2.0
"""Seconds between two reads of the shards' states from Prefect; one read covers all shards."""

LEASE_CHECK_INTERVAL = 10.0
"""Seconds between two checks that the process of a shard is alive."""

READING_SHARE = 0.02
"""Maximum share of the time of a batch that reading the results of a shard takes."""

START_WARNING_DELAY = 60.0
"""Seconds after which a shard that no worker has started is reported."""

READ_ATTEMPTS = 5
"""Number of attempts to read the results of a shard that has ended."""


@dataclass
class ShardFollower:
    """Follower of the shards of a batch.

    Attributes:
        context: Context of the run.
        progress: Results of the items of all shards.
        deployment: Deployment whose runs make the shards.
        max_failures: Number of items that may fail in all shards, or None for no limit.
        stopped: Reason why no more items are bought, or None.
    """

    context: RunContext
    progress: BatchProgress
    deployment: "DeploymentResponse"
    max_failures: int | None = None
    stopped: str | None = None
    _leases_due: float = 0.0
    _has_warned: bool = False

    async def follow(self, shards: Sequence[Shard]) -> None:
        """Follow shards until all of them have ended, and read their results."""
        while not all(shard.is_over for shard in shards):
            await asyncio.sleep(POLL_INTERVAL)
            try:
                await self._read_states(shards)
            except UNAVAILABLE as error:
                log.logger().debug("Prefect did not answer: %s", type(error).__name__)
            await self._take_steps(shards)
            await self._read_results(shards)
            await self._stop_if_due(shards)
        await self._read_last_results(shards)

    async def _read_states(self, shards: Sequence[Shard]) -> None:
        active = [shard for shard in shards if not shard.is_over]
        runs = await read_runs([shard.run.id for shard in active])
        for shard in active:
            shard.run = runs.get(shard.run.id) or _deleted(shard.run)
            waits = time.monotonic() - shard.started > START_WARNING_DELAY
            if waits and not shard.is_late and shard.run.start_time is None:
                shard.is_late = True
                log.logger().warning(
                    "No worker has started shard %s yet. Workers of %s: prefect worker start "
                    "--pool %s",
                    shard.order.name,
                    self.deployment.name,
                    self.deployment.work_pool_name or "POOL",
                )

    async def _take_steps(self, shards: Sequence[Shard]) -> None:
        """Restart, close or leave the shards that need it.

        The worker of a killed process reports its crash. If the worker is gone, too, only the
        leases show it: a process renews its leases for as long as it lives.
        """
        are_leases_due = time.monotonic() >= self._leases_due
        if are_leases_due:
            self._leases_due = time.monotonic() + LEASE_CHECK_INTERVAL
        for shard in shards:
            if shard.is_over:
                continue
            try:
                await self._watch(shard)
                process = await self._liveness(shard) if are_leases_due else None
                step = next_step(
                    shard.run.state_type, process, may_restart=self._may_restart(shard)
                )
                await self._take_step(shard, step)
            except (*UNAVAILABLE, LedgerUnavailable) as error:
                log.logger().debug(
                    "Shard %s is looked at again: %s", shard.order.name, type(error).__name__
                )

    def _may_restart(self, shard: Shard) -> bool:
        return not self.stopped and shard.restarts < self.context.settings.max_run_attempts

    async def _watch(self, shard: Shard) -> None:
        """Note when a state of a shard is first read, and the owners that are gone by then.

        These may be former processes of the run, whose leases the new one takes over one after the
        other. Until then, their leases say nothing about it.
        """
        if shard.watched == shard.run.state_id:
            return
        former: set[str | None] = set()
        if shard.run.state_type is StateType.RUNNING:
            leases = (await self.context.ledger()).leases
            former = {
                entry.owner
                for entry in await leases.entries_of_run(str(shard.run.id))
                if owner_status(entry, leases.duration) is OwnerStatus.GONE
            }
        shard.watched, shard.watched_since = shard.run.state_id, time.monotonic()
        shard.former = former

    async def _liveness(self, shard: Shard) -> Liveness | None:
        """Return what the leases of a shard show about its process, if that is of interest."""
        if shard.run.state_type not in {StateType.RUNNING, StateType.CANCELLING}:
            return None
        since = time.monotonic() - shard.watched_since
        is_cancelling = shard.run.state_type is StateType.CANCELLING
        if is_cancelling and since < LEASE_CHECK_INTERVAL:
            return None  # Its worker stops it in this time.
        leases = (await self.context.ledger()).leases
        found = await owners_of(leases, shard.run)
        # A process that runs for twice the duration of a lease has taken over what it works on.
        return liveness(found, shard.former if since < 2 * leases.duration else ())

    async def _take_step(self, shard: Shard, step: Step) -> None:
        name = shard.order.name
        if step is Step.MARK_CRASHED:
            gone = Crashed(message="The process of the run is gone.")
            async with get_client() as client:
                shard.run, is_changed = await change_state(client, shard.run, gone)
            if is_changed:
                log.logger().warning("The process of shard %s is gone", name)
                again = next_step(shard.run.state_type, None, may_restart=self._may_restart(shard))
                await self._take_step(shard, again)
        elif step is Step.RESTART:
            again = Scheduled(message="Restarted after a crash.")
            async with get_client() as client:
                shard.run, is_changed = await change_state(client, shard.run, again)
            if is_changed:
                shard.restarts += 1
                log.logger().warning("Shard %s crashed, and is scheduled again", name)
        elif step is Step.CLOSE:
            crashed = shard.run
            why = self.stopped or f"Shard {name} crashed too often."
            shard.run = await close_crashed(crashed, why)
            if shard.run.state_type is StateType.CANCELLED:
                shard.run, shard.is_closed = crashed, True  # its ending names the crash
        elif step is Step.LEAVE:
            log.logger().warning("Shard %s is being cancelled, and no process works on it", name)
            shard.is_closed = True

    async def _read_results(self, shards: Sequence[Shard]) -> None:
        """Read what the shards have written about their items, at the latest when they end."""
        storage = await self.context.storage()
        for shard in shards:
            began, is_over = time.monotonic(), shard.is_over
            if shard.is_read or (began < shard.read_due and not is_over):
                continue
            try:
                rows = await read_results(storage, shard)
            except (StorageError, ValueError) as error:
                is_known = isinstance(error, StorageError)
                shard.problem = error.message if is_known else "its content is not valid"
            else:
                for row in rows:
                    self.progress.put_if_changed(row)
                shard.is_read = is_over
            ended = time.monotonic()
            shard.read_due = next_write(ended, ended - began, READING_SHARE)

    async def _read_last_results(self, shards: Sequence[Shard]) -> None:
        """Read the results that could not be read yet, and report those that cannot be.

        Only they have the reasons of the items that failed before they were bought.
        """
        storage = await self.context.storage()
        for attempt in range(READ_ATTEMPTS):
            if attempt:
                await asyncio.sleep(POLL_INTERVAL)
            await self._read_results(shards)
            unread = [shard for shard in shards if not shard.is_read]
            listed = await listed_files(storage) if unread else None
            for shard in unread:
                has_written = shard.run.state_type is StateType.COMPLETED
                name = results_name(shard.digest, str(shard.run.id))
                if not has_written and listed is not None and name not in listed:
                    shard.is_read = True  # It ended before it wrote any.
            if all(shard.is_read for shard in shards):
                return
        for shard in shards:
            if not shard.is_read:
                log.logger().warning(
                    "The results of shard %s could not be read, so the reasons of its failed items "
                    "are unknown. They are in %s, unless it wrote none: %s",
                    shard.order.name,
                    results_name(shard.digest, str(shard.run.id)),
                    shard.problem,
                )

    async def _stop_if_due(self, shards: Sequence[Shard]) -> None:
        """Let all shards stop buying once more items failed than may fail in all of them.

        A shard that did not get the message gets it in the next round.
        """
        self.stopped = self.stopped or reason_to_stop_shards(
            self.progress.results(), self.max_failures
        )
        if not self.stopped:
            return
        for shard in shards:
            if shard.is_over or shard.has_stop:
                continue
            try:
                await asend_input(self.stopped, shard.run.id)
            except UNAVAILABLE as error:
                if not self._has_warned:
                    self._has_warned = True
                    log.logger().warning(
                        "Shard %s could not be stopped yet (%s) and continues to buy until it is",
                        shard.order.name,
                        type(error).__name__,
                    )
            else:
                shard.has_stop = True


def _deleted(run: FlowRun) -> FlowRun:
    """Return a run that Prefect does not have any more, as an ended one."""
    state = Cancelled(message="its flow run was deleted")
    ended = {"state": state, "state_type": state.type, "state_name": state.name}
    return run.model_copy(update={**ended, "state_id": state.id})
