# SPDX-License-Identifier: Apache-2.0
"""Reports in Markdown: tables, versions, and pages that several commands share."""

import importlib.metadata
import os
import platform
import re
import sqlite3
from collections.abc import Iterable, Sequence
from pathlib import Path

PAGE = "# Benchmarks\n\nEach section is written by the command that it names.\n"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table with columns that line up in a terminal; numbers align right."""
    cells = [list(head), *map(list, rows)]
    widths = [max(3, *(len(row[column]) for row in cells)) for column in range(len(head))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    cells.insert(1, rule)
    return "\n".join(
        "| "
        + " | ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        + " |"
        for row in cells
    )


def cells(page: str) -> str:
    """Return a page whose cells have no padding, for comparisons."""
    return re.sub(" +", " ", page)


def versions(*packages: str) -> str:
    """Return the versions of Python, of the packages that are installed, and of SQLite."""
    found = [f"Python {platform.python_version()}"]
    for package in packages:
        try:
            found.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return ", ".join([*found, f"SQLite {sqlite3.sqlite_version}"])


def machine(*packages: str) -> str:
    """Return a description of the machine and the versions that were measured."""
    load = os.getloadavg()[0]
    return f"{os.cpu_count()} cores, load {load:.1f} at the end; {versions(*packages)}."


def violations_section(violations: Iterable[object]) -> list[str]:
    """Return the section of a page that lists broken promises, or nothing."""
    lines = [f"- {violation}" for violation in violations]
    return ["\n".join(["## Violations", "", *lines])] if lines else []


def with_section(page: Path, name: str, text: str) -> str:
    """Return the text of a page with a section in place of its former text, or as the last one."""
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    section = f"{begin}\n{text.strip()}\n{end}"
    before = page.read_text(encoding="utf-8") if page.exists() else PAGE
    old = re.compile(f"{re.escape(begin)}.*{re.escape(end)}", re.DOTALL)
    after, found = old.subn(lambda _: section, before)
    return after if found else f"{before.rstrip()}\n\n{section}\n"


def put_section(page: Path, name: str, text: str) -> None:
    """Write a section of a page in place of its former text, or as the last one."""
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(with_section(page, name, text), encoding="utf-8")
