# SPDX-License-Identifier: Apache-2.0
"""A process with an open ledger, which runs the commands of its standard input, line by line.

``ledger_user.py URL``. Commands: ``buy KEY...``, ``copy PATH`` (of the ledger's file, within this
process), ``copying PREFIX SECONDS`` (buys while another thread copies the file), ``fork`` (the
parent ends, the child continues), ``count``, ``close``. Each is answered by one line.
"""

import asyncio
import os
import shutil
import sys
import threading
import time
from pathlib import Path

from prefect_cometapi.runway import Ledger
from prefect_cometapi.runway.ledger.entry import Intent
from prefect_cometapi.runway.ledger.purchase import Check, buy_once


async def buy(ledger: Ledger, key: str) -> None:
    """Buy a key; the service accepts the request."""

    async def post(_check: Check) -> str:
        return f"task-{key}"

    wanted = Intent(idempotency_key=key, base_url="https://api.example.com", fingerprint="a" * 64)
    await buy_once(ledger, wanted, post, run=f"run {os.getpid()}")


def buy_while_copying(ledger: Ledger, file: Path, prefix: str, seconds: float) -> int:
    """Buy one key after another while a thread copies the file; return their number."""
    over = threading.Event()

    def copy() -> None:
        while not over.wait(0.001):
            shutil.copyfile(file, file.with_name(f"{prefix}.copy"))

    copying = threading.Thread(target=copy)
    copying.start()
    try:
        end, bought = time.monotonic() + seconds, 0
        while time.monotonic() < end:
            asyncio.run(buy(ledger, f"{prefix}{bought}"))
            bought += 1
    finally:
        over.set()
        copying.join()
    return bought


def main() -> None:
    """Run the commands."""
    url = sys.argv[1]
    ledger, file = Ledger(url), Path(url.partition("://")[2])
    for line in sys.stdin:
        command, *arguments = line.split()
        answer = "done"
        if command == "buy":
            for key in arguments:
                asyncio.run(buy(ledger, key))
        elif command == "copy":
            shutil.copyfile(file, arguments[0])
        elif command == "copying":
            answer = f"{buy_while_copying(ledger, file, arguments[0], float(arguments[1]))}"
        elif command == "fork":
            if os.fork():
                sys.exit()  # runs Python's normal cleanup
            answer = f"{os.getpid()}"
        elif command == "count":
            answer = f"{len(asyncio.run(ledger.entries()))}"
        elif command == "close":
            asyncio.run(ledger.database.close())
        print(answer, flush=True)


if __name__ == "__main__":
    main()
