# SPDX-License-Identifier: Apache-2.0
"""The documentation is true: its examples are accepted and its links work."""

import re
import shlex
from pathlib import Path

import pytest

from prefect_cometapi.runway import CometAPISettings, State
from prefect_cometapi.runway.batch.manifest import read_rows
from prefect_cometapi.runway.batch.models import Outcome
from prefect_cometapi.runway.batch.rows import batch_keys, check_rows
from prefect_cometapi.runway.models.media_types import MAX_DATA_BYTES, MAX_FETCHED_BYTES
from prefect_cometapi.sandbox.clips.content_credentials import new_identity
from prefect_cometapi.sandbox.faults.plan import KINDS

from .pictures import picture

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PACKAGES = ("package", "runway", "blocks", "flows", "deployments", "sandbox")
BATCHES = (ROOT / "docs" / "batches.md").read_text(encoding="utf-8")


def test_the_manifest_of_the_page_is_taken(tmp_path):
    """The example manifest is accepted, and its two rows are requests of both kinds."""
    (shown,) = re.findall(r"```json\n(.*?)```", BATCHES, re.DOTALL)
    (tmp_path / "shown.jsonl").write_text(shown, encoding="utf-8")
    items, bad = check_rows(read_rows(str(tmp_path / "shown.jsonl")), batch_keys("shown"))
    assert bad == []
    assert [item.request.route for item in items] == ["image_to_video", "video_to_video"]


def test_every_outcome_that_stays_is_explained():
    """Every final outcome in the output has a row in the table."""
    for outcome in Outcome:
        assert (f"| `{outcome}` |" in BATCHES) == outcome.is_final


def test_every_setting_that_is_named_exists():
    """Every setting on the page exists, and the limit of the full history is its default."""
    named = set(re.findall(r"COMETAPI_([A-Z_]+)", BATCHES))
    assert named <= {name.upper() for name in CometAPISettings.model_fields}
    limit = CometAPISettings.model_fields["max_items_with_step_tasks"].default
    assert f"Up to {limit} items" in BATCHES


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_of_a_page_exists(page):
    """The command line accepts every command of the page, and every script named there exists."""
    from prefect_cometapi.deployments.cli import app

    text = page.read_text(encoding="utf-8")
    commands = "".join(re.findall(r"```(?:sh|bash)\n(.*?)```", text, re.DOTALL))
    for line in commands.splitlines():
        program, *arguments = shlex.split(line)
        if program == "prefect-cometapi":
            command, _bound, _ignored = app.parse_args(arguments, exit_on_error=False)
            assert callable(command)
        elif program == "python":
            shown = f"Save this as `{arguments[0]}`:" in text
            assert shown or (ROOT / arguments[0]).is_file()
        else:
            assert line.startswith(
                (
                    "pip install ",
                    ".venv/bin/pip install ",
                    "prefect worker start --pool ",
                    "export COMETAPI_",
                    "prefect config set PREFECT_API_URL=",
                    "prefect server start",
                    "prefect deployment run ",
                    "prefect deployment schedule ",
                    "prefect work-pool create ",
                    "docker build -t ",
                    "docker push ",
                    "kubectl create secret generic ",
                    "helm ",
                    "python3 -m venv",
                )
            )


def test_every_state_is_explained():
    """Every state of the ledger has a row in the table."""
    page = (ROOT / "docs" / "never-twice.md").read_text(encoding="utf-8")
    first_cells = " ".join(re.findall(r"^\| (.*?) \|", page, re.MULTILINE))
    assert set(re.findall(r"`(\w+)`", first_cells)) == set(State)


@pytest.mark.server
@pytest.mark.heavy
def test_the_job_of_the_page_runs_as_written(prefect_server, sandbox, capsys):
    """The example job of the page makes a video when it is copied."""
    page = (ROOT / "docs" / "production.md").read_text(encoding="utf-8")
    *_served, example = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(compile(example, "production.md", "exec"), {})
    assert Path(capsys.readouterr().out.split()[-1]).exists()


@pytest.mark.server
@pytest.mark.heavy
def test_the_example_of_the_sources_runs_as_written(prefect_server, sandbox, capsys, tmp_path):
    """The example animates a picture of the working directory and restyles the video."""
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures/cat.jpg").write_bytes(picture("JPEG"))
    page = (ROOT / "docs" / "sources.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(compile(example, "sources.md", "exec"), {})
    assert Path(capsys.readouterr().out.split()[-1]).exists()
    assert [job.route for job in sandbox.accepted] == ["image_to_video", "video_to_video"]


def test_the_sizes_of_sources_are_on_their_page():
    """The limits in the table are those that are checked."""
    page = (ROOT / "docs" / "sources.md").read_text(encoding="utf-8")
    for kind in ("image", "video"):
        limits = f"{MAX_DATA_BYTES[kind]:,} bytes | {MAX_FETCHED_BYTES[kind]:,} bytes"
        assert f"| {kind} | {limits} |" in page


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page):
    """Every picture and page that is linked exists."""
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert target.startswith("https://") or (page.parent / target).exists(), target


def test_every_promise_has_its_test():
    """Every test that the page names exists."""
    page = (ROOT / "docs" / "promises.md").read_text(encoding="utf-8")
    named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", page)
    assert len(named) == len(re.findall(r"^\| [A-Z]", page, re.MULTILINE))
    for file, name in named:
        assert f"def {name}(" in (ROOT / file).read_text(encoding="utf-8"), name


def test_every_fault_of_the_sandbox_is_on_its_page():
    """The table has each kind with its routes and meaning, and no other."""
    page = (ROOT / "docs" / "sandbox.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([\w-]+)` \| (.*?) \| (.*) \|$", page, re.MULTILINE)
    known = [(kind, ", ".join(fault.routes), fault.meaning) for kind, fault in KINDS.items()]
    assert rows == known


def test_the_example_of_the_sandbox_runs_as_written():
    """The copied example starts a sandbox; its assertion fails because no request was sent."""
    page = (ROOT / "docs" / "sandbox.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    with pytest.raises(AssertionError):
        exec(compile(example, "sandbox.md", "exec"), {})


def test_the_example_of_the_account_runs_as_written(sandbox, monkeypatch, capsys):
    """The copied example lists the tasks of the account, or says why it cannot."""
    page = (ROOT / "docs" / "account.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    code = compile(example, "account.md", "exec")
    exec(code, {})
    assert "incomplete: there is no access token" in capsys.readouterr().out
    monkeypatch.setenv("COMETAPI_ACCESS_TOKEN", "sandbox-access-token")
    exec(code, {})
    assert capsys.readouterr().out == ""


def test_the_example_of_provenance_runs_as_written(tmp_path):
    """The copied example signs a copy, and verifies it with the chain as its trust anchor."""
    identity = new_identity("Example Media GmbH")
    (tmp_path / "clip.mp4").write_bytes(picture("PNG"))
    (tmp_path / "chain.pem").write_bytes(identity.chain)
    (tmp_path / "key.pem").write_bytes(identity.key)
    page = (ROOT / "docs" / "provenance.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(compile(example, "provenance.md", "exec"), {})
    assert (tmp_path / "signed.mp4").is_file()


def test_every_module_that_the_architecture_names_is_there():
    """A reader finds each subject in the file that the page names."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = re.findall(r"`((?:runway|flows|deployments|sandbox|blocks|tests)/[\w/]+\.py)`", page)
    assert len(named) > 10
    assert [name for name in named if not (ROOT / name).is_file()] == []


OWN_WORDS = (
    r"\b(habits?|boards?|lanes?|zygote|nursery|strangers?|mend(ed|s|ing)?|so many|perhaps bought)\b"
)
"""Words that this project once used although the field has standard terms for the same things."""

TRANSLATED = (
    r"\b(goes on|went on|under way|whoever|somebody|misbehav\w*|comes to|where (not|none)|stands"
    r"|(is|are|was|were) told|tells?|(?-i:is none))\b"
)
"""Phrases that sound translated. Code may still need some of them, so only pages and the text of
commands and blocks are checked."""

WRITTEN = [
    *PAGES,
    *(ROOT / name for name in ("SECURITY.md", "CHANGELOG.md")),
    *(path for name in PACKAGES for path in sorted((ROOT / name).rglob("*.py"))),
]

SHOWN = [
    *PAGES,
    *(ROOT / name for name in ("SECURITY.md", "CHANGELOG.md")),
    *(ROOT / "deployments" / name for name in ("prefect.yaml", "compose.yaml")),
    *(ROOT / "flows" / "batch" / f"gallery.{kind}" for kind in ("py", "html", "js", "css")),
    *sorted((ROOT / "docs").rglob("*.py")),
    *(path for name in ("deployments", "blocks") for path in sorted((ROOT / name).rglob("*.py"))),
]


@pytest.mark.parametrize("path", SHOWN, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_nothing_that_a_user_reads_sounds_translated(path):
    """Pages, commands and blocks use plain verbs and name the actor."""
    text = path.read_text(encoding="utf-8")
    assert [match[0] for match in re.finditer(TRANSLATED, text, re.IGNORECASE)] == []


TESTS = [
    path
    for name in ("tests", "benchmarks")
    for path in sorted((ROOT / name).rglob("*.py"))
    if path != Path(__file__)
]
"""Files whose names of functions and variables are checked, too. This one has the list."""


@pytest.mark.parametrize(
    "path", [*WRITTEN, *TESTS], ids=lambda path: path.relative_to(ROOT).as_posix()
)
def test_no_word_is_one_of_our_own(path):
    """Code, tests and pages use the field's terms, and none of a short list of our own."""
    text = path.read_text(encoding="utf-8").replace("_", " ")
    found = re.finditer(OWN_WORDS, text, re.IGNORECASE)
    assert [match[0] for match in found] == []
