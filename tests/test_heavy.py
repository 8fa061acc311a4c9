# SPDX-License-Identifier: Apache-2.0
"""The tests that a newcomer runs need nothing but Python."""

import re
from pathlib import Path

HERE = Path(__file__).parent
PROGRAMS = {"postgres", "redis_server", "chromium", "s3"}
"""Fixtures that start a program which Python does not bring, or a server of minutes."""


def test_tests_that_need_a_program_are_heavy(request):
    """Each test of this run that uses such a fixture has the marker `heavy`."""
    found = [
        item.nodeid
        for item in request.session.items
        if PROGRAMS & set(item.fixturenames) and not item.get_closest_marker("heavy")
    ]
    assert found == []


def test_no_test_gets_a_program_behind_the_markers():
    """Such a fixture is requested by name, except for parameters that have the marker."""
    behind = {
        path.relative_to(HERE).as_posix()
        for path in HERE.rglob("*.py")
        for name in re.findall(r"getfixturevalue\(\W*(\w+)", path.read_text(encoding="utf-8"))
        if name in PROGRAMS
    }
    assert behind == {"runway/conftest.py"}
    text = (HERE / "runway" / "conftest.py").read_text(encoding="utf-8")
    assert 'pytest.param("postgresql", marks=pytest.mark.heavy)' in text


def test_the_fixtures_that_are_looked_for_exist():
    """Each name is a fixture of all tests, so the checks cannot pass vacuously."""
    text = (HERE / "conftest.py").read_text(encoding="utf-8")
    assert set(re.findall(r"^def (\w+)\(", text, re.MULTILINE)) >= PROGRAMS
