# SPDX-License-Identifier: Apache-2.0
"""Costs that become known after the purchase: Runway's credits, and the charges of the account.

A cost that cannot be read leaves the ledger as it is. Nothing waits for it or fails because of it.
"""

from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from ...runway.errors import CometAPIError
from ...runway.ledger.entry import Entry
from ...runway.models.generation import Submission
from ..runtime.ledger_writes import write_best_effort
from ..runtime.log import logger
from ..runtime.run_context import RunContext
from ..ui import metrics
from .adoption import credentials_of

BILLED_WITHIN = timedelta(days=7)
"""Age until which the charge of a generation is looked up."""

MOST_AT_ONCE = 500
"""Maximum number of generations whose charges are looked up at a time."""

MARGIN = timedelta(minutes=5)
"""Time around the submissions for which the account's lists are requested."""


async def record_credits(
    context: RunContext, submission: Submission, credits_: float | None
) -> None:
    """Record Runway's credits for a generation, if its state named them."""
    if credits_ is None:
        return
    from ...runway.ledger.billing import record_listed

    entry = await write_best_effort(context, lambda to: to.get(submission.idempotency_key))
    if entry and entry.task_id == submission.task_id:
        await write_best_effort(context, lambda to: record_listed(to, entry, credits_))


async def update_unbilled(context: RunContext) -> int:
    """Record the charges of recent generations; return how many became known."""
    from ...runway.ledger.billing import unbilled_entries

    since = datetime.now(UTC) - BILLED_WITHIN
    entries = await write_best_effort(context, lambda to: unbilled_entries(to, since, MOST_AT_ONCE))
    return await update_billed(context, entries or [])


async def update_billed(context: RunContext, entries: Sequence[Entry]) -> int:
    """Record the charges of generations, as far as their accounts tell them.

    Args:
        context: Context of the run.
        entries: Generations that have ended.

    Returns:
        The number of entries that changed.
    """
    groups: defaultdict[tuple[str, str | None], list[Entry]] = defaultdict(list)
    for entry in entries:
        if entry.task_id and entry.submitted_at:
            groups[entry.base_url, entry.credentials].append(entry)
    changed = 0
    for group in groups.values():
        try:
            changed += await _update_group(context, group)
        except CometAPIError as error:
            logger().warning("The charges of the account are not known: %s", error.message)
    return changed


async def _update_group(context: RunContext, entries: Sequence[Entry]) -> int:
    from ...runway.ledger.billing import record_billed
    from ...runway.ledger.costs import billed_amount

    own = await credentials_of(entries[0], context.given_credentials, context.settings)
    if own.access_token is None or own.base_url != entries[0].base_url:
        return 0
    sent = [entry.claimed_at or entry.submitted_at for entry in entries]
    start = min(moment for moment in sent if moment) - MARGIN
    end = datetime.now(UTC) + MARGIN
    async with own.get_account() as account:
        tasks = {task.task_id: task for task in (await account.tasks(start, end)).tasks}
        found = [(entry, tasks[entry.task_id]) for entry in entries if entry.task_id in tasks]
        failed = any(task.status == "FAILURE" for _, task in found)
        charges = (await account.charges(start, end)).charges if failed else ()
    refunds = [charge for charge in charges if charge.kind == "refund"]
    changed, ledger = 0, await context.ledger()
    for entry, task in found:
        amount = billed_amount(task, refunds)
        if amount is not None and (billed := await record_billed(ledger, entry, amount)):
            await metrics.count_billed(entry, billed)
            changed += 1
    return changed
