# SPDX-License-Identifier: Apache-2.0
"""Faults of the environment that would break every HTTP client, each named by its variable.

httpx and Prefect read the variables of proxies and certificates by themselves, and fail in the
middle of a command with an error that does not name the variable.
"""

import os
import re
import ssl
from collections.abc import Mapping
from functools import cache

import httpx
from pydantic import SecretStr, ValidationError

from .errors import AuthenticationError, InvalidEnvironment
from .http_clients import tls_context
from .redact import redact_url, scrub
from .settings import CometAPISettings, check_dotenv

_PROXIES = ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY")
_EXCLUSIONS = ("no_proxy", "NO_PROXY")
_VARIABLES = (*_PROXIES, *(name.lower() for name in _PROXIES), *_EXCLUSIONS)
_FORMS = "write http://host:port, https://host:port or socks5://host:port, or unset it"


def check_environment() -> None:
    """Check what every command and every run needs: ``.env``, proxies and certificates.

    Raises:
        InvalidEnvironment: One of them cannot be used; the message names it.
    """
    check_dotenv()
    if fault := proxy_fault(os.environ):
        raise InvalidEnvironment(fault)
    _check_clients(tuple(os.environ.get(name, "") for name in _VARIABLES))
    tls_context()


def read_settings() -> CometAPISettings:
    """Return the settings of the environment.

    Raises:
        InvalidEnvironment: One of them is not valid; the message names each variable.
    """
    try:
        return CometAPISettings()
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False, include_input=False)
    problems_found = [f"{variable_of(each['loc'])}: {problem_of(each['msg'])}" for each in problems]
    raise InvalidEnvironment("; ".join(problems_found))


def require_api_key(settings: CometAPISettings) -> SecretStr:
    """Return the API key of the settings.

    Raises:
        AuthenticationError: There is none.
    """
    if settings.key is None or not settings.key.get_secret_value().strip():
        raise AuthenticationError("there is no API key")
    return settings.key


def variable_of(location: tuple[int | str, ...]) -> str:
    """Return the variable of a setting that pydantic rejects; pure."""
    name, *inside = map(str, location)
    return ".".join([f"COMETAPI_{name.upper()}", *inside])


def problem_of(message: str) -> str:
    """Return the message of pydantic without its prefix; pure."""
    return message.removeprefix("Value error, ")


def proxy_fault(variables: Mapping[str, str]) -> str:
    """Return the problem with the first variable that is not a proxy's address; pure."""
    for name in (each for upper in _PROXIES for each in (upper, upper.lower())):
        value = variables.get(name, "")
        url = value if "://" in value else f"http://{value}"
        if value and not _is_proxy(url):
            return f"{name} is not the address of a proxy ({scrub(redact_url(url), 80)}): {_FORMS}"
    return ""


def _is_proxy(url: str) -> bool:
    try:
        its = httpx.Proxy(url).url
    except (ValueError, httpx.InvalidURL):
        return False
    return (
        bool(its.host) and not re.search(r"\s", url) and (its.port is None or 0 < its.port < 2**16)
    )


@cache
def _check_clients(_values: tuple[str, ...]) -> None:
    """Create a client, which reads the variables that exclude hosts from the proxy.

    This takes 0.6 ms, so it is done once for the same values of the variables.
    """
    name = next((each for each in _EXCLUSIONS if os.environ.get(each)), "NO_PROXY")
    try:
        httpx.Client(verify=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)).close()
    except (ValueError, httpx.InvalidURL) as error:
        raise InvalidEnvironment(
            f"{name} is not a list of host names: {scrub(str(error), 80)}: write, for example, "
            "localhost,.example.com"
        ) from None
