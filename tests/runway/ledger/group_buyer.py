# SPDX-License-Identifier: Apache-2.0
"""Program that buys many generations at once and writes a line for each request and result.

``python group_buyer.py URL COUNT``. The keys and task ids are texts that a trace of the system
calls finds in the pages of the ledger.
"""

import asyncio
import os
import sys

from prefect_cometapi.runway import Ledger
from prefect_cometapi.runway.ledger.entry import Intent
from prefect_cometapi.runway.ledger.purchase import Check, buy_once


def tell(line: str) -> None:
    """Write a line with one system call."""
    os.write(1, f"{line}\n".encode())


async def buy(ledger: Ledger, number: int) -> None:
    """Buy one generation."""

    async def post(check: Check) -> str:
        check()
        tell(f"POST {number}")
        return f"task-of-{number}-"

    intent = Intent(
        idempotency_key=f"claim-of-{number}-",
        base_url="https://api.example.com",
        fingerprint=f"{number:064x}",
    )
    entry = await buy_once(ledger, intent, post, run="run")
    assert entry.task_id == f"task-of-{number}-"
    tell(f"BOUGHT {number}")


async def main() -> None:
    """Buy all of them at once."""
    ledger = Ledger(sys.argv[1])
    await ledger.history.check_once()
    await asyncio.gather(*(buy(ledger, number) for number in range(int(sys.argv[2]))))
    await ledger.database.close()


asyncio.run(main())
