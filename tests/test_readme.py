# SPDX-License-Identifier: Apache-2.0
"""The README is true: its example runs, its commands exist, its figures match the code."""

import re
import runpy
import shlex
from pathlib import Path

import pytest
import yaml

from prefect_cometapi.runway.models.model_limits import known_models, model_table

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def section(title: str) -> str:
    return README.partition(f"## {title}\n")[2].partition("\n## ")[0]


@pytest.mark.server
def test_the_example_runs_as_written(prefect_server, sandbox, capsys):
    """The example of a flow makes a video when it is copied."""
    (example,) = blocks("python")
    exec(compile(example, "README.md", "exec"), {"__name__": "__main__"})
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

    lines = [line for block in blocks("bash") for line in block.splitlines()]
    ours = [line for line in lines if line.startswith("prefect-cometapi ")]
    others = [line.partition(" ")[0] for line in lines if line not in ours]
    assert (len(ours), others) == (9, ["pip", "prefect"])
    for line in ours:
        _program, *arguments = shlex.split(line)
        command, _bound, _ignored = app.parse_args(arguments, exit_on_error=False)
        assert callable(command)


def test_the_deployment_commands_are_those_of_the_page():
    """README and docs/production.md show the same commands, which a test of the wheel runs."""
    page = (ROOT / "docs" / "production.md").read_text(encoding="utf-8")
    (install, *rest) = re.findall(r"```sh\n(.*?)```", page, re.DOTALL)[0].splitlines()
    assert [f"{install}\n", "\n".join([*rest, ""])] == [blocks("bash")[0], blocks("bash")[2]]


def test_the_table_of_models_is_the_one_that_is_checked():
    """The README shows the limits, sources and dates that a request is checked against."""
    printed = runpy.run_path(str(ROOT / "docs" / "models.py"))["rows"]()
    assert "\n".join(printed) in section("Models")


def test_the_prices_of_a_clip_are_those_of_the_table():
    """The price of five seconds follows from the known price, with its seller and its date."""
    told = re.findall(
        r"([\d.]+) USD\s+with `([\w.]+)`[^(]*\((\w+),\s+([\d-]+)\)", section("Get a key")
    )
    assert len(told) == 2
    for amount, model, seller, date in told:
        known = known_models()[model].price
        assert known is not None
        source = model_table().sources[known.source]
        price = known.price()
        cost = price.amount * (5 if price.per_second else 1)
        assert (float(amount), seller, date) == (pytest.approx(cost), source.seller, source.date)


def test_only_the_collector_has_an_active_schedule():
    """The README names the one schedule that is active after a deployment."""
    file = ROOT / "deployments" / "prefect.yaml"
    deployments = yaml.safe_load(file.read_text(encoding="utf-8"))["deployments"]
    active = [
        f"{each['entrypoint'].rpartition('.')[2]}/{each['name']}"
        for each in deployments
        if any(schedule["active"] for schedule in each.get("schedules", ()))
    ]
    assert [f"`{name}`" in section("Schedule it") for name in active] == [True]
