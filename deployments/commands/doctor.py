# SPDX-License-Identifier: Apache-2.0
"""Command ``prefect-cometapi doctor``: checks before a paid run, with advice on each problem."""

import asyncio
import sys
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from enum import StrEnum
from time import time
from typing import TYPE_CHECKING, Annotated

import httpx
from cyclopts import Parameter

from ...runway.errors import CometAPIError, ServiceUnavailable
from ...runway.http_clients import tls_context
from ...runway.settings import CometAPISettings
from ..console import console, escape
from ..prefect_env import quieten_prefect

if TYPE_CHECKING:
    from prefect.client.orchestration import PrefectClient

SKEW = 30.0
"""Seconds that this clock may differ from the service's; signed URLs and leases depend on it."""


class Health(StrEnum):
    """Result of a check."""

    GOOD = "good"
    NOTED = "noted"
    BAD = "bad"


@dataclass(frozen=True)
class Finding:
    """Finding of one check, and advice on how to fix it."""

    what: str
    health: Health
    told: str
    fix: str = ""


def good(what: str, told: str) -> Finding:
    """Return the finding of a check that passed."""
    return Finding(what, Health.GOOD, told)


def noted(what: str, told: str, fix: str) -> Finding:
    """Return the finding of a check that passed with a limit that the user should know."""
    return Finding(what, Health.NOTED, told, fix)


def bad(what: str, told: str, fix: str) -> Finding:
    """Return the finding of a check that failed."""
    return Finding(what, Health.BAD, told, fix)


def doctor(
    *,
    storage: Annotated[
        str | None, Parameter(help="Storage to look at; COMETAPI_STORAGE else.")
    ] = None,
    pool: Annotated[str, Parameter(help="Work pool of our deployments.")] = "videos",
) -> None:
    """Check API key, service, clock, storage, decoder, ledger, Prefect, workers. Buys nothing."""
    quieten_prefect()
    findings = asyncio.run(examined(CometAPISettings(), storage, pool))
    colours = {Health.GOOD: "[green]✓[/]", Health.NOTED: "[yellow]![/]", Health.BAD: "[red]✗[/]"}
    for one in findings:
        console.print(f"{colours[one.health]} [bold]{one.what}[/]  {escape(one.told)}")
        if one.fix:
            console.print(f"    [dim]{escape(one.fix)}[/]", soft_wrap=True)
    sys.exit(any(one.health is Health.BAD for one in findings))


async def examined(settings: CometAPISettings, storage: str | None, pool: str) -> list[Finding]:
    """Run all checks, and return the findings in the order in which to fix them."""
    place = storage or settings.storage
    findings = [await _key(settings), await _clock(settings.base_url)]
    findings += [await _storage(place), await _decoder(), await _ledger(place)]
    findings += await _prefect(pool, place)
    return findings


async def _key(settings: CometAPISettings) -> Finding:
    from ...blocks.credentials import CometAPICredentials
    from ...runway.errors import AuthenticationError, UnexpectedResponse

    what = "CometAPI"
    try:
        async with CometAPICredentials.from_settings(settings).get_client() as client:
            await client.check_key()
    except AuthenticationError as error:
        return bad(what, error.message, "set COMETAPI_KEY to a key from CometAPI's console")
    except UnexpectedResponse as error:
        return bad(what, error.message, "correct COMETAPI_BASE_URL; it is the root, without a path")
    except CometAPIError as error:
        if isinstance(error, ServiceUnavailable) and error.http_status is None:
            return bad(
                what, error.message, "see that this machine reaches it; a proxy, a firewall?"
            )
        return noted(
            what, error.message, "the key was neither refused nor accepted; ask again later"
        )
    return good(what, f"{settings.base_url} takes the key")


async def _clock(base_url: str) -> Finding:
    what = "clock"
    try:
        async with httpx.AsyncClient(timeout=10, verify=tls_context()) as http:
            reply = await http.head(base_url)
        theirs = parsedate_to_datetime(reply.headers["date"]).timestamp()
    except (httpx.HTTPError, httpx.InvalidURL, KeyError, ValueError):
        return noted(what, "nothing to compare it with", f"{base_url} tells no date")
    return clock_finding(time() - theirs)


def clock_finding(ahead: float) -> Finding:
    """Return the finding for a clock that is `ahead` seconds ahead of the service's; pure."""
    if abs(ahead) > SKEW:
        which = "ahead of" if ahead > 0 else "behind"
        told = f"{abs(ahead):.0f} s {which} CometAPI's"
        return bad("clock", told, "set it by NTP: timedatectl set-ntp true")
    return good("clock", "as CometAPI's, to the second" if abs(ahead) < 2 else "near CometAPI's")


async def _storage(place: str) -> Finding:
    from ...flows.runtime.block_storage import canonical_location, resolve_storage
    from ...runway.storage.base import probe

    what = "storage"
    try:
        await asyncio.to_thread(probe, await resolve_storage(place))
    except CometAPIError as error:
        return bad(
            what, error.message, "set COMETAPI_STORAGE to a place that can be written and read"
        )
    return good(what, f"{canonical_location(place)} takes files and gives them back")


async def _decoder() -> Finding:
    from ...runway.media.inspector import what_the_decoder_reaches

    what = "decoder"
    try:
        reached = await asyncio.to_thread(what_the_decoder_reaches)
    except CometAPIError as error:
        return bad(what, error.message, "pip install --force-reinstall av")
    if reached:
        told = f"a video that breaks it reaches {', '.join(reached)}"
        advice = "Linux 5.13 confines it, where a container lets it; or give workers their own user"
        return noted(what, told, advice)
    return good(what, "confined: a video that breaks it reaches no file, network or process")


async def _ledger(place: str) -> Finding:
    from ...flows.runtime.block_storage import canonical_location, resolve_storage
    from ...flows.runtime.ledger_access import open_ledger
    from ...flows.runtime.ledger_check import other_ledgers
    from ...runway.errors import LedgerOutdated, StorageError
    from ...runway.ledger.marks import ledgers_in_use, read_marks

    what = "ledger"
    try:
        ledger = await open_ledger()
        entries, mark = await ledger.entries(limit=1), await ledger.history.mark()
        try:
            target = await resolve_storage(place)
            marks = await asyncio.to_thread(read_marks, target, mark.identity)
        except StorageError:
            marks = []
        await ledger.history.check_current(marks)
    except LedgerOutdated as error:
        return bad(what, error.message, error.hint())
    except CometAPIError as error:
        return bad(what, error.message, "correct COMETAPI_LEDGER_URL, or start its database")
    if others := ledgers_in_use(marks, mark.identity):
        told = other_ledgers(canonical_location(place), others)
        return noted(what, told, "set one COMETAPI_LEDGER_URL for all workers of a catalogue")
    told = "in use" if entries else "empty so far"
    return good(what, f"{ledger.database.redacted_url}, {told}")


async def _prefect(pool: str, place: str) -> list[Finding]:
    from prefect.client.orchestration import get_client
    from prefect.settings import get_current_settings

    if not get_current_settings().api.url:
        told = "no server is set; each run starts one of its own, and no schedule runs"
        return [noted("Prefect", told, "prefect server start, then set PREFECT_API_URL")]
    try:
        async with get_client() as client:
            version = await client.api_version()
            there = good("Prefect", f"server {version} at {client.api_url}")
            return [there, await _limit(client), await _workers(client, pool, place)]
    except (httpx.HTTPError, RuntimeError) as error:
        told = f"its server does not answer: {type(error).__name__}"
        return [bad("Prefect", told, "prefect server start, or correct PREFECT_API_URL")]


async def _limit(client: "PrefectClient") -> Finding:
    from prefect.exceptions import ObjectNotFound

    from ...flows.batch.concurrency import IN_FLIGHT_LIMIT

    try:
        limit = await client.read_global_concurrency_limit_by_name(IN_FLIGHT_LIMIT)
    except ObjectNotFound:
        told = "none for all processes together"
        return noted("limit", told, "prefect-cometapi setup makes one")
    return good("limit", f"{limit.active_slots} of {limit.limit} generations in flight")


async def _workers(client: "PrefectClient", pool: str, place: str) -> Finding:
    from prefect.exceptions import ObjectNotFound

    start = f"prefect worker start --pool {pool}"
    try:
        await client.read_work_pool(pool)
        workers = await client.read_workers_for_work_pool(pool)
    except ObjectNotFound:
        made_by = f"prefect-cometapi setup --pool {pool} makes it"
        return noted("workers", f"there is no work pool {pool}", made_by)
    online = [worker for worker in workers if worker.status == "ONLINE"]
    if not online:
        return bad("workers", f"none works on the pool {pool}: scheduled runs stay late", start)
    if len(online) == 1:
        return good("workers", f"one works on the pool {pool}")
    return await _shared(len(online), place)


async def _shared(workers: int, place: str) -> Finding:
    """Check that several workers share one ledger and one storage."""
    from ...flows.runtime.ledger_access import open_ledger
    from ...flows.runtime.multi_worker_check import apart

    alone = apart(await open_ledger(), place)
    told = f"{workers} work on the pool"
    if not alone:
        return good("workers", f"{told}, with one ledger and one storage")
    return noted("workers", told, f"if they are several machines, share {' and '.join(alone)}")
