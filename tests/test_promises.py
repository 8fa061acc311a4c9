# SPDX-License-Identifier: Apache-2.0
"""The test suite reads as a list of promises."""

import ast
from pathlib import Path

import pytest

HERE = Path(__file__).parent
FILES = sorted(path.relative_to(HERE).as_posix() for path in HERE.rglob("test_*.py"))


def defined_in(source: str) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Return every test that a file defines itself, without those that a class inherits."""
    return [
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.name.startswith("test_")
    ]


@pytest.mark.parametrize("file", FILES)
def test_every_test_states_its_promise_in_one_line(file):
    """Each test has a docstring of one line that ends with a period."""
    silent = []
    for test in defined_in((HERE / file).read_text(encoding="utf-8")):
        promise = ast.get_docstring(test, clean=False) or ""
        if "\n" in promise.strip() or not promise.endswith("."):
            silent.append(f"{file}:{test.lineno} {test.name}")
    assert silent == []


def test_the_promises_are_found():
    """The walk over the tests does find tests, so it cannot pass vacuously."""
    seen = [test.name for test in defined_in(Path(__file__).read_text(encoding="utf-8"))]
    assert "test_the_promises_are_found" in seen
    assert "blocks/test_credentials.py" in FILES
