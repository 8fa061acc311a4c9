# SPDX-License-Identifier: Apache-2.0
"""Commands ``ledger`` and ``collect``: purchases are listed, decided and finished."""

import asyncio
import csv
import io
import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_cometapi.deployments import cli, console
from prefect_cometapi.deployments.commands.ledger_period import since_time
from prefect_cometapi.deployments.commands.ledger_table import as_csv
from prefect_cometapi.runway import Entry, State
from prefect_cometapi.runway.ledger.entry import Intent
from prefect_cometapi.runway.ledger.store import get_ledger

from ...runway.factories import set_columns

pytestmark = pytest.mark.filterwarnings("ignore:Cyclopts application invoked without tokens")

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)


def entry(key: str, state: State = State.UNCERTAIN, **values: Any) -> Entry:
    """Write an entry to the ledger of the settings."""
    request = {"promptImage": "https://example.com/[red]cat[/].jpg"}
    intent = Intent(
        idempotency_key=key,
        base_url=values.pop("base_url", "https://api.cometapi.com"),
        route="image_to_video",
        model="gen3a_turbo",
        fingerprint="f" * 64,
        request=request,
        billed_seconds=5,
        flow_run_id=values.pop("flow_run_id", None),
    )
    ledger = get_ledger(os.environ["COMETAPI_LEDGER_URL"])
    made = asyncio.run(ledger._insert(intent, state, f"claim-{key}", **values))
    assert made
    return made


def known(key: str) -> Entry:
    found = asyncio.run(get_ledger(os.environ["COMETAPI_LEDGER_URL"]).get(key))
    assert found
    return found


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    """Use a terminal that is wide enough for all cells."""
    monkeypatch.setattr(console.console, "width", 200)
    monkeypatch.setattr(console.errors, "width", 200)


def test_every_option_of_the_ledger_is_explained():
    """Every option of the ledger commands has a help text."""
    for name in ("list", "show", "adopt", "write-off", "resubmit", "abandon"):
        arguments = cli.app["ledger"][name].assemble_argument_collection()
        assert [item.name for item in arguments if not item.parameter.help] == [], name


def test_the_list_has_the_next_commands(command, capsys):
    """The list shows the three commands for uncertain entries, and collect for bought ones."""
    entry("sku 1", note="no answer")
    entry("sku-2", State.SUBMITTED, task_id="3d957031-9a2a")
    assert command("ledger", "list") == 0
    told = capsys.readouterr().out
    assert "3d957031" in told
    for line in (
        "prefect-cometapi ledger adopt 'sku 1' TASK_ID",
        "prefect-cometapi ledger resubmit 'sku 1'",
        "prefect-cometapi ledger write-off 'sku 1'",
        "prefect-cometapi collect",
    ):
        assert line in told


def test_the_list_shows_what_became_of_each(command, capsys, monkeypatch, tmp_path):
    """A row has the file, or else the note or the prompt, and a sandbox's row is marked."""
    video = {"uri": str(tmp_path / "videos/a.mp4"), "sidecar": "a.json", "sha256": "0" * 64}
    video |= {"size": 1, "width": 1, "height": 1, "duration": 5.0, "frames": 1, "codec": "h264"}
    entry("a", State.STORED, task_id="id-1", videos={"videos": [video]})
    entry("b", note="no answer\nat all", base_url="http://127.0.0.1:8777")
    assert command("ledger", "list") == 0
    first, second = (line.split() for line in capsys.readouterr().out.splitlines()[1:3])
    assert first[:2] == ["b", "uncertain"]
    assert first[2] == "(sandbox)"
    assert " ".join(first).endswith("no answer at all")
    assert second[-1] == "videos/a.mp4"
    monkeypatch.setattr(console.console, "width", 80)
    assert command("ledger", "list") == 0
    assert "uncertain (sandbox)" in capsys.readouterr().out


def test_the_wide_list_has_complete_ids_and_texts_in_one_line_each(command, capsys, monkeypatch):
    """Nothing is broken or shortened, however narrow the terminal is."""
    monkeypatch.setattr(console.console, "width", 40)
    task_id, note = "3d957031-9a2a-45e2-9dc7-bc8513059c50", "no answer, " * 20
    entry("sku-1", task_id=task_id, note=note)
    assert command("ledger", "list", "--wide") == 0
    row = capsys.readouterr().out.splitlines()[1]
    for text in ("sku-1", task_id, note.strip(), "https://api.cometapi.com"):
        assert text in row


def test_an_empty_list_says_so(command, capsys):
    """An empty ledger is reported in words, not as an empty table."""
    assert command("ledger", "list") == 0
    assert capsys.readouterr().out == "No generations found.\n"


def test_the_list_is_filtered(command, capsys):
    """The list is filtered by state, age and flow run, and its JSON has all fields."""
    entry("a", flow_run_id="run-1")
    entry("b", State.STORED, flow_run_id="run-2")
    entry("c", State.FAILED)

    def keys(*words: str) -> set[str]:
        assert command("ledger", "list", "--json", *words) == 0
        return {item["idempotency_key"] for item in json.loads(capsys.readouterr().out)}

    assert keys() == {"a", "b", "c"}
    assert keys("--state", "uncertain", "--state", "failed") == {"a", "c"}
    assert keys("--flow-run", "run-2") == {"b"}
    assert keys("--since", "5m") == {"a", "b", "c"}
    assert keys("--since", "2999-01-01") == set()
    assert len(keys("--limit", "2")) == 2


@pytest.mark.parametrize("form", [[], ["--json"], ["--csv"]], ids=["table", "json", "csv"])
def test_a_corrupted_row_is_reported_beside_the_others(command, capsys, form):
    """A corrupted row is reported beside the others, as it may be a purchase."""
    entry("sku-1")
    entry("sku-2")
    asyncio.run(set_columns(get_ledger(os.environ["COMETAPI_LEDGER_URL"]), "sku-2", polls="many"))
    assert command("ledger", "list", *form) == 1
    told = capsys.readouterr()
    assert "sku-1" in told.out
    assert "sku-2" not in told.out
    assert "the row of key 'sku-2' is corrupted: polls" in told.err


def test_csv_has_one_row_each(command, capsys):
    """The CSV has one row for each entry."""
    entry("with,comma", note="line\nbreak")
    assert command("ledger", "list", "--csv") == 0
    (row,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert row["idempotency_key"] == "with,comma"
    assert row["state"] == "uncertain"
    assert row["note"] == "line\nbreak"
    assert row["billed_seconds"] == "5.0"


def test_one_generation_is_shown_whole(command, capsys):
    """Every fact of an entry has a line, with the request as sent, and no text acts as markup."""
    holder = "host:7:space:1|run-9"
    entry("sku-17", State.SUBMITTED, task_id="id-1", owner=holder, charges=2, cost=0.32)
    assert command("ledger", "show", "sku-17") == 0
    told = capsys.readouterr().out
    for text in (
        "charged so far",
        "10 s of video, 0.64 as estimated",
        "sku-17",
        "submitted",
        "id-1",
        "[red]cat[/].jpg",
        "run-9 on host, process 7",
    ):
        assert text in told
    assert command("ledger", "show", "sku-17", "--json") == 0
    assert json.loads(capsys.readouterr().out)["task_id"] == "id-1"


def test_an_unknown_key_is_reported(command, capsys):
    """An unknown key exits with 1, and prints the command that lists the keys."""
    for words in (["show"], ["write-off"], ["resubmit"], ["abandon"]):
        assert command("ledger", *words, "nothing") == 1
    assert command("ledger", "adopt", "nothing", "id") == 1
    told = capsys.readouterr().err
    assert told.count("The ledger has no idempotency key nothing.") == 5
    assert "prefect-cometapi ledger list" in told


@pytest.mark.parametrize(
    ("before", "decision", "after"),
    [
        (State.UNCERTAIN, "write-off", State.WRITTEN_OFF),
        (State.UNCERTAIN, "resubmit", State.RESUBMIT_ALLOWED),
        (State.WRITTEN_OFF, "resubmit", State.RESUBMIT_ALLOWED),
        (State.FAILED, "resubmit", State.RESUBMIT_ALLOWED),
        (State.SUBMITTED, "abandon", State.ABANDONED),
    ],
)
def test_a_decision_is_recorded(command, capsys, before, decision, after):
    """A decision is stored in the ledger with its origin, and confirmed with the next step."""
    sent = datetime.now(UTC) - timedelta(hours=1)
    task_id = "id-1" if before is State.SUBMITTED else None
    entry("sku-17", before, task_id=task_id, claimed_at=sent)
    assert command("ledger", decision, "sku-17") == 0
    assert "Next:" in capsys.readouterr().out
    assert known("sku-17").state is after
    assert "by hand" in known("sku-17").note


@pytest.mark.parametrize("decision", ["write-off", "resubmit", "abandon"])
def test_what_is_stored_is_not_decided_about(command, capsys, decision):
    """A stored video is never released for another purchase."""
    entry("sku-17", State.STORED, task_id="id-1")
    assert command("ledger", decision, "sku-17") == 1
    assert "sku-17 is stored and cannot become" in capsys.readouterr().err
    assert known("sku-17").state is State.STORED


def test_an_invalid_ledger_url_is_reported(command, capsys, monkeypatch):
    """A setting that is not a valid ledger URL is an error without a stack trace."""
    monkeypatch.setenv("COMETAPI_LEDGER_URL", "mysql://localhost/ledger")
    assert command("ledger", "list") == 1
    assert capsys.readouterr().err.startswith("LedgerUnavailable: ")


@pytest.mark.server
@pytest.mark.heavy
def test_what_was_not_waited_for_is_collected(shell, picture, command, capsys):
    """`--no-wait` ends after the submission, and `collect` stores the video."""
    assert command("image-to-video", picture, "--idempotency-key", "sku-17", "--no-wait") == 0
    told = capsys.readouterr().out
    assert "is pending (idempotency key sku-17)." in told
    assert "prefect-cometapi collect" in told
    assert known("sku-17").state is State.SUBMITTED
    assert command("collect") == 0
    (file,) = Path("videos").glob("*.mp4")
    assert f"videos/{file.name}" in capsys.readouterr().out
    assert command("collect") == 0
    assert "Nothing to collect" in capsys.readouterr().out
    assert command("collect", "--json") == 0
    assert json.loads(capsys.readouterr().out)["stored"] == 0
    assert len(shell.sandbox.accepted) == 1


@pytest.mark.server
@pytest.mark.heavy
def test_a_found_id_is_attached_by_hand(shell, picture, command, capsys):
    """An uncertain submission becomes a video by list, adopt, and another run."""
    shell.sandbox.add_fault("create:reset-after")
    assert command("image-to-video", picture, "--idempotency-key", "sku-17") == 1
    (job,) = shell.sandbox.accepted
    assert (
        command("image-to-video", picture, "--idempotency-key", "sku-17", "--task-id", job.task_id)
        == 0
    )
    assert len(list(Path("videos").glob("*.mp4"))) == 1
    assert known("sku-17").state is State.STORED
    assert len(shell.sandbox.accepted) == 1


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("90m", NOW - timedelta(minutes=90)),
        ("12h", NOW - timedelta(hours=12)),
        (" 3 d ", NOW - timedelta(days=3)),
        ("2w", NOW - timedelta(weeks=2)),
        ("2026-11-20", datetime(2026, 11, 20, tzinfo=UTC)),
        ("2026-11-20T10:00:00+02:00", datetime(2026, 11, 20, 8, tzinfo=UTC)),
    ],
)
def test_a_time_is_read_as_people_write_it(text, time):
    """A time is a span back from now, or a date."""
    assert since_time(text, NOW) == time


@given(st.text(max_size=20))
def test_any_other_time_is_refused_in_words(text):
    """Any other text is either read as a time or clearly refused."""
    told = ""
    try:
        time = since_time(text, NOW)
    except ValueError as error:
        told = str(error)
    else:
        assert time.tzinfo
    assert told == "" or "write 90m" in told


SIGNS = [*"=+-@\t\n\r", *"\uff1d\uff0b\uff0d\uff20\ufe66\ufe62\ufe63\ufe6b\u2212"]
"""ASCII signs that begin a formula, their full-width and small forms, and the minus sign."""


BLANKS = ["", " ", "\n", "\r\n", "\t ", "\u00a0", "\u3000", "\u200b", "\x00"]


@pytest.mark.parametrize("begins", SIGNS)
def test_no_cell_is_a_formula(begins):
    """No CSV cell starts with a sign that a spreadsheet reads as a formula."""
    cells = [cell_of(f'{before}{begins}HYPERLINK("http://e")') for before in BLANKS]
    assert [cell for cell in cells if not cell.startswith("'")] == []


@given(st.text())
def test_only_a_cell_that_may_be_a_formula_gets_a_quote(text):
    """A cell that begins with a letter or digit gets no quote."""
    assert cell_of(f"a{text}")[:1] == "a"
    assert cell_of(f" 1{text}")[:2] == " 1"


def cell_of(key: str) -> str:
    """Return the first cell of the CSV row of an entry with this key."""
    moment = datetime.now(UTC)
    known = {"claim": "c", "created_at": moment, "changed_at": moment, "base_url": "https://h"}
    text = as_csv([Entry.model_validate({**known, "idempotency_key": key, "state": State.FAILED})])
    return next(csv.DictReader(io.StringIO(text, newline="")))["idempotency_key"]


def test_a_key_is_found_in_either_unicode_form(command, capsys):
    """A key that the terminal writes as letter and accent finds its entry; an exact one wins."""
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    entry(composed)
    assert command("ledger", "show", decomposed, "--json") == 0
    assert json.loads(capsys.readouterr().out)["idempotency_key"] == composed
    assert command("ledger", "write-off", decomposed) == 0
    assert command("ledger", "abandon", decomposed) == 1
    assert "is written_off" in capsys.readouterr().err
