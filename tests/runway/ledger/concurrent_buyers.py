# SPDX-License-Identifier: Apache-2.0
"""A program that does the same in many processes at once, each with its own ledger object.

``concurrent_buyers.py WHAT COUNT URL FILE``: all processes start at the same moment. Each one buys
(``buy``) or only reads (``look``), appends one line to the file for each request that it sends, and
prints its result as a line of JSON.
"""

import asyncio
import json
import os
import sys

from prefect_cometapi.runway import Ledger
from prefect_cometapi.runway.ledger.entry import Intent
from prefect_cometapi.runway.ledger.purchase import Check, buy_once


async def work(what: str, url: str, file: str) -> dict[str, object]:
    """Run the work of one process."""
    ledger = Ledger(url)

    async def post(_check: Check) -> str:
        with open(file, "a", encoding="ascii") as log:  # noqa: PTH123, ASYNC230
            log.write(f"task-{os.getpid()}\n")
        await asyncio.sleep(0.3)  # gives the others time to send a request, if they may
        return f"task-{os.getpid()}"

    wish = Intent(
        idempotency_key="sku-17", base_url="https://api.example.com", fingerprint="a" * 64
    )
    if what == "buy":
        entry = await buy_once(ledger, wish, post, run=f"run {os.getpid()}")
    else:
        entry = await ledger.get("sku-17")
    await ledger.database.close()
    return {"task_id": entry.task_id if entry else None}


def main() -> None:
    """Fork the processes, start them at the same moment and wait for them."""
    what, count, url, file = sys.argv[1:]
    ready, start = os.pipe(), os.pipe()
    children = []
    for _ in range(int(count)):
        child = os.fork()
        if child:
            children.append(child)
            continue
        os.close(start[1])
        os.write(ready[1], b".")
        os.read(start[0], 1)  # returns when the parent closes its end
        try:
            line = json.dumps(asyncio.run(work(what, url, file)))
        except Exception as error:  # noqa: BLE001 -- it is what is reported
            line = json.dumps({"error": repr(error)})
        os.write(1, f"{line}\n".encode())
        os._exit(0)
    for _ in children:
        os.read(ready[0], 1)
    os.close(start[1])
    for child in children:
        os.waitpid(child, 0)


if __name__ == "__main__":
    main()
