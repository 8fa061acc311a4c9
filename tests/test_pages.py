# SPDX-License-Identifier: Apache-2.0
"""Settings, messages, errors and recipes on their pages are those of the code."""

import ast
import builtins
import importlib
import re
from pathlib import Path

import pytest

from prefect_cometapi import runway
from prefect_cometapi.runway import CometAPISettings, errors
from prefect_cometapi.runway.models.model_limits import known_models, model_table

from .pictures import picture

ROOT = Path(__file__).parents[1]
PACKAGES = ("runway", "flows", "blocks", "deployments")
PAGES = [ROOT / "README.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]
SETTINGS = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
TROUBLE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
COMPARISON = (ROOT / "docs" / "comparison.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    return TROUBLE.partition(f"## {title}\n")[2].partition("\n## ")[0]


def literals() -> str:
    """Return every text in the code, with `…` in place of the values in it."""
    found = []
    for path in (path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [
                    part.value if isinstance(part, ast.Constant) else "…" for part in node.values
                ]
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(found)


def test_every_setting_stands_in_the_table_with_its_default():
    """The table lists every setting and no other, with its true default."""
    rows = dict(re.findall(r"\| `COMETAPI_(\w+)` \| (?:`(.*?)`)? ?\|", SETTINGS))
    fields = CometAPISettings.model_fields
    assert set(rows) == {name.upper() for name in fields}
    for name, field in fields.items():
        default = f"{field.default:g}" if isinstance(field.default, float) else field.default
        unset = default is None or default == frozenset()
        assert rows[name.upper()] == ("" if unset else str(default))


def test_every_setting_that_a_page_names_exists():
    """No page names a setting that was renamed or removed."""
    known = {name.upper() for name in CometAPISettings.model_fields}
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        named = set(re.findall(r"\bCOMETAPI_([A-Z][A-Z_]*[A-Z])\b", text))
        assert named <= known, page.name


def test_the_example_prices_are_those_of_the_table():
    """Each example of a price is the known one, with its seller and its date."""
    (row,) = [line for line in SETTINGS.splitlines() if line.startswith("| `COMETAPI_PRICES`")]
    examples = re.findall(r'`\{"([\w.]+)": "?([\d./s]+)"?\}` \((\w+), ([\d-]+)\)', row)
    assert len(examples) == 2
    for model, price, seller, date in examples:
        known = known_models()[model].price
        assert known is not None
        source = model_table().sources[known.source]
        assert (str(known.price()), source.seller, source.date) == (price, seller, date)


def test_every_error_stands_in_the_table():
    """Each error that a user can meet has a row in the table, and no other name is there."""
    kinds = {name for name in runway.__all__ if isinstance(getattr(runway, name), type)}
    met = {
        name
        for name in kinds
        if issubclass(getattr(runway, name), errors.CometAPIError)
        and not getattr(runway, name).__subclasses__()
    }
    rows = re.findall(r"^\| (`\w.*?) \|", section("By error"), re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert met <= named <= kinds


def test_every_message_of_the_page_is_one_of_the_code():
    """Each message is written in the code, with values where the page has an ellipsis."""
    rows = re.findall(r"^\| `(.+?)` \| `(\w+)` \|", section("By message"), re.MULTILINE)
    said = literals()
    assert len(rows) > 20
    for message, error in rows:
        assert message in said, message
        assert issubclass(getattr(runway, error), errors.CometAPIError)


def snippets() -> list:
    found = []
    for page in PAGES:
        blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
        found += [
            pytest.param(block, id=f"{page.stem}-{number}") for number, block in enumerate(blocks)
        ]
    return found


@pytest.mark.parametrize("block", snippets())
def test_every_snippet_compiles_and_imports_what_exists(block):
    """Each snippet is valid Python, its imports exist, and it uses no name that is not defined."""
    tree = ast.parse(block)
    defined = {*dir(builtins), "__name__"}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(str(node.module))
            assert all(hasattr(module, alias.name) for alias in node.names)
        if isinstance(node, ast.Import | ast.ImportFrom):
            defined |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            defined.add(node.name)
        elif isinstance(node, ast.arg):
            defined.add(node.arg)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            defined.add(node.id)
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert used - defined == set()


@pytest.mark.server
@pytest.mark.heavy
def test_the_recipes_run_as_written(prefect_server, sandbox, monkeypatch, tmp_path, capsys):
    """Each flow of the recipes runs after it was copied; only its pictures are replaced."""
    (tmp_path / "cat.jpg").write_bytes(picture("JPEG"))
    page = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    page = page.replace("s3://my-bucket/cat.png", "cat.jpg")
    page = page.replace("s3://my-bucket/videos", f"{tmp_path}/bucket")
    names: dict = {}
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(compile(block, "recipes.md", "exec"), names)
    both = names["day_and_night"]("cat.jpg")
    assert [Path(uri).exists() for uri in both] == [True, True]
    assert Path(names["from_bucket_to_bucket"]()).parent == tmp_path / "bucket"
    names["load"](both[0])
    assert both[0] in capsys.readouterr().out
    assert names["order"]("cat.jpg") in {job.task_id for job in sandbox.accepted}
    assert [job.route for job in sandbox.accepted] == [
        "image_to_video",
        "video_to_video",
        "image_to_video",
        "image_to_video",
    ]


def test_the_comparison_names_the_figures_of_the_benchmarks():
    """The processor time of an item is the one that was measured, for both."""
    text = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    (ours, threads) = re.findall(
        r"^\| CPU milliseconds per item +\| +([\d.]+) \(.*?\) \|.*?\| +([\d.]+) \|",
        text,
        re.MULTILINE,
    )[0]
    assert f"| {float(threads):.0f} ms, with a thread for each | {float(ours):.0f} ms with" in (
        COMPARISON
    )
