# SPDX-License-Identifier: Apache-2.0
"""Reconciliation of uncertain submissions, with the credentials that each was bought with."""

from collections import defaultdict
from collections.abc import Sequence
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import TYPE_CHECKING

from ...runway.errors import AuthenticationError, CometAPIError
from ...runway.ledger.entry import Entry
from ..runtime.log import logger
from ..runtime.run_context import RunContext
from .adoption import credentials_of

if TYPE_CHECKING:
    from ...runway.api.reconcile import ListTasks, Reconciled
    from ...runway.ledger.reconciliation import Tolerance


def tolerance_of(context: RunContext) -> "Tolerance":
    """Return the tolerance that the settings of a run allow."""
    from ...runway.ledger.reconciliation import Tolerance

    return Tolerance(
        slack=timedelta(seconds=context.settings.clock_slack),
        delay=timedelta(seconds=context.settings.account_delay),
    )


async def reconcile_entries(
    context: RunContext, entries: Sequence[Entry], *, apply: bool
) -> "list[Reconciled]":
    """Return the decision about each uncertain entry, in their order.

    Args:
        context: Context of the run.
        entries: Uncertain entries.
        apply: True to carry out the decisions and to record the evidence.
    """
    groups: defaultdict[tuple[str, str | None], list[Entry]] = defaultdict(list)
    for entry in entries:
        groups[entry.base_url, entry.credentials].append(entry)
    found: dict[str, Reconciled] = {}
    for group in groups.values():
        for one in await _reconcile_group(context, group, apply=apply):
            found[one.entry.idempotency_key] = one
    keys = [entry.idempotency_key for entry in entries]
    return [found[key] for key in keys if key in found]


async def _reconcile_group(
    context: RunContext, entries: Sequence[Entry], *, apply: bool
) -> "list[Reconciled]":
    """Reconcile entries with the same service and the same credentials."""
    from ...runway.api.reconcile import carry_out, examine, nothing_listed

    ledger, tolerance = await context.ledger(), tolerance_of(context)
    async with AsyncExitStack() as stack:
        client = None
        ask: ListTasks
        try:
            own = await credentials_of(entries[0], context.given_credentials)
        except AuthenticationError as error:
            ask = nothing_listed(error.message)
        else:
            if own.base_url == entries[0].base_url:
                client = await stack.enter_async_context(own.get_client())
                account = await stack.enter_async_context(own.get_account())
                ask = account.tasks
            else:
                ask = nothing_listed(
                    f"it was bought at {entries[0].base_url}, but the credentials are for "
                    f"{own.base_url}"
                )
        found = await examine(ledger, ask, entries, tolerance)
        if client is None or not apply:
            return found
        return [await carry_out(ledger, client, one) for one in found]


async def reconcile_quietly(
    context: RunContext, keys: Sequence[str], *, resolve_claims: bool = False
) -> "list[Reconciled]":
    """Reconcile the uncertain submissions of some keys, carry out the decisions, and log them.

    Args:
        context: Context of the run.
        keys: Idempotency keys.
        resolve_claims: True to make claims of dead runs uncertain first.

    Returns:
        The results; none if the ledger is unavailable.
    """
    from ...runway.api.reconcile import resolve_dead_claims
    from ...runway.ledger.unresolved import uncertain_entries

    try:
        ledger = await context.ledger()
        if resolve_claims:
            await resolve_dead_claims(ledger, context.base_url)
        found = await reconcile_entries(context, await uncertain_entries(ledger, keys), apply=True)
    except CometAPIError as error:
        logger().warning("Could not query the account about uncertain keys: %s", error.message)
        return []
    for one in found:
        logger().info("Key %s: %s", one.entry.idempotency_key, one.decision.in_words())
    return found
