# SPDX-License-Identifier: Apache-2.0
"""A process with a ledger open, which does what its standard input says, line by line.

``ledger_user.py URL``. Commands: ``buy KEY...``, ``copy PATH`` (of the ledger's file, within this
process), ``fork`` (the parent ends, the child goes on), ``count``, ``close``. Each is answered by
one line.
"""

import asyncio
import os
import shutil
import sys
from pathlib import Path

from prefect_cometapi.runway import Ledger
from prefect_cometapi.runway.buying import Check, buy_once
from prefect_cometapi.runway.entries import Intent


async def buy(ledger: Ledger, key: str) -> None:
    """Buy a key; the service accepts it."""

    async def post(_check: Check) -> str:
        return f"task-{key}"

    wanted = Intent(key=key, base_url="https://api.example.com", fingerprint="a" * 64)
    await buy_once(ledger, wanted, post, run=f"run {os.getpid()}")


def main() -> None:
    """Obey."""
    url = sys.argv[1]
    ledger = Ledger(url)
    for line in sys.stdin:
        command, *arguments = line.split()
        answer = "done"
        if command == "buy":
            for key in arguments:
                asyncio.run(buy(ledger, key))
        elif command == "copy":
            shutil.copyfile(Path(url.partition("://")[2]), arguments[0])
        elif command == "fork":
            if os.fork():
                sys.exit()  # with all that Python does at an end
            answer = f"{os.getpid()}"
        elif command == "count":
            answer = f"{len(asyncio.run(ledger.entries()))}"
        elif command == "close":
            asyncio.run(ledger.database.close())
        print(answer, flush=True)


if __name__ == "__main__":
    main()
