# SPDX-License-Identifier: Apache-2.0
"""Tests of the harness: reports, exit status, environment, forks and sources."""

import os
import sys
from types import SimpleNamespace

import httpx
import pytest

from prefect_cometapi.runway.errors import InvalidRequest

from . import command, processes
from .checker import Ending
from .endings import await_ending
from .markdown import cells, put_section, table, violations_section
from .sources import batch_rows, image_request, key_of, serve_file, video_request


def test_a_table_aligns_its_columns():
    """Names align left and numbers align right, and without padding the cells remain."""
    text = table(["name", "figure"], [["a", "1"], ["longer", "1,000"]])
    assert text.splitlines() == [
        "| name   | figure |",
        "| ------ | -----: |",
        "| a      |      1 |",
        "| longer |  1,000 |",
    ]
    assert "| a | 1 |" in cells(text)


def test_a_section_replaces_its_former_text(tmp_path):
    """A section of a page is written once, whatever the other sections contain."""
    page = tmp_path / "page.md"
    put_section(page, "first", "old")
    put_section(page, "second", "other")
    put_section(page, "first", "new")
    assert "old" not in page.read_text()
    assert page.read_text().index("new") < page.read_text().index("other")


def test_violations_decide_the_exit_status(tmp_path, capsys):
    """A run with violations lists them and ends with 1, one without them ends with 0."""
    report = tmp_path / "report.md"
    assert command.conclude("figures", ["lost: a"], report, lambda: "page") == 1
    assert report.read_text() == "page"
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("figures\n", "lost: a\n")
    assert command.conclude("figures", [], None, lambda: "page") == 0
    assert violations_section(["lost: a"]) == ["## Violations\n\n- lost: a"]
    assert violations_section([]) == []


def test_the_report_is_written_where_the_command_started(tmp_path, monkeypatch):
    """The path of a report does not depend on a later change of the folder."""
    monkeypatch.chdir(tmp_path)
    options = command.parser("Describe it.\n\nMore.").parse_args(["--report", "page.md"])
    assert options.report == tmp_path / "page.md"


def test_the_environment_of_a_process_lacks_the_given_prefixes(monkeypatch):
    """Variables with these prefixes reach no child process, and can be removed from this one."""
    monkeypatch.setenv("COMETAPI_KEY", "sk-of-the-machine")
    monkeypatch.setenv("PREFECT_HOME", "/of/the/machine")
    inherited = processes.inherited_environment(*processes.SETTINGS_PREFIXES)
    assert not [name for name in inherited if name.startswith(("COMETAPI_", "PREFECT_"))]
    processes.clear_environment("COMETAPI_")
    assert "COMETAPI_KEY" not in os.environ
    assert "PREFECT_HOME" in os.environ


@pytest.mark.skipif(sys.platform != "linux", reason="the processes are forked as Linux does it")
@pytest.mark.parametrize("fails", [False, True])
def test_a_fork_never_returns_into_its_parent(tmp_path, fails):
    """A fork ends with 0, or with 70 if its work raised; its output is in its log."""

    def act() -> None:
        os.write(1, b"working")
        if fails:
            raise ValueError("broken")

    log = tmp_path / "log"
    pid = os.fork()
    if not pid:
        processes.run_fork(act, log)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == (processes.INTERNAL_ERROR if fails else 0)
    assert log.read_text() == "working"


@pytest.mark.parametrize("key", ["soak-1/row-2", "a b.c", "ä"])
def test_the_key_of_a_job_is_in_its_source(key):
    """The key of each request is found in the job that was accepted for it."""
    for request in (
        image_request("http://h:1", key),
        video_request("http://h:1", key),
    ):
        assert key_of(SimpleNamespace(body=request)) == key  # pyright: ignore[reportArgumentType]
    assert [row["id"] for row in batch_rows("http://h:1", key, 2)] == ["row-0", "row-1"]


def test_one_file_is_served_under_every_path(tmp_path):
    """Every path leads to the same file, so that requests differ in nothing but the address."""
    file = tmp_path / "picture"
    file.write_bytes(b"content")
    with serve_file(file) as address:
        for name in ("a.jpg", "b/c.jpg"):
            assert httpx.get(f"{address}/{name}").content == b"content"


@pytest.mark.parametrize(
    ("error", "ending"),
    [
        (None, Ending("a")),
        (InvalidRequest("no"), Ending("a", "InvalidRequest", text="no")),
        (KeyError("id"), Ending("a", "KeyError", typed=False, text="'id'")),
        (httpx.ReadError("cut"), Ending("a", "ReadError", text="cut")),
    ],
)
async def test_the_result_of_a_call_is_recorded_with_its_type(error, ending):
    """A result, an error of the package, an expected one and an unexpected one are told apart."""

    async def call() -> None:
        if error:
            raise error

    assert await await_ending("a", call(), expected=("httpx",)) == ending
