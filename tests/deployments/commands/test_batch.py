# SPDX-License-Identifier: Apache-2.0
"""Command ``prefect-cometapi batch``: its purchases, its output, and its exit status."""

import json
import re
from functools import partial
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from prefect_cometapi.sandbox import Fault

pytestmark = [
    pytest.mark.server,
    pytest.mark.filterwarnings("ignore:Cyclopts application invoked without tokens"),
]

heavy = partial(pytest.param, marks=pytest.mark.heavy)

CATALOGUE = """id,promptImage,promptText,duration,x_shelf
sku-1,https://example.com/cat.jpg,slow zoom,5,A
sku-2,https://example.com/dog.jpg,"pan, left",10,B
"""


@pytest.fixture
def catalogue(tmp_path: Path) -> Path:
    """Write a manifest of two rows to the working directory."""
    path = tmp_path / "catalogue.csv"
    path.write_text(CATALOGUE, encoding="utf-8")
    return path


@pytest.mark.heavy
def test_a_dry_run_says_what_it_comes_to_and_buys_nothing(shell, catalogue):
    """A dry run prints videos, seconds, money and stored items, and buys nothing."""
    prices = {"COMETAPI_PRICES": '{"gen3a_turbo": "0.05/s"}'}
    before = shell("batch", catalogue.name, "--dry-run", **prices)
    assert before.returncode == 0, before.stderr
    assert not shell.sandbox.requests
    told = dict(re.split(r"  +", line.strip(), maxsplit=1) for line in before.stdout.splitlines())
    assert (told["videos"], told["stored already"]) == ("2", "0")
    assert told["estimated for all"] == "15 s of video, 0.75 as estimated"
    assert told["bought by this batch so far"] == "0 s of video, 0.00 as estimated"
    assert shell("batch", catalogue.name).returncode == 0
    after = shell("batch", catalogue.name, "--dry-run", **prices)
    told = dict(re.split(r"  +", line.strip(), maxsplit=1) for line in after.stdout.splitlines())
    assert told["stored already"] == "2"
    assert told["bought by this batch so far"] == "15 s of video, 0.75 as estimated"


def test_a_dry_run_is_json_for_a_program(sandbox, command, capsys, catalogue):
    """The expected results and the estimate are JSON, and nothing else is printed."""
    assert command("batch", catalogue.name, "--dry-run", "--json") == 0
    expected = json.loads(capsys.readouterr().out)
    assert [row["id"] for row in expected["results"]] == ["sku-1", "sku-2"]
    assert expected["spending"]["seconds"] == 15
    assert sandbox.requests == []


@pytest.mark.parametrize(
    "prices", [None, '{"gen4_turbo": "0.05/s"}'], ids=["no price", "another model's price"]
)
def test_a_dry_run_refuses_the_limit_that_the_batch_would_refuse(
    sandbox, command, capsys, catalogue, monkeypatch, prices
):
    """A dry run with a limit in money needs the price of each model, as the batch does."""
    if prices:
        monkeypatch.setenv("COMETAPI_PRICES", prices)
    assert command("batch", catalogue.name, "--max-spend", "1", "--dry-run") == 1
    assert "COMETAPI_PRICES" in capsys.readouterr().err


def test_a_dry_run_shows_what_a_limit_leaves(sandbox, command, capsys, catalogue, monkeypatch):
    """A dry run with limits says how much is left under each."""
    monkeypatch.setenv("COMETAPI_PRICES", '{"gen3a_turbo": "0.05/s"}')
    limits = ("--max-spend", "0.5", "--max-seconds", "20")
    assert command("batch", catalogue.name, *limits, "--dry-run") == 0
    output = " ".join(capsys.readouterr().out.split())
    assert "0 of 20 s of video (20 left), 0.00 of 0.50 (0.50 left)" in output


def test_the_bar_of_a_batch_ends_with_a_mark(
    prefect_server, sandbox, command, capsys, catalogue, monkeypatch
):
    """A tick, also if there was nothing to buy; a cross if a row has no video."""
    from prefect_cometapi.deployments.commands import batch

    def last_of(*words: str) -> str:
        shown = StringIO()
        terminal = Console(file=shown, force_terminal=True, color_system=None, width=100)
        monkeypatch.setattr(batch, "console", terminal)
        command("batch", *words)
        return re.findall(r"[✓✗] batch [^\r\n]*", shown.getvalue())[-1]

    for _ in range(2):
        assert re.search("✓ batch .* 2 stored", last_of(catalogue.name))
    catalogue.write_text(CATALOGUE.replace("dog.jpg", "dog.jpg#new").replace(",10,", ",7,"))
    assert re.search("✗ batch .* 1 stored, 1 invalid", last_of(catalogue.name))


@pytest.mark.heavy
def test_a_dry_run_names_every_bad_row(shell, catalogue):
    """A dry run names every bad row with its line and field, and exits with 1."""
    bad = CATALOGUE.replace(",5,A", ",7,A").replace(
        "https://example.com/dog", "http://example.com/dog"
    )
    catalogue.write_text(bad, encoding="utf-8")
    done = shell("batch", catalogue.name, "--dry-run")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    told = done.stdout + done.stderr
    assert "line 2" in told
    assert "duration" in told
    assert "line 3" in told
    assert "promptImage" in told


@pytest.mark.heavy
def test_a_dry_run_reads_the_pictures_and_sends_nothing(shell, catalogue):
    """A picture that is missing on this machine is named before anything is bought."""
    catalogue.write_text(CATALOGUE.replace("https://example.com/dog", "dog"), encoding="utf-8")
    done = shell("batch", catalogue.name, "--dry-run")
    assert done.returncode == 1
    assert "SourceUnavailable: promptImage: dog.jpg cannot be read on " in done.stdout
    assert shell.sandbox.requests == []


def test_a_catalogue_becomes_videos_results_and_a_gallery(shell, catalogue):
    """The command prints the location of its files, and a second run buys nothing."""
    for _ in range(2):
        done = shell("batch", catalogue.name, "--max-in-flight", "2")
        assert done.returncode == 0, done.stderr
        assert "2 stored in" in done.stdout
        places = {
            name: Path(line.split(":", 1)[1].strip())
            for line in done.stdout.splitlines()
            for name in ("results", "gallery")
            if line.strip().startswith(name)
        }
        assert places["gallery"].read_text(encoding="utf-8").startswith("<!")
        rows = [json.loads(line) for line in places["results"].read_text().splitlines()]
        assert [row["id"] for row in rows] == ["sku-1", "sku-2"]
    assert len(shell.sandbox.accepted) == 2


@pytest.mark.heavy
def test_what_is_missing_is_listed_with_the_command_that_goes_on(shell, catalogue):
    """An incomplete batch exits with 1, lists its items, and the same command buys the rest."""
    shell.sandbox.add_fault(Fault.parse("create:invalid-request"))
    done = shell("batch", catalogue.name, "--max-in-flight", "1")
    assert done.returncode == 1
    assert "1 stored, 1 failed" in done.stdout
    assert "sku-1 failed InvalidRequest" in done.stdout
    assert "prefect-cometapi batch catalogue.csv --max-in-flight 1" in done.stdout
    assert "Traceback" not in done.stderr
    assert shell("batch", catalogue.name).returncode == 0
    assert len(shell.sandbox.accepted) == 2


@pytest.mark.heavy
def test_the_money_figures_are_the_same_wherever_they_are_shown(shell, catalogue, tmp_path):
    """Terminal, JSON, gallery and dry run use the same names and values in every run."""
    prices = {"COMETAPI_PRICES": '{"gen3a_turbo": "0.05/s"}'}
    for of_run in ("15 s of video, 0.75", "0 s of video, 0.00"):
        done = shell("batch", catalogue.name, **prices).stdout
        (page,) = (tmp_path / "videos").glob("*.gallery.html")
        for line in (
            f"bought by this run: {of_run} as estimated",
            "bought by this batch so far: 15 s of video, 0.75 as estimated",
            "estimated for all: 15 s of video, 0.75 as estimated",
        ):
            assert line in done
            assert line in page.read_text(encoding="utf-8")
    spending = json.loads(shell("batch", catalogue.name, "--json", **prices).stdout)["spending"]
    assert (spending["run_spent"], spending["spent"], spending["estimate"]) == (0.0, 0.75, 0.75)


@pytest.mark.heavy
def test_a_batch_that_fails_says_so_in_words(shell, catalogue):
    """A failed batch prints its error and then each item."""
    shell.sandbox.add_fault(Fault.parse("create:quota:times=9"))
    done = shell("batch", catalogue.name, "--max-in-flight", "1")
    assert done.returncode == 1
    assert "BatchFailed: 1 failed, 1 not bought" in done.stderr
    assert "Traceback" not in done.stderr
    assert "sku-2 not bought" in done.stdout


@pytest.mark.heavy
def test_an_uncertain_item_leads_to_the_ledger(shell, catalogue):
    """An uncertain item is printed with the ledger commands that decide about it."""
    shell.sandbox.add_fault(Fault.parse("create:reset-after"))
    done = shell("batch", catalogue.name, "--max-in-flight", "1")
    assert done.returncode == 1
    assert "prefect-cometapi ledger list --state uncertain" in done.stdout


@pytest.mark.heavy
def test_json_is_one_document(shell, catalogue):
    """With --json, stdout is one JSON document, and progress goes to stderr."""
    done = shell("batch", catalogue.name, "--json")
    result = json.loads(done.stdout)
    assert (result["succeeded"], result["failed"]) == (2, 0)
    assert [item["outcome"] for item in result["results"]] == ["stored", "stored"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["missing.csv"], "missing.csv"),
        heavy(["catalogue.csv", "--max-spend", "1"], "COMETAPI_PRICES"),
        heavy(["catalogue.csv", "--output", "results.csv"], "results.csv"),
    ],
)
def test_an_impossible_batch_is_refused_before_anything_is_bought(shell, catalogue, words, told):
    """An impossible batch is refused before anything is bought, without a stack trace."""
    done = shell("batch", *words)
    assert done.returncode == 1
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert not shell.sandbox.requests


@pytest.mark.heavy
def test_every_end_of_a_batch_is_printed(shell, command, catalogue, capsys, monkeypatch):
    """The end of a batch is printed: refused, out of budget, repeated, or complete."""
    monkeypatch.setenv("COMETAPI_PRICES", '{"gen3a_turbo": 0.5}')
    shell.sandbox.add_fault(Fault.parse("create:invalid-request"))
    words = ("batch", catalogue.name, "--max-in-flight", "1")
    assert command(*words, "--max-failures", "0") == 1
    told = capsys.readouterr()
    assert "BatchFailed" in told.err
    assert "sku-2 not bought" in told.out
    assert command(*words, "--max-spend", "0.6") == 1
    told = capsys.readouterr().out
    assert "bought by this run: 5 s of video, 0.50 as estimated\n" in told
    assert "so far: 5 s of video, 0.50 of 0.60 (0.10 left) as estimated\n" in told
    assert "Next" not in told  # The limit is the same the next time.
    assert command(*words) == 0
    assert "2 stored" in capsys.readouterr().out
    assert command(*words, "--json") == 0
    assert json.loads(capsys.readouterr().out)["succeeded"] == 2
    assert command(*words, "--dry-run") == 0
    assert len(shell.sandbox.accepted) == 2


def test_only_the_first_of_many_that_failed_are_listed(shell, command, tmp_path, capsys):
    """Only the first failures are listed, and the results have all of them."""
    rows = "".join(f"sku-{n},https://example.com/a.jpg,{11 + n}\n" for n in range(15))
    (tmp_path / "bad.csv").write_text(f"id,promptImage,duration\n{rows}", encoding="utf-8")
    assert command("batch", "bad.csv", "--dry-run") == 1
    assert "and 5 more" in capsys.readouterr().out


def test_an_interrupted_batch_says_how_to_go_on(shell, command, catalogue, capsys, monkeypatch):
    """An interrupted batch prints the command that continues it, as it was typed."""

    def interrupted(*_args, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr("prefect_cometapi.flows.generate_batch", interrupted, raising=False)
    assert command("batch", catalogue.name, "--strict") == 130
    assert f"prefect-cometapi batch {catalogue.name} --strict" in capsys.readouterr().err


def test_an_interrupted_batch_in_shards_says_that_they_go_on(
    shell, command, catalogue, capsys, monkeypatch
):
    """An interrupted batch in shards does not pretend that nothing more is bought."""

    def interrupted(*_args, **options):
        assert (options["shards"], options["shard_deployment"]) == (4, "big")
        raise KeyboardInterrupt

    monkeypatch.setattr("prefect_cometapi.flows.generate_batch", interrupted, raising=False)
    words = ("batch", catalogue.name, "--shards", "4", "--shard-deployment", "big")
    assert command(*words) == 130
    assert "The shards continue on their workers, and buy the rest." in capsys.readouterr().err


@pytest.mark.heavy
def test_a_table_of_another_program_is_read_with_its_options(shell, tmp_path):
    """`--format` and `--encoding` read a file that says neither."""
    text = "id;promptImage;promptText\na;https://example.com/cat.jpg;Café\n"
    (tmp_path / "export.dat").write_bytes(text.encode("windows-1252"))
    done = shell("batch", "export.dat", "--dry-run")
    assert done.returncode == 1
    assert "export.dat is not in UTF-8 (line 2)" in done.stderr
    assert "--encoding windows-1252" in done.stderr
    options = ("--format", "csv", "--encoding", "windows-1252")
    done = shell("batch", "export.dat", "--dry-run", *options)
    assert (done.returncode, done.stderr) == (0, "")
    rows = "".join(f'{{"id": {n}, "promptImage": "cat.jpg", "color": 1}}\n' for n in range(50))
    (tmp_path / "rows.jsonl").write_text(rows, encoding="utf-8")
    done = shell("batch", "rows.jsonl", "--dry-run")
    assert done.stdout.count("color") == 1
    assert "line 1 (0), line 2 (1), line 3 (2) and 47 more invalid" in done.stdout
    assert shell.sandbox.requests == []
