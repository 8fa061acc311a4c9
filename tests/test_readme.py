# SPDX-License-Identifier: Apache-2.0
"""The README is true: its example runs, its commands exist, its tables match the code."""

import re
import runpy
import shlex
from pathlib import Path

import pytest

from prefect_cometapi import runway
from prefect_cometapi.runway import CometAPISettings, errors
from prefect_cometapi.runway.models.model_limits import known_models, model_table

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def section(title: str) -> str:
    return README.partition(f"## {title}\n")[2].partition("\n## ")[0]


@pytest.mark.server
def test_the_example_runs_as_written(prefect_server, sandbox, capsys):
    """The example of ten lines makes a video when it is copied."""
    (example,) = blocks("python")
    exec(compile(example, "README.md", "exec"), {})
    uri, duration, polls = capsys.readouterr().out.split()[-3:]
    assert Path(uri).exists()
    assert float(duration) == pytest.approx(5.0, abs=0.1)
    assert int(polls) >= 1


def test_two_commands_set_it_up():
    """One command sets up the demo and one sets up the tests, each from nothing."""
    demo, tests = blocks("sh")[:2]
    assert demo.count("\n") == tests.count("\n") == 1
    assert demo.endswith("prefect-cometapi demo\n")
    assert tests.endswith(' && .venv/bin/pytest -n auto --dist worksteal -m "not heavy"\n')


def recipe(name: str) -> str:
    """Return the first command of a recipe of the justfile."""
    text = (ROOT / "justfile").read_text(encoding="utf-8")
    (found,) = re.findall(rf"^{name}(?: .*)?:.*\n    (.*)", text, re.MULTILINE)
    return found.removesuffix(" {{ options }}")


def test_the_check_runs_the_command_of_the_readme():
    """`.ci/run` reads its first test command from this page, and `just test` is the same."""
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert 'bash -euo pipefail -c "$(readme_command 1)"' in script
    assert "pytest" not in script.replace("PYTEST_ADDOPTS", "")
    assert blocks("sh")[1].rstrip().rpartition(" && ")[2] == recipe("test")


def test_each_test_is_in_the_command_of_the_readme_or_in_the_heavy_one():
    """The two commands select all tests between them."""
    assert '-m "not heavy"' in recipe("test")
    assert '-m "heavy or hypothesis"' in recipe("test-heavy")


def test_every_command_exists():
    """The command line accepts every command of the README, with these arguments."""
    from prefect_cometapi.deployments.cli import app

    for line in [*blocks("sh")[2].splitlines(), *blocks("sh")[4].splitlines()]:
        program, *arguments = shlex.split(line)
        assert program == "prefect-cometapi"
        command, _bound, _ignored = app.parse_args(arguments, exit_on_error=False)
        assert callable(command)


def test_the_deployment_commands_are_those_of_the_page():
    """README and docs/production.md show the same commands, which a test of the wheel runs."""
    page = (ROOT / "docs" / "production.md").read_text(encoding="utf-8")
    (install, *rest) = re.findall(r"```sh\n(.*?)```", page, re.DOTALL)[0].splitlines()
    assert install == "pip install prefect-cometapi"
    assert rest == blocks("sh")[3].splitlines()


def test_every_setting_stands_in_the_table_with_its_default():
    """The table lists every setting and no other, with its true default."""
    rows = dict(re.findall(r"\| `COMETAPI_(\w+)` \| (?:`(.*?)`)? ?\|", section("Settings")))
    fields = CometAPISettings.model_fields
    assert set(rows) == {name.upper() for name in fields}
    for name, field in fields.items():
        default = f"{field.default:g}" if isinstance(field.default, float) else field.default
        unset = default is None or default == frozenset()
        assert rows[name.upper()] == ("" if unset else str(default))


def test_the_table_of_models_is_the_one_that_is_checked():
    """The README shows the limits, sources and dates that a request is checked against."""
    printed = runpy.run_path(str(ROOT / "docs" / "models.py"))["rows"]()
    assert "\n".join(printed) in section("Models")


def test_the_example_prices_are_those_of_the_table():
    """Each example of a price is the known one, with its seller and its date."""
    (row,) = [line for line in README.splitlines() if line.startswith("| `COMETAPI_PRICES`")]
    examples = re.findall(r'`\{"([\w.]+)": "?([\d./s]+)"?\}` \((\w+), ([\d-]+)\)', row)
    assert len(examples) == 2
    for model, price, seller, date in examples:
        known = known_models()[model].price
        assert known is not None
        source = model_table().sources[known.source]
        assert (str(known.price()), source.seller, source.date) == (price, seller, date)


def test_every_error_stands_in_the_table():
    """Each error that a user can meet has a row in the table."""
    named = set(re.findall(r"`(\w+)`", section("Errors")))
    kinds = {name for name in runway.__all__ if isinstance(getattr(runway, name), type)}
    met = {
        name
        for name in kinds
        if issubclass(getattr(runway, name), errors.CometAPIError)
        and not getattr(runway, name).__subclasses__()
    }
    assert met - named <= {"StagedFileMissing"}
    assert {name for name in named if name[0].isupper() and name != "TASK_ID"} <= kinds
