# SPDX-License-Identifier: Apache-2.0
"""Findings of the command ``doctor``."""

from dataclasses import dataclass
from enum import StrEnum


class Health(StrEnum):
    """Result of a check."""

    PASSED = "passed"
    WARNING = "warning"
    FAILED = "failed"


@dataclass(frozen=True)
class Finding:
    """Result of one check, and the fix if there is a problem."""

    check: str
    health: Health
    message: str
    fix: str = ""


def passed(check: str, message: str) -> Finding:
    """Return the finding of a check that passed."""
    return Finding(check, Health.PASSED, message)


def warning(check: str, message: str, fix: str) -> Finding:
    """Return the finding of a check that passed with a restriction."""
    return Finding(check, Health.WARNING, message, fix)


def failed(check: str, message: str, fix: str) -> Finding:
    """Return the finding of a check that failed."""
    return Finding(check, Health.FAILED, message, fix)
