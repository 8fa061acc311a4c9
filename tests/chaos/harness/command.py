# SPDX-License-Identifier: Apache-2.0
"""Command lines of the chaos tests: arguments, isolation, result and exit status."""

import argparse
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from ...limits import usual_signals
from .processes import QUIET, SETTINGS_PREFIXES, clear_environment


def parser(documentation: str | None) -> argparse.ArgumentParser:
    """Return a parser that describes a module and takes the file of its report."""
    made = argparse.ArgumentParser(description=(documentation or "").partition("\n")[0])
    made.add_argument(
        "--report", type=_absolute, metavar="FILE", help="Markdown page for the figures"
    )
    return made


def _absolute(text: str) -> Path:
    return Path(text).absolute()


def isolate() -> None:
    """Set the usual signal handlers, and hide the settings of the machine from this process.

    Prefect reads its settings when it is imported, so that must not have happened before.
    """
    usual_signals()
    clear_environment(*SETTINGS_PREFIXES)
    os.environ.update(QUIET)


def conclude(
    summary: str,
    violations: Iterable[object],
    report: Path | None,
    page: Callable[[], str],
) -> int:
    """Print the result, write the report if there is a file for it, and return the exit status.

    Args:
        summary: Figures for the terminal.
        violations: Broken promises, which are printed to stderr.
        report: File for the report.
        page: Returns the report.
    """
    print(summary, flush=True)
    found = list(violations)
    for violation in found:
        print(violation, file=sys.stderr)
    if report:
        report.write_text(page(), encoding="utf-8")
    return 1 if found else 0
