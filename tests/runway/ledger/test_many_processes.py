# SPDX-License-Identifier: Apache-2.0
"""Many concurrent processes with one key send one request, and all get its id."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("concurrent_buyers.py")


def concurrent_buyers(what: str, count: int, url: str, file: Path) -> list[dict[str, str | None]]:
    """Run many processes and return their results."""
    done = subprocess.run(
        [sys.executable, str(PROGRAM), what, str(count), url, str(file)],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert done.stderr == ""
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.heavy
def test_twenty_processes_with_one_key_send_one_request(ledger_url, tmp_path):
    """The ledger is new to all processes."""
    posts = tmp_path / "posts"
    got = concurrent_buyers("buy", 20, ledger_url, posts)
    (task_id,) = posts.read_text().split()
    assert got == [{"task_id": task_id}] * 20
    assert concurrent_buyers("buy", 3, ledger_url, posts) == [{"task_id": task_id}] * 3
    assert posts.read_text().split() == [task_id]


@pytest.mark.heavy
def test_eight_processes_open_a_fresh_ledger_at_once(ledger_url, tmp_path):
    """One process creates the ledger, and the others use it."""
    assert concurrent_buyers("look", 8, ledger_url, tmp_path / "posts") == [{"task_id": None}] * 8
