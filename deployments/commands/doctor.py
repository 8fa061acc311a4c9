# SPDX-License-Identifier: Apache-2.0
"""Command ``prefect-cometapi doctor``: checks before a paid run, and a fix for each problem."""

import asyncio
import sys
from collections.abc import Sequence
from email.utils import parsedate_to_datetime
from time import time
from typing import TYPE_CHECKING, Annotated
from urllib.request import getproxies

import httpx
from cyclopts import Parameter

from ...runway.api.account import AccountClient
from ...runway.api.catalogue import Catalogue
from ...runway.errors import CometAPIError, ServiceUnavailable
from ...runway.http_clients import tls_context
from ...runway.models.account import AccountBalance, TokenCheck
from ...runway.models.catalogue import CatalogueReply
from ...runway.redact import host_of
from ...runway.settings import CometAPISettings
from ..console import console, escape
from ..container_checks import check_containers
from ..findings import Finding, Health, failed, passed, warning
from ..prefect_env import quieten_prefect
from .models import default_models, models_of_deployments, unsold

if TYPE_CHECKING:
    from prefect.client.orchestration import PrefectClient

PUBLIC_NAME = "example.com"
"""Name that resolves to a public address in each network that reaches the internet."""

SKEW = 30.0
"""Maximum difference between the local and the service's clock, in seconds.

Signed URLs and leases depend on the clock."""


def doctor(
    *,
    storage: Annotated[
        str | None, Parameter(help="Storage to check (default: COMETAPI_STORAGE).")
    ] = None,
    pool: Annotated[str, Parameter(help="Work pool to check.")] = "videos",
) -> None:
    """Check account, network, clock, storage, decoder, ledger, Prefect, workers. Buys nothing."""
    quieten_prefect()
    findings = asyncio.run(run_checks(CometAPISettings(), storage, pool))
    colours = {
        Health.PASSED: "[green]✓[/]",
        Health.WARNING: "[yellow]![/]",
        Health.FAILED: "[red]✗[/]",
    }
    for one in findings:
        console.print(f"{colours[one.health]} [bold]{one.check}[/]  {escape(one.message)}")
        if one.fix:
            console.print(f"    [dim]Fix: {escape(one.fix)}[/]", soft_wrap=True)
    sys.exit(any(one.health is Health.FAILED for one in findings))


async def run_checks(settings: CometAPISettings, storage: str | None, pool: str) -> list[Finding]:
    """Run all checks, and return their findings in the order in which to fix them."""
    location = storage or settings.storage
    findings = [await _key(settings), await _network(settings.base_url)]
    findings.append(await _clock(settings.base_url))
    findings += await _account(settings)
    findings += [await _storage(location), await _decoder(), await _ledger(location)]
    findings += await _prefect(pool, location)
    return findings


async def _key(settings: CometAPISettings) -> Finding:
    from ...blocks.credentials import CometAPICredentials
    from ...runway.errors import AuthenticationError, UnexpectedResponse

    check = "CometAPI"
    try:
        async with CometAPICredentials.from_settings(settings).get_client() as client:
            await client.check_key()
    except AuthenticationError as error:
        return failed(
            check, error.message, "set COMETAPI_KEY to an API key from CometAPI's console"
        )
    except UnexpectedResponse as error:
        fix = "correct COMETAPI_BASE_URL; it is the root URL of the service, without a path"
        return failed(check, error.message, fix)
    except CometAPIError as error:
        if isinstance(error, ServiceUnavailable) and error.http_status is None:
            fix = "check the network of this machine, its proxy and its firewall"
            return failed(check, error.message, fix)
        fix = "try again later; CometAPI neither accepted nor refused the API key"
        return warning(check, error.message, fix)
    return passed(check, f"{settings.base_url} accepts the API key")


async def _network(base_url: str) -> Finding:
    """Check to which addresses this machine resolves names; videos come from public ones only."""
    from ...runway.media.ssrf_guard import is_fake, is_public

    if "https" in getproxies() or "all" in getproxies():
        return passed("network", "through a proxy, which resolves names")
    service = await _addresses(host_of(base_url))
    if service and not any(is_public(each) or is_fake(each) for each in service):
        return passed("network", "the service is in this network")
    return network_finding(service, await _addresses(PUBLIC_NAME))


async def _addresses(host: str) -> list[str]:
    from ...runway.media.ssrf_guard import resolve

    try:
        return await resolve(host, 443)
    except (OSError, UnicodeError):
        return []


def network_finding(service: Sequence[str], public: Sequence[str]) -> Finding:
    """Return the finding for the addresses of the service and of a public name; pure."""
    from ...runway.media.ssrf_guard import is_fake, is_nat64, is_public

    check, found = "network", [*service, *public]
    if fake := next(filter(is_fake, found), None):
        message = (
            f"names resolve to addresses that a VPN or proxy makes up ({fake}, fake-IP DNS), from "
            "which no video is downloaded"
        )
        fix = "turn fake-IP off, set HTTPS_PROXY, or name the hosts in COMETAPI_ALLOWED_ASSET_HOSTS"
        return warning(check, message, fix)
    if not public:
        fix = "check the DNS of this machine; videos come from hosts that it has to resolve"
        return warning(check, f"{PUBLIC_NAME} cannot be resolved", fix)
    if not any(map(is_public, public)):
        message = f"{PUBLIC_NAME} has the non-public address {public[0]}"
        return warning(check, message, "check the DNS of this machine, or set HTTPS_PROXY")
    if any(map(is_nat64, found)):
        message = "names resolve to NAT64, as in a network without IPv4; videos come through it"
        fix = "nothing, unless the gateway of the network is slow or limited"
        return warning(check, message, fix)
    return passed(check, "names resolve to public addresses")


async def _account(settings: CometAPISettings) -> list[Finding]:
    """Check the balance, the access token and the catalogue. None of them is needed for a run."""
    account = AccountClient(
        api_key=settings.key, access_token=settings.access_token, base_url=settings.base_url
    )
    async with account:
        balance, token, found = await asyncio.gather(
            account.balance(), account.check_token(), Catalogue(settings.base_url).models()
        )
    findings = [balance_finding(balance)] if settings.key else []
    if account.has_access_token:
        findings.append(token_finding(token))
    if found.problem:
        fix = "try again later; nothing needs the catalogue"
        return [*findings, warning("catalogue", f"unknown or incomplete: {found.problem}", fix)]
    message = f"{len(found.runway_models)} models with Runway's routes"
    findings.append(passed("catalogue", message))
    return [*findings, *await _models(found)]


def balance_finding(balance: AccountBalance) -> Finding:
    """Return the finding for a balance; pure."""
    check, top_up = "balance", "top up the account at https://www.cometapi.com/console"
    if balance.is_unlimited:
        return passed(check, "the API key has no limit of its own")
    if balance.usd is None:
        fix = "try again later; nothing needs the balance"
        return warning(check, f"unknown: {balance.problem}", fix)
    message = f"{balance.usd:,.2f} USD"
    return passed(check, message) if balance.usd > 0 else warning(check, message, top_up)


def token_finding(token: TokenCheck) -> Finding:
    """Return the finding for an access token; pure."""
    check = "access token"
    if token.is_accepted:
        return passed(check, "CometAPI lists the account's tasks")
    if token.is_accepted is False:
        fix = "set COMETAPI_ACCESS_TOKEN to the token of the personal settings in the console"
        return failed(check, f"rejected: {token.problem}", fix)
    fix = "try again later; CometAPI neither accepted nor refused the access token"
    return warning(check, f"unknown: {token.problem}", fix)


async def _models(found: CatalogueReply) -> list[Finding]:
    """Check that the default models and those of the deployments are sold."""
    from prefect.client.orchestration import get_client
    from prefect.settings import get_current_settings

    wanted = default_models()
    if get_current_settings().api.url:
        try:
            async with get_client() as client:
                wanted |= await models_of_deployments(client)
        except (httpx.HTTPError, RuntimeError):
            pass  # the check of Prefect reports it
    return [
        warning("models", sentence, "choose a model of: prefect-cometapi models")
        for sentence in unsold(found, wanted)
    ]


async def _clock(base_url: str) -> Finding:
    check = "clock"
    try:
        async with httpx.AsyncClient(timeout=10, verify=tls_context()) as http:
            reply = await http.head(base_url)
        theirs = parsedate_to_datetime(reply.headers["date"]).timestamp()
    except (httpx.HTTPError, httpx.InvalidURL, KeyError, ValueError):
        return warning(
            check, f"not checked: {base_url} returned no date", "check that it is reachable"
        )
    return clock_finding(time() - theirs)


def clock_finding(ahead: float) -> Finding:
    """Return the finding for a clock that is `ahead` seconds ahead of the service's; pure."""
    if abs(ahead) > SKEW:
        which = "ahead of" if ahead > 0 else "behind"
        message = f"{abs(ahead):.0f} s {which} CometAPI's clock"
        return failed("clock", message, "enable NTP: timedatectl set-ntp true")
    return passed("clock", f"differs from CometAPI's clock by {abs(ahead):.0f} s")


async def _storage(location: str) -> Finding:
    from ...flows.runtime.block_storage import canonical_location, resolve_storage
    from ...runway.storage.base import probe

    check = "storage"
    try:
        await asyncio.to_thread(probe, await resolve_storage(location))
    except CometAPIError as error:
        fix = "set COMETAPI_STORAGE to a location that this machine can write and read"
        return failed(check, error.message, fix)
    return passed(check, f"{canonical_location(location)} can be written and read")


async def _decoder() -> Finding:
    from ...runway.media.inspector import decoder_reaches

    check = "decoder"
    try:
        reached = await asyncio.to_thread(decoder_reaches)
    except CometAPIError as error:
        return failed(check, error.message, "pip install --force-reinstall av")
    if reached:
        message = f"not confined: a malicious video could reach {', '.join(reached)}"
        fix = (
            "use Linux 5.13 or newer, in a container that allows seccomp and Landlock, or give the "
        )
        return warning(check, message, f"{fix}workers a user account of their own")
    return passed(check, "confined: a malicious video can reach no file, network or process")


async def _ledger(location: str) -> Finding:
    from ...flows.runtime.block_storage import canonical_location, resolve_storage
    from ...flows.runtime.ledger_access import open_ledger
    from ...flows.runtime.ledger_check import other_ledgers
    from ...runway.errors import LedgerOutdated, StorageError
    from ...runway.ledger.marks import ledgers_in_use, read_marks

    check = "ledger"
    try:
        ledger = await open_ledger()
        entries, mark = await ledger.entries(limit=1), await ledger.history.mark()
        try:
            target = await resolve_storage(location)
            marks = await asyncio.to_thread(read_marks, target, mark.identity)
        except StorageError:
            marks = []
        await ledger.history.check_current(marks)
    except LedgerOutdated as error:
        return failed(check, error.message, error.hint())
    except CometAPIError as error:
        return failed(check, error.message, "correct COMETAPI_LEDGER_URL, or start the database")
    if others := ledgers_in_use(marks, mark.identity):
        message = other_ledgers(canonical_location(location), others)
        return warning(check, message, "set the same COMETAPI_LEDGER_URL for all workers")
    return passed(check, f"{ledger.database.redacted_url}, {'in use' if entries else 'empty'}")


async def _prefect(pool: str, location: str) -> list[Finding]:
    from prefect.client.orchestration import get_client
    from prefect.settings import get_current_settings

    if not get_current_settings().api.url:
        message = "PREFECT_API_URL is not set: each run starts its own server, and no schedule runs"
        return [warning("Prefect", message, "prefect server start, then set PREFECT_API_URL")]
    try:
        async with get_client() as client:
            version = await client.api_version()
            server = passed("Prefect", f"server {version} at {client.api_url}")
            workers = await _workers(client, pool, location)
            return [server, await _limit(client), *await check_containers(client, pool), workers]
    except (httpx.HTTPError, RuntimeError) as error:
        message = f"the server does not answer: {type(error).__name__}"
        return [failed("Prefect", message, "prefect server start, or correct PREFECT_API_URL")]


async def _limit(client: "PrefectClient") -> Finding:
    from prefect.exceptions import ObjectNotFound

    from ...flows.batch.concurrency import IN_FLIGHT_LIMIT

    try:
        limit = await client.read_global_concurrency_limit_by_name(IN_FLIGHT_LIMIT)
    except ObjectNotFound:
        message = f"there is no global concurrency limit {IN_FLIGHT_LIMIT}"
        return warning("limit", message, "prefect-cometapi setup")
    return passed("limit", f"{limit.active_slots} of {limit.limit} generations in flight")


async def _workers(client: "PrefectClient", pool: str, location: str) -> Finding:
    from prefect.exceptions import ObjectNotFound

    from ...flows.runtime.work_pools import read_pool, starts_containers

    start = f"prefect worker start --pool {pool}"
    try:
        found = await read_pool(client, pool)
        workers = await client.read_workers_for_work_pool(pool)
    except ObjectNotFound:
        fix = f"prefect-cometapi setup --pool {pool}"
        return warning("workers", f"there is no work pool {pool}", fix)
    online = [worker for worker in workers if worker.status == "ONLINE"]
    if not online:
        message = f"no worker is online in the pool {pool}, so scheduled runs do not start"
        return failed("workers", message, start)
    if len(online) == 1:
        return passed("workers", f"one worker is online in the pool {pool}")
    if starts_containers(found):  # the settings of this machine are not those of its containers
        return passed("workers", f"{len(online)} workers are online in the pool {pool}")
    return await _shared(len(online), location)


async def _shared(workers: int, location: str) -> Finding:
    """Check that several workers share one ledger and one storage."""
    from ...flows.runtime.ledger_access import open_ledger
    from ...flows.runtime.multi_worker_check import apart

    local = apart(await open_ledger(), location)
    message = f"{workers} workers are online"
    if not local:
        return passed("workers", f"{message}, with a shared ledger and storage")
    fix = f"if they run on several machines, share {' and '.join(local)}"
    return warning("workers", message, fix)
