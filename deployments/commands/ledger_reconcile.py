# SPDX-License-Identifier: Apache-2.0
"""Command ``ledger reconcile``: ask the account what became of uncertain submissions."""

import asyncio
import json as json_text
import shlex
import sys
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from ...runway.ledger.entry import State
from ..console import console, errors, escape, exit_unknown_keys
from ..prefect_env import quieten_prefect
from .ledger_table import shown_time

if TYPE_CHECKING:
    from ...runway.api.reconcile import Reconciled

UNDECIDED = 2
"""Exit status if a generation is left to a person."""

_COLOURS = {"probably this": "green", "not accepted": "green", "undecided": "yellow"}


def reconcile(
    *idempotency_key: Annotated[
        str, Parameter(help="Idempotency keys to look up (default: all uncertain ones).")
    ],
    apply: Annotated[
        bool,
        Parameter(
            negative="",
            help="Carry out the verdicts: adopt, or allow one more submission. Only if nothing "
            "else uses the account, because a task of another client looks like yours.",
        ),
    ] = False,
    json: Annotated[bool, Parameter(negative="", help="Print the result as JSON.")] = False,
) -> None:
    """Ask the account what became of uncertain submissions. Buys nothing.

    Needs COMETAPI_ACCESS_TOKEN. Exit status: 0 if each one is decided, 2 if one is left to a
    person or to a later call, 1 if the command failed.
    """
    quieten_prefect()
    found = asyncio.run(_reconciled(idempotency_key, apply=apply))
    if json:
        print(json_text.dumps([as_json(one) for one in found], indent=2))
    elif not found:
        console.print("No uncertain submissions.")
    else:
        for one in found:
            _show(one, apply=apply)
    if not all(is_settled(one, apply=apply) for one in found):
        sys.exit(UNDECIDED)


async def _reconciled(keys: tuple[str, ...], *, apply: bool) -> "list[Reconciled]":
    from ...flows.runtime.run_context import RunContext
    from ...flows.steps.reconcile import reconcile_entries
    from ...runway.api.reconcile import resolve_dead_claims
    from ...runway.ledger.unresolved import uncertain_entries
    from ...runway.models.keys import one_form

    context = RunContext()
    ledger = await context.ledger()
    keys = tuple(map(one_form, keys))
    known = await ledger.get_many(keys)
    if missing := [key for key in keys if key not in known]:
        exit_unknown_keys(missing)
    if apply:
        await resolve_dead_claims(ledger, context.base_url)
    for entry in known.values():
        if entry.state is not State.UNCERTAIN:
            note = f"{entry.idempotency_key} is {entry.state}, and not uncertain"
            errors.print(f"[yellow]Note:[/] {escape(note)}", soft_wrap=True)
    return await reconcile_entries(
        context, await uncertain_entries(ledger, keys or None), apply=apply
    )


def is_settled(found: "Reconciled", *, apply: bool) -> bool:
    """Return True if a submission needs no person and no later call; pure."""
    from ...runway.ledger.reconciliation import Action, Verdict

    if apply:
        return found.done is not Action.NONE
    return found.decision.verdict is not Verdict.UNDECIDED


def commands_of(found: "Reconciled") -> dict[str, str]:
    """Return the commands that decide about a submission, with the condition of each; pure."""
    from ...runway.ledger.reconciliation import Action, Verdict

    if found.done is Action.ADOPT:
        return {"collect": "to store the video"}
    if found.done is Action.RESUBMIT:
        return {}
    key, decision = shlex.quote(found.entry.idempotency_key), found.decision
    adopt = {
        f"ledger adopt {key} {shlex.quote(task.task_id)}": f"if {_described(task)} is it"
        for task in decision.candidates[:5]
    }
    if decision.verdict is Verdict.PROBABLY_THIS:
        return adopt
    resubmit = {f"ledger resubmit {key}": "to allow one more submission"}
    if decision.verdict is Verdict.NOT_ACCEPTED:
        return resubmit
    again = {f"ledger reconcile {key}": "to look again later"}
    return {**adopt, **(again if not adopt else {}), **resubmit}


def _described(task: Any) -> str:
    known = [task.action, task.model, task.status, shown_time(task.submitted_at)]
    return ", ".join(filter(None, known)) or "the task"


def as_json(found: "Reconciled") -> dict[str, Any]:
    """Return the result for one key as JSON data."""
    decision = found.decision
    fields = {"task_id", "action", "model", "status", "submitted_at"}
    return {
        "idempotency_key": found.entry.idempotency_key,
        "state": str(found.entry.state),
        "verdict": str(decision.verdict),
        "reason": decision.reason,
        "done": str(found.done),
        "why_not": found.why_not,
        "asked_at": decision.asked_at.isoformat(),
        "window": [
            decision.window.start.isoformat(),
            decision.window.end.isoformat() if decision.window.end else None,
        ],
        "candidates": [
            task.model_dump(mode="json", include=fields) for task in decision.candidates
        ],
        "commands": [f"prefect-cometapi {command}" for command in commands_of(found)],
    }


def _show(found: "Reconciled", *, apply: bool) -> None:
    decision = found.decision
    colour = _COLOURS[str(decision.verdict)]
    console.print(
        f"{escape(found.entry.idempotency_key)}: [{colour}]{decision.verdict}[/]", soft_wrap=True
    )
    end = shown_time(decision.window.end) or "now"
    lines = {
        "Sent": f"between {shown_time(decision.window.start)} and {end}",
        "Account": f"{decision.reason} (asked at {shown_time(decision.asked_at)})",
        "Task": _described(decision.task) if decision.task else "",
        "Done": _DONE.get(str(found.done), ""),
        "Not done": found.why_not,
    }
    for name, text in lines.items():
        if text:
            console.print(f"  [dim]{name}:[/] {escape(text)}", soft_wrap=True)
    for command, when in commands_of(found).items():
        console.print(
            f"  [dim]Next:[/] prefect-cometapi {escape(command)}  [dim]{escape(when)}[/]",
            soft_wrap=True,
        )
    if str(found.done) == "resubmit":
        console.print("  [dim]Next:[/] run it again with the same idempotency key")
    if not apply and str(decision.verdict) != "undecided":
        console.print(
            "  [dim]Or, if nothing else uses the account:[/] prefect-cometapi ledger reconcile "
            f"{escape(shlex.quote(found.entry.idempotency_key))} --apply",
            soft_wrap=True,
        )


_DONE = {"adopt": "the task is recorded as the generation", "resubmit": "the key is free again"}
