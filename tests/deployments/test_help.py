# SPDX-License-Identifier: Apache-2.0
"""The help of each command has examples that work, and what a user has to choose from."""

import os
import re
import shlex
import subprocess
from collections.abc import Iterator

import pytest
from cyclopts import App

from prefect_cometapi.deployments import cli, console
from prefect_cometapi.deployments.help_text import EXAMPLES, shown_default
from prefect_cometapi.runway.models.model_limits import known_models
from prefect_cometapi.runway.models.requests import ROUTES

pytestmark = pytest.mark.filterwarnings("ignore:Cyclopts application invoked without tokens")

FLAGS = {"--help", "-h", "--version", "-V", "--install-completion"}


def commands_of(app: App, words: tuple[str, ...] = ()) -> Iterator[str]:
    """Yield the words of each command that does something itself."""
    for name in app:
        if name not in FLAGS:
            inner = [*commands_of(app[name], (*words, name))]
            yield from inner or [" ".join((*words, name))]


COMMANDS = sorted(commands_of(cli.app))


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    """Use a terminal in which no line of the help is broken."""
    monkeypatch.setattr(console.console, "width", 1000)


def test_each_command_has_examples():
    """No command is added without one."""
    assert sorted(EXAMPLES) == COMMANDS


@pytest.mark.parametrize("words", COMMANDS)
def test_the_examples_are_commands(command, capsys, words):
    """Each example fits into a line, is of its command, and is accepted as it is written."""
    assert command(*words.split(), "--help") == 0
    shown = capsys.readouterr().out
    for example in EXAMPLES[words]:
        assert example in shown
        assert len(example) < 79
        assert example.startswith(f"prefect-cometapi {words}")
        cli.app.parse_args(shlex.split(example)[1:], exit_on_error=False)


@pytest.mark.parametrize("words", COMMANDS)
def test_no_default_is_python(command, capsys, words):
    """A default is written as a user would write the option, or is left out."""
    assert command(*words.split(), "--help") == 0
    defaults = re.findall(r"\[default: (.*?)\]", capsys.readouterr().out)
    assert [it for it in defaults if re.search(r"[()'\"]|True|False|None", it)] == []


def test_a_default_that_says_nothing_is_left_out():
    """A switch that is off and an empty list are no words."""
    assert [shown_default(it) for it in (None, False, True, ())] == [None] * 4
    assert [shown_default(it) for it in (0, "videos", ("bare", "flat"))] == [
        "0",
        "videos",
        "bare, flat",
    ]


@pytest.mark.parametrize("route", ROUTES)
def test_the_models_and_their_limits_are_in_the_help(command, capsys, route):
    """The help names each known model, and each of its ratios and durations."""
    assert command(route.replace("_", "-"), "--help") == 0
    shown = capsys.readouterr().out
    for model, limits in known_models(route).items():
        assert model in shown
        assert [ratio for ratio in limits.ratios if ratio not in shown] == []


@pytest.mark.parametrize("flag", ["--version", "-V"])
def test_the_version_is_printed(command, capsys, flag):
    """Both flags print the version alone."""
    from importlib.metadata import version

    assert command(flag) == 0
    assert capsys.readouterr().out.strip() == version("prefect-cometapi")


def test_the_completion_of_a_shell_completes(script, tmp_path):
    """Bash completes commands after the installation, which says what it wrote."""
    env = {**os.environ, "HOME": str(tmp_path)}
    done = subprocess.run(
        [script, "--install-completion", "--shell", "bash"],
        env=env,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    (file,) = tmp_path.glob(".local/share/bash-completion/completions/*")
    assert str(file) in done.stdout
    asked = (
        f"source {shlex.quote(str(file))}; COMP_WORDS=(prefect-cometapi ledger re); COMP_CWORD=2; "
        "_prefect_cometapi; echo ${COMPREPLY[@]}"
    )
    words = subprocess.run(
        ["bash", "-c", asked], env=env, capture_output=True, text=True, check=True, timeout=60
    )
    assert {"report", "reconcile", "resubmit", "rebuild"} <= set(words.stdout.split())
