# SPDX-License-Identifier: Apache-2.0
"""Settings, read from the environment or from a .env file."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    BeforeValidator,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError
from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from .errors import InvalidEnvironment
from .models.prices import Prices, decode_prices
from .plain_help import PlainHelp
from .redact import host_of, is_loopback, reason_of

DEFAULT_BASE_URL = "https://api.cometapi.com"
DEFAULT_RUNWAY_VERSION = "2024-11-06"
"""Default of the header X-Runway-Version: the only value that CometAPI's docs show."""

API_KEY_PATTERN = r"[!-~]+"
"""Pattern of an API key: the characters that an HTTP header can carry."""

_QUOTES = "\"'`\N{LEFT DOUBLE QUOTATION MARK}\N{RIGHT DOUBLE QUOTATION MARK}"
_VARIABLE = re.compile(r"\$\w+|\$\{\w+\}|%\w+%|\$env:\w+", re.IGNORECASE)
_AROUND_SECRET = re.compile(
    rf"^[{_QUOTES}]|[{_QUOTES}]$|^bearer\b|^\*+$|^(?:{_VARIABLE.pattern})$", re.IGNORECASE
)

RUNWAY_VERSION_PATTERN = r"^[0-9A-Za-z._-]{1,40}$"
"""Pattern of a value for the header X-Runway-Version."""


def check_base_url(url: str) -> str:
    """Return the root URL of the service, without a trailing slash.

    A path ``/v1`` is dropped: CometAPI's own tools set ``COMETAPI_BASE_URL`` with it, for its
    routes in OpenAI's format.

    Raises:
        ValueError: The URL is not https (loopback may be http), or it has more than scheme, host
            and port.
    """
    wrong = ValueError(f"must be the root URL of the service, for example {DEFAULT_BASE_URL}")
    try:
        parts = urlsplit(url.strip())
        _ = parts.port
    except ValueError:
        raise wrong from None
    root = f"{parts.scheme}://{parts.netloc}"
    if not parts.hostname or parts.query or parts.fragment or re.search(r"[@\s]", parts.netloc):
        raise wrong
    if parts.scheme != "https" and not (parts.scheme == "http" and is_loopback(root)):
        raise ValueError(
            "must be https:// (except on this machine), because the API key is sent there"
        )
    if parts.path.strip("/") not in {"", "v1"}:
        raise ValueError(f"leave out the path {parts.path!r}: Runway's routes start at {root}")
    return root


def check_hosts(hosts: object) -> object:
    """Split a comma-separated list of host names, and return them in lower case.

    A value that is not a string is returned as it is.

    Raises:
        ValueError: One of them is not a bare host name.
    """
    if not isinstance(hosts, str):
        return hosts
    names = [name.strip().lower() for name in hosts.split(",") if name.strip()]
    for name in names:
        if not re.fullmatch(r"[a-z0-9._-]+|\[[0-9a-f:.]+\]", name):
            raise ValueError(
                f"{name[:80]!r} is not a host name; write bare names, for example cdn.example.com"
            )
    return [host_of(f"https://{name}") for name in names]


def check_secret(secret: SecretStr, what: str) -> SecretStr:
    """Return a secret without surrounding blanks; an empty one stays empty.

    Args:
        secret: API key or access token.
        what: Name of it for messages.

    Raises:
        ValueError: An HTTP header cannot carry it, or it has more around it than the secret. The
            message does not repeat it.
    """
    text = secret.get_secret_value().strip()
    if not text or (re.fullmatch(API_KEY_PATTERN, text) and not _AROUND_SECRET.search(text)):
        return SecretStr(text)
    if re.fullmatch(r"\*+", text):
        raise ValueError(f"this is a masked {what}; load the saved block again")
    if text[0] in _QUOTES or text[-1] in _QUOTES:
        raise ValueError(f"the {what} has quotes around it; leave them out")
    if re.match(r"bearer\b", text, re.IGNORECASE):
        raise ValueError(f"the {what} begins with the word Bearer; leave that out")
    if _VARIABLE.fullmatch(text):
        raise ValueError(f"this is the name of a variable, and not the {what} in it")
    if re.search(r"\s", text):
        raise ValueError(f"the {what} has a blank or a line break in it; copy it again")
    raise ValueError(
        f"the {what} has characters that cannot be in it, such as letters beyond ASCII or "
        "invisible ones; copy it again"
    )


def check_dotenv() -> None:
    """Check that the ``.env`` file of this folder, if there is one, can be read.

    Prefect reads it, too, while it is imported.

    Raises:
        InvalidEnvironment: It is not in UTF-8, or cannot be opened.
    """
    file = Path(".env")
    try:
        if file.is_file():
            file.read_text("utf-8")
    except UnicodeDecodeError:
        raise InvalidEnvironment(
            f"{file.absolute()} is not in UTF-8: save it as UTF-8, in PowerShell with "
            "Set-Content -Encoding utf8"
        ) from None
    except OSError as error:
        raise InvalidEnvironment(f"{file.absolute()} cannot be read: {reason_of(error)}") from None


class _OfThisFolder(DotEnvSettingsSource):
    """Source of settings in an untrusted ``.env`` file.

    The folder may come from somebody else. Its ``.env`` may not redirect an API key or an access
    token that comes from another source to a server of its own.
    """

    def _read_env_files(self) -> Mapping[str, str | None]:
        check_dotenv()
        return super()._read_env_files()

    def __call__(self) -> dict[str, Any]:
        """Return the settings in the file.

        Raises:
            InvalidEnvironment: The file cannot be read.
            ValidationError: The file sets a base URL on another machine, and the API key or the
                access token comes from another source.
        """
        found = super().__call__()
        stronger = self.current_state
        leads_away = "base_url" in found and not is_loopback(str(found["base_url"]))
        secret = next((name for name in ("key", "access_token") if name in stronger), None)
        if leads_away and "base_url" not in stronger and secret:
            what = (
                "a .env file may set COMETAPI_BASE_URL only if {secret} comes from the same file; "
                "set COMETAPI_BASE_URL where {secret} is set"
            )
            reason = PydanticCustomError(
                "foreign_base_url", what, {"secret": f"COMETAPI_{secret.upper()}"}
            )
            problem = InitErrorDetails(type=reason, loc=("base_url",), input=None)
            raise ValidationError.from_exception_data("CometAPISettings", [problem])
        return found


class CometAPISettings(BaseSettings, metaclass=PlainHelp):
    """Settings of this package; each is read from `COMETAPI_<NAME>` when a flow run starts."""

    model_config = SettingsConfigDict(
        env_prefix="COMETAPI_",
        env_file=".env",
        extra="ignore",
        env_ignore_empty=True,
        hide_input_in_errors=True,
    )

    key: SecretStr | None = Field(default=None, description="API key of CometAPI.")
    access_token: SecretStr | None = Field(
        default=None,
        description="Access token of the CometAPI account, with which its tasks and charges can be "
        "listed.",
    )
    base_url: str = Field(
        default=DEFAULT_BASE_URL, description="Root URL of the service, without a path."
    )
    runway_version: str = Field(
        default=DEFAULT_RUNWAY_VERSION,
        pattern=RUNWAY_VERSION_PATTERN,
        description="Value of the header X-Runway-Version, sent with every call.",
    )
    storage: str = Field(
        default="./videos",
        min_length=1,
        description="Folder, fsspec URL or Prefect block (type-slug/name) that keeps the videos.",
    )
    ledger_url: SecretStr | None = Field(
        default=None,
        description="Database or GenerationLedger block (generation-ledger/name) that records the "
        "purchases; a SQLite file in Prefect's home if not set.",
    )
    on_uncertain: Literal["stop", "resubmit", "reconcile"] = Field(
        default="stop",
        description="Reaction of a later attempt to a submission with an unknown outcome; "
        "'resubmit' risks a second charge, and 'reconcile' asks the account, which presumes that "
        "nothing else uses it.",
    )
    account_delay: float = Field(
        default=120.0,
        ge=0,
        description="Seconds after an attempt within which CometAPI may still add a task to the "
        "account's list.",
    )
    clock_slack: float = Field(
        default=5.0,
        ge=0,
        description="Seconds by which the clocks of this machine and of CometAPI may differ.",
    )
    currency: str = Field(
        default="USD",
        pattern=r"^[A-Z]{3}$",
        description="Currency of COMETAPI_PRICES. CometAPI bills in USD, so a billed cost replaces "
        "an estimate only in USD.",
    )
    poll_interval: float = Field(
        default=5.0,
        gt=0,
        le=300,
        description="Minimum seconds between two polls of one generation; Runway documents 5.",
    )
    generation_timeout: float = Field(
        default=1800.0, gt=0, description="Seconds to wait for one generation to finish."
    )
    not_found_grace: float = Field(
        default=120.0,
        ge=0,
        description="Seconds during which a new generation may be unknown to the service, or any "
        "one refused by it, before the wait ends.",
    )

    require_provenance: bool = Field(
        default=False,
        description="Refuse to publish a file without a C2PA manifest. The file is kept on the "
        "machine that downloaded it.",
    )
    signing_certificate: Path | None = Field(
        default=None,
        description="PEM file with the certificate chain, with which copies are signed by C2PA.",
    )
    signing_key: Path | None = Field(
        default=None, description="PEM file with the private key of the certificate."
    )
    max_run_attempts: int = Field(
        default=5,
        ge=1,
        description="Maximum number of starts of a flow run, by retries and after crashes.",
    )
    max_in_flight: int = Field(
        default=5,
        ge=1,
        description="Maximum number of generations of a batch that are upstream at the same time.",
    )
    max_concurrent_downloads: int = Field(
        default=8,
        ge=1,
        description="Maximum number of videos of a batch that are downloaded at the same time.",
    )
    submissions_per_second: float | None = Field(
        default=None,
        gt=0,
        description="Maximum submissions of a batch per second; no limit if not set.",
    )
    max_items_with_step_tasks: int = Field(
        default=300,
        ge=0,
        description="Maximum number of items with which a batch has four task runs for each; a "
        "larger batch has one.",
    )
    items_per_task_run: int = Field(
        default=1,
        ge=1,
        description="Number of items of a larger batch that share one task run, to relieve "
        "Prefect's server.",
    )
    allowed_asset_hosts: Annotated[frozenset[str], NoDecode] = Field(
        default=frozenset(),
        description="Comma-separated hosts from which a video may be fetched at a non-public "
        "address or over plain http.",
    )
    prices: Annotated[Prices | Literal["catalogue"], NoDecode, BeforeValidator(decode_prices)] = (
        Field(
            default={},
            description='Price of a generation by model, for example {"gen3a_turbo": 0.256}, or of '
            'a second of video, for example {"gen4_aleph": "0.15/s"}. The word catalogue takes '
            "the prices of CometAPI's catalogue.",
        )
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Return the sources in their usual order, with an untrusted ``.env`` file."""
        _ = dotenv_settings
        return init_settings, env_settings, _OfThisFolder(settings_cls), file_secret_settings

    @field_validator("key", "access_token")
    @classmethod
    def _check_secret(cls, secret: SecretStr | None, its: ValidationInfo) -> SecretStr | None:
        what = "API key" if its.field_name == "key" else "access token"
        return check_secret(secret, what) if secret else secret

    _check_base_url = field_validator("base_url")(check_base_url)
    _check_asset_hosts = field_validator("allowed_asset_hosts", mode="before")(check_hosts)
