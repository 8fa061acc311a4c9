# SPDX-License-Identifier: Apache-2.0
"""Metrics of generations for OpenTelemetry: what was bought and stored, its cost and its delays.

Without an SDK that the user configures, OpenTelemetry drops them. Their attributes are the route,
the model and the service, and those of money also the currency and the source of the cost: no key,
no prompt and no address.
"""

from opentelemetry.metrics import get_meter

from ...runway.ledger.costs import BILLED_CURRENCY, billed_submissions
from ...runway.ledger.entry import CostSource, Entry, Intent
from ...runway.ledger.service_names import service_name
from ...runway.models.generation import Submission
from ..runtime.log import best_effort

_meter = get_meter("prefect_cometapi")

_bought = _meter.create_counter(
    "cometapi.generation.bought", "{generation}", "Generations that this process bought."
)
_uncertain = _meter.create_counter(
    "cometapi.generation.uncertain",
    "{generation}",
    "Submissions of which it is not known if they were charged.",
)
_stored = _meter.create_counter(
    "cometapi.generation.stored", "{generation}", "Generations whose files were stored."
)
_cost = _meter.create_up_down_counter(
    "cometapi.generation.cost",
    "{currency}",
    "Money, estimated at the purchase or billed by CometAPI; a later refund lowers it.",
)
_wait = _meter.create_histogram(
    "cometapi.generation.wait", "s", "Time from the submission to the detected end."
)
_lag = _meter.create_histogram(
    "cometapi.generation.lag", "s", "Time from the detected end to the stored file."
)

Attributes = dict[str, str]


def _kind(it: Intent | Submission) -> Attributes:
    known = {"cometapi.route": it.route, "cometapi.model": it.model}
    service = service_name(it.base_url) if it.base_url else None
    known["cometapi.service"] = service
    return {name: value for name, value in known.items() if value}


def _money(kind: Attributes, currency: str, source: CostSource) -> Attributes:
    return {**kind, "cometapi.currency": currency, "cometapi.cost_source": str(source)}


@best_effort
async def count_bought(intent: Intent) -> None:
    """Count a generation that was just bought, and its estimated cost if it has a price."""
    _bought.add(1, _kind(intent))
    if intent.cost is not None and intent.currency:
        _cost.add(intent.cost, _money(_kind(intent), intent.currency, CostSource.ESTIMATED))


@best_effort
async def count_uncertain(intent: Intent) -> None:
    """Count a submission of which it is not known if it was charged."""
    _uncertain.add(1, _kind(intent))


@best_effort
async def count_stored(submission: Submission, entry: Entry | None) -> None:
    """Count a generation that was just stored, and record its delays as far as they are known.

    Args:
        submission: Submission of the generation.
        entry: Entry with the time at which it was stored, or None without a ledger.
    """
    kind = _kind(submission)
    _stored.add(1, kind)
    if entry is None or entry.finished_at is None:
        return
    _wait.record(entry.waited, kind)
    if entry.stored_at:
        _lag.record(max(0.0, (entry.stored_at - entry.finished_at).total_seconds()), kind)


@best_effort
async def count_billed(before: Entry, after: Entry) -> None:
    """Count what CometAPI billed for a generation, or the change of an earlier bill.

    Args:
        before: Entry before the bill became known.
        after: Entry with the bill.
    """
    billed = [
        entry.cost * billed_submissions(entry)
        for entry in (before, after)
        if entry.cost is not None and entry.cost_source is CostSource.BILLED
    ]
    if after.cost_source is CostSource.BILLED and billed:
        change = billed[-1] - (billed[0] if len(billed) == 2 else 0.0)
        _cost.add(change, _money(_kind(after), BILLED_CURRENCY, CostSource.BILLED))
