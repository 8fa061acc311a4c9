# SPDX-License-Identifier: Apache-2.0
"""Adoption of task ids that were bought elsewhere, after a check with the service.

A task id that a person typed is not an answer of the service. It is checked with one free request,
and then recorded under one idempotency key. If the service cannot be asked, the ledger marks the id
as unconfirmed, and another id can replace it until the service confirms it.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from ..errors import CometAPIError, GenerationNotFound, IdempotencyKeyConflict, UnknownTaskId
from ..ledger.entry import Entry, Intent, key_conflict
from ..ledger.purchase import attach
from ..ledger.store import Ledger
from ..models.generation import Status
from ..models.keys import has_documented_form, key_of_id
from .client import RunwayClient


@dataclass(frozen=True)
class Check:
    """Result of checking a task id with the service.

    Attributes:
        known: True if the service knows the id, False if it does not, None if it could not be
            asked.
        why: Reason for any result other than True, in words.
    """

    known: bool | None
    why: str = ""


async def check_task(
    client: RunwayClient, task_id: str, *, polls: int = 1, interval: float = 0.0
) -> Check:
    """Check a task id with the service, on the task route and the feed route in turn; free.

    Args:
        client: Client to ask with.
        task_id: Task id to check.
        polls: Requests before the id counts as unknown. A new id may be unknown for a moment.
        interval: Seconds between two requests.
    """
    why = "CometAPI does not know the generation"
    for number in range(polls):
        if number:
            await asyncio.sleep(interval)
        is_feed = number % 2 == 1
        try:
            reply = await (client.feed if is_feed else client.get)(task_id)
        except GenerationNotFound as error:
            why = error.message
        except CometAPIError as error:
            if not is_feed:  # the docs guarantee nothing about the feed
                return Check(known=None, why=error.message)
        else:
            if reply.status is not Status.NOT_FOUND:
                return Check(known=True)
    return Check(known=False, why=why)


def require_known(task_id: str, check: Check) -> None:
    """Reject an id that the service does not know or that looks like a typing mistake; pure.

    Raises:
        UnknownTaskId: The service does not know the id, or it could not be asked and the id does
            not have the form of CometAPI's ids.
    """
    if check.known is False:
        what = f"task id {task_id} was not recorded: {check.why}"
        raise UnknownTaskId(what).with_context(task_id=task_id)
    if check.known is None and not has_documented_form(task_id):
        raise UnknownTaskId(
            f"task id {task_id} was not recorded: it does not have the form of a CometAPI id (a "
            f"UUID or task_…), and it could not be checked ({check.why})"
        ).with_context(task_id=task_id)


async def adopt(
    ledger: Ledger,
    intent: Intent,
    task_id: str,
    ask: Callable[[], Awaitable[Check]],
    *,
    warn: Callable[[str], None] = lambda _text: None,
) -> Entry:
    """Record a task id that was bought elsewhere under an idempotency key, and return the entry.

    Args:
        ledger: Ledger to record the id in.
        intent: Idempotency key, and the known parts of the request.
        task_id: Task id to adopt.
        ask: Checks the id with the service. It is not called if the entry already has this id and
            the service has confirmed it.
        warn: Called with a warning if the id is recorded unconfirmed.

    Raises:
        IdempotencyKeyConflict: The key has another task id, or the id belongs to another key.
        UnknownTaskId: The service does not know the id.
        LedgerUnavailable: The ledger cannot be used.
    """
    other = await ledger.find_by_task_id(
        task_id, intent.base_url, except_key=intent.idempotency_key
    )
    if other and not _is_only_an_id(other):
        raise IdempotencyKeyConflict(
            f"task id {task_id} was not recorded: it already belongs to the idempotency key "
            f"{other.idempotency_key!r}"
        ).with_context(idempotency_key=intent.idempotency_key, task_id=task_id)
    entry = await ledger.get(intent.idempotency_key)
    if entry and (clash := key_conflict(entry, intent, task_id)):
        raise clash.with_context(idempotency_key=entry.idempotency_key, task_id=entry.task_id)
    if entry is None or entry.task_id != task_id or not entry.task_id_checked:
        check = await ask()
        require_known(task_id, check)
    else:
        check = Check(known=True)
    adopted = await attach(ledger, intent, task_id, checked=bool(check.known))
    if check.known and not adopted.task_id_checked:
        adopted = await ledger.confirm_id(adopted.idempotency_key, task_id) or adopted
    if not check.known:
        warn(
            f"task id {task_id} was recorded without a check: {check.why}. The first poll that "
            "finds it confirms it; until then, prefect-cometapi ledger adopt can replace it"
        )
    if other:  # count the purchase once, and let one collector deliver it
        await ledger.mark_adopted_elsewhere(other)
    return adopted


def _is_only_an_id(entry: Entry) -> bool:
    """Return True for an entry that was adopted by its id alone, without key and request; pure."""
    return entry.fingerprint is None and entry.idempotency_key == key_of_id(entry.task_id or "")
