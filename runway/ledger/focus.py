# SPDX-License-Identifier: Apache-2.0
"""Entries as rows of cost and usage with the columns of FOCUS 1.2; pure functions.

FOCUS is the FinOps Open Cost and Usage Specification (focus.finops.org, version 1.2). A column that
it does not define begins with ``x_``, as it demands. A figure that the ledger does not know is
empty and never 0, although FOCUS allows no empty costs and currencies (docs/costs.md).
"""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

from ..models.model_limits import model_table
from .charged import is_uncertain, purchased_at
from .costs import billed_submissions
from .entry import Entry
from .service_names import service_name

COLUMNS: dict[str, type] = {
    "ProviderName": str,
    "PublisherName": str,
    "ServiceName": str,
    "ServiceCategory": str,
    "ServiceSubcategory": str,
    "SkuId": str,
    "SkuMeter": str,
    "ResourceId": str,
    "ResourceName": str,
    "ResourceType": str,
    "ChargeCategory": str,
    "ChargeClass": str,
    "ChargeDescription": str,
    "ChargeFrequency": str,
    "ChargePeriodStart": datetime,
    "ChargePeriodEnd": datetime,
    "ConsumedQuantity": float,
    "ConsumedUnit": str,
    "PricingQuantity": float,
    "PricingUnit": str,
    "ListUnitPrice": float,
    "ListCost": float,
    "ContractedCost": float,
    "PricingCurrency": str,
    "PricingCurrencyListUnitPrice": float,
    "BilledCost": float,
    "EffectiveCost": float,
    "BillingCurrency": str,
    "Tags": str,
    "x_EstimatedCost": float,
    "x_CostSource": str,
    "x_IsUncertain": bool,
    "x_Submissions": int,
    "x_State": str,
    "x_PurchasedAt": datetime,
    "x_FlowRunId": str,
    "x_DeploymentId": str,
    "x_DeploymentName": str,
    "x_CredentialsName": str,
    "x_ServiceUrl": str,
}
"""Columns of a row, in their order, with the type of their values."""

_DIGITS = 9
"""Decimal places of money and quantities, which hides the errors of binary fractions."""


def focus_row(entry: Entry) -> dict[str, Any]:
    """Return the row of an entry by column; None is an unknown value.

    An entry is one row, and its submissions are added up. The charge period is the day of the
    purchase in UTC.
    """
    day = datetime.combine(purchased_at(entry).astimezone(UTC), datetime.min.time(), UTC)
    unit, quantity = _consumption(entry)
    currency = entry.currency or entry.list_currency
    list_cost = _times(entry.list_cost, entry.charges)
    unit_price = list_cost / quantity if list_cost is not None and quantity else None
    in_currency = entry.list_currency == currency
    submissions = billed_submissions(entry)
    billed = _times(entry.cost, submissions) if submissions else None
    others = entry.charges - submissions
    estimated = _times(entry.cost, others) if others else None
    return {
        "ProviderName": service_name(entry.base_url),
        "PublisherName": "Runway",
        "ServiceName": "Runway",
        "ServiceCategory": "AI and Machine Learning",
        "ServiceSubcategory": "Generative AI",
        "SkuId": entry.model,
        "SkuMeter": entry.route,
        "ResourceId": entry.task_id,
        "ResourceName": entry.idempotency_key,
        "ResourceType": "Generation" if entry.task_id else None,
        "ChargeCategory": "Usage",
        "ChargeClass": None,
        "ChargeDescription": " ".join(filter(None, [entry.route, entry.model])) or None,
        "ChargeFrequency": "Usage-Based",
        "ChargePeriodStart": day,
        "ChargePeriodEnd": day + timedelta(days=1),
        "ConsumedQuantity": quantity,
        "ConsumedUnit": unit,
        "PricingQuantity": quantity,
        "PricingUnit": unit,
        "ListUnitPrice": _rounded(unit_price) if in_currency else None,
        "ListCost": list_cost if in_currency else None,
        "ContractedCost": list_cost if in_currency else None,
        "PricingCurrency": entry.list_currency,
        "PricingCurrencyListUnitPrice": _rounded(unit_price),
        "BilledCost": billed,
        "EffectiveCost": billed,
        "BillingCurrency": currency,
        "Tags": None if entry.tags is None else _as_pairs(entry.tags),
        "x_EstimatedCost": estimated,
        "x_CostSource": entry.cost_source and str(entry.cost_source),
        "x_IsUncertain": is_uncertain(entry),
        "x_Submissions": entry.charges,
        "x_State": str(entry.state),
        "x_PurchasedAt": purchased_at(entry),
        "x_FlowRunId": entry.flow_run_id,
        "x_DeploymentId": entry.deployment_id,
        "x_DeploymentName": entry.deployment,
        "x_CredentialsName": entry.credentials,
        "x_ServiceUrl": entry.base_url,
    }


def _consumption(entry: Entry) -> tuple[str | None, float | None]:
    """Return the unit and the quantity of all submissions; None is unknown."""
    route = model_table().routes.get(entry.route or "")
    if route is None:
        return None, None
    if route.makes != "video":
        return "Units", float(entry.charges)
    return "Seconds", _times(entry.billed_seconds, entry.charges)


def _times(amount: float | None, number: int) -> float | None:
    return _rounded(None if amount is None else amount * number)


def _rounded(amount: float | None) -> float | None:
    return None if amount is None else round(amount, _DIGITS)


def _as_pairs(tags: tuple[str, ...]) -> str:
    """Return tags as JSON; FOCUS wants keys with values, and ``true`` for a tag that has none."""
    return json.dumps(dict.fromkeys(tags, True), ensure_ascii=False)
