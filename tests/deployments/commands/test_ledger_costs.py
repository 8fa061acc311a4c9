# SPDX-License-Identifier: Apache-2.0
"""Commands ``ledger export`` and ``ledger report``: finance gets every charge once."""

import asyncio
import builtins
import csv
import io
import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from prefect_cometapi.deployments import console
from prefect_cometapi.deployments.commands import ledger_costs
from prefect_cometapi.runway import State
from prefect_cometapi.runway.ledger.entry import Intent
from prefect_cometapi.runway.ledger.focus import COLUMNS
from prefect_cometapi.runway.ledger.store import get_ledger

from ...runway.factories import set_columns

pytestmark = pytest.mark.filterwarnings("ignore:Cyclopts application invoked without tokens")

DAY = datetime(2026, 11, 21, 9, 30, tzinfo=UTC)


def bought(key: str, state: State = State.STORED, **values: Any) -> None:
    """Write a purchase to the ledger of the settings."""
    known = {
        "base_url": "https://api.cometapi.com",
        "route": "image_to_video",
        "model": "gen4_turbo",
        "billed_seconds": 5.0,
    }
    of_intent = set(Intent.model_fields)
    wanted = {name: values.pop(name) for name in list(values) if name in of_intent}
    values = {"charges": 1, "claimed_at": DAY, "task_id": f"task-{key}", **values}
    intent = Intent(idempotency_key=key, **(known | wanted))
    ledger = get_ledger(os.environ["COMETAPI_LEDGER_URL"])
    assert asyncio.run(ledger._insert(intent, state, f"claim-{key}", **values))


@pytest.fixture(autouse=True)
def purchases(monkeypatch):
    """Fill the ledger, and use a terminal that is wide enough for all cells."""
    monkeypatch.setattr(console.console, "width", 200)
    money = {"cost": 0.2, "currency": "USD"}
    bought("billed", cost_source="billed", **money, tags=("blue", "red"), deployment="nightly")
    bought("estimated", cost_source="estimated", cost=0.3, currency="EUR", tags=("blue",))
    bought("unknown")
    bought("uncertain", State.UNCERTAIN, task_id=None, **money, cost_source="estimated")
    bought("refused", State.REJECTED, charges=0)


def test_the_export_has_a_row_for_each_charge(command, capsys):
    """An unknown cost is an empty cell, and an uncertain purchase is marked."""
    assert command("ledger", "export") == 0
    rows = {
        row["ResourceName"]: row for row in csv.DictReader(io.StringIO(capsys.readouterr().out))
    }
    assert set(rows) == {"billed", "estimated", "unknown", "uncertain"}
    assert list(rows["billed"]) == list(COLUMNS)
    assert rows["billed"]["BilledCost"] == "0.2"
    assert rows["billed"]["Tags"] == '{"blue": true, "red": true}'
    assert rows["billed"]["ChargePeriodStart"] == "2026-11-21T00:00:00Z"
    assert rows["billed"]["x_IsUncertain"] == "false"
    assert (rows["unknown"]["BilledCost"], rows["unknown"]["x_EstimatedCost"]) == ("", "")
    assert rows["uncertain"]["x_IsUncertain"] == "true"


def test_parquet_has_the_same_rows_with_types(command, capsys, monkeypatch):
    """Numbers, times and truth values have their types, in row groups of limited size."""
    monkeypatch.setattr(ledger_costs, "ROWS_AT_ONCE", 2)
    assert command("ledger", "export", "--format", "parquet", "--output", "costs.parquet") == 0
    assert "costs.parquet: 4 generations" in capsys.readouterr().out
    rows = {row["ResourceName"]: row for row in pq.read_table("costs.parquet").to_pylist()}
    assert rows["billed"]["BilledCost"] == 0.2
    assert rows["unknown"]["BilledCost"] is None
    assert rows["uncertain"]["x_IsUncertain"] is True
    assert rows["billed"]["ChargePeriodEnd"] == datetime(2026, 11, 22, tzinfo=UTC)
    assert pq.ParquetFile("costs.parquet").num_row_groups == 2
    assert [path.name for path in Path().iterdir() if "costs" in path.name] == ["costs.parquet"]


def test_a_ledger_without_purchases_is_an_export_without_rows(command, capsys):
    """Both formats have their columns even if no purchase is in the period."""
    old = ("--until", "2020-01-01")
    assert command("ledger", "export", *old) == 0
    assert capsys.readouterr().out == ",".join(COLUMNS) + "\n"
    assert command("ledger", "export", *old, "--format", "parquet", "--output", "none.parquet") == 0
    assert pq.read_table("none.parquet").column_names == list(COLUMNS)


def test_parquet_without_pyarrow_names_the_extra(command, capsys, monkeypatch):
    """The error has the command that installs what is missing."""
    real = builtins.__import__

    def refuse(name: str, *arguments: Any) -> Any:
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return real(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", refuse)
    assert command("ledger", "export", "--format", "parquet", "--output", "costs.parquet") == 1
    assert 'pip install "prefect-cometapi[parquet]"' in capsys.readouterr().err
    assert not Path("costs.parquet").exists()


def test_parquet_is_not_printed(command, capsys):
    """A binary file needs a name."""
    assert command("ledger", "export", "--format", "parquet") == 1
    assert "--output FILE" in capsys.readouterr().err


def test_a_file_that_cannot_be_written_is_an_error_without_a_trace(command, capsys):
    """The error names the file."""
    assert command("ledger", "export", "--output", "missing/costs.csv") == 1
    assert capsys.readouterr().err.startswith("InvalidRequest: missing/costs.csv cannot be written")


@pytest.mark.parametrize("format_", ["csv", "parquet"])
@pytest.mark.parametrize("output", [".", "..", os.devnull, "link", "pipe"])
def test_only_a_regular_file_is_replaced(command, capsys, output, format_):
    """A folder, a device, a pipe or a link to one is named, and stays what it is."""
    Path("link").symlink_to(os.devnull)
    os.mkfifo("pipe")
    before = Path(output).stat().st_ino
    assert command("ledger", "export", "--format", format_, "--output", output) == 1
    assert " cannot be written: it is not a regular file" in capsys.readouterr().err
    assert Path(output).stat().st_ino == before
    assert not Path(output).is_file()


def test_a_link_to_a_file_stays_a_link(command, capsys):
    """The file behind a link is replaced, so that other names of the link find the new content."""
    Path("costs.csv").write_text("before")
    Path("latest.csv").symlink_to("costs.csv")
    assert command("ledger", "export", "--output", "latest.csv") == 0
    assert Path("latest.csv").is_symlink()
    assert Path("costs.csv").read_text().startswith("ProviderName,")


def test_links_in_a_circle_are_named(command, capsys):
    """A link that leads to itself is an error without a stack trace."""
    Path("circle").symlink_to("circle")
    assert command("ledger", "export", "--output", "circle") == 1
    assert "cannot be written: it is not a regular file" in capsys.readouterr().err


def test_a_small_amount_is_not_shown_as_nothing(command, capsys):
    """The report shows an amount as precisely as the other commands do."""
    small = {"cost": 0.004, "currency": "CHF", "cost_source": "billed"}
    bought("small", **small)
    assert command("ledger", "report") == 0
    assert "0.004 CHF" in capsys.readouterr().out


def test_an_incomplete_export_replaces_no_file(command, capsys):
    """A corrupted row may be a purchase, so a file without it is not written."""
    Path("costs.csv").write_text("before")
    asyncio.run(set_columns(get_ledger(os.environ["COMETAPI_LEDGER_URL"]), "billed", polls="many"))
    assert command("ledger", "export", "--output", "costs.csv") == 1
    assert "costs.csv was not written" in capsys.readouterr().err
    assert Path("costs.csv").read_text() == "before"
    for words in (["export"], ["report"]):
        assert command("ledger", *words) == 1
        assert "The costs are incomplete: 1 rows are left out." in capsys.readouterr().err


def test_the_report_adds_up_each_currency(command, capsys):
    """Each currency of a day is a line, and so are purchases without a known cost."""
    assert command("ledger", "report", "--json") == 0
    lines = {line["currency"]: line for line in json.loads(capsys.readouterr().out)}
    assert set(lines) == {"USD", "EUR", None}
    assert {line["day"] for line in lines.values()} == {"2026-11-21"}
    usd = lines["USD"]
    assert (usd["billed"], usd["estimated"], usd["uncertain"]) == (0.2, 0.2, 1)
    assert (lines[None]["billed"], lines[None]["without_cost"]) == (None, 1)
    assert command("ledger", "report") == 0
    shown = capsys.readouterr().out
    assert "0.20 USD" in shown
    assert "0.30 EUR" in shown


@pytest.mark.parametrize(
    ("by", "names"), [("deployment", {"nightly", None}), ("tag", {"blue", "red", None})]
)
def test_the_report_is_by_deployment_or_tag(command, capsys, by, names):
    """Purchases without a deployment or tag are a line of their own."""
    assert command("ledger", "report", "--by", by, "--json") == 0
    assert {line[by] for line in json.loads(capsys.readouterr().out)} == names
    assert command("ledger", "report", "--by", by) == 0
    assert f"(no {by})" in capsys.readouterr().out


def test_a_report_of_nothing_says_so(command, capsys):
    """A period without purchases is reported in words."""
    assert command("ledger", "report", "--until", "2020-01-01") == 0
    assert capsys.readouterr().out == "No charged generations found.\n"
