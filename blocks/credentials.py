# SPDX-License-Identifier: Apache-2.0
"""Prefect block with the CometAPI API key and the connection options."""

from typing import ClassVar, Self

import httpx
from prefect.blocks.abstract import CredentialsBlock
from pydantic import ConfigDict, Field, HttpUrl, SecretStr, field_validator

from ..runway.api.account import AccountClient
from ..runway.api.catalogue import Catalogue
from ..runway.api.client import RunwayClient
from ..runway.environment import read_settings, require_api_key
from ..runway.plain_help import PlainHelp
from ..runway.settings import (
    DEFAULT_BASE_URL,
    DEFAULT_RUNWAY_VERSION,
    RUNWAY_VERSION_PATTERN,
    CometAPISettings,
    check_base_url,
    check_secret,
)
from .metadata import DOCUMENTATION, LOGO


class CometAPICredentials(CredentialsBlock, metaclass=PlainHelp):
    """API key and connection options for Runway videos through CometAPI.

    Attributes:
        api_key: API key of CometAPI.
        access_token: Access token of the account, or None.
        runway_version: Value of the header X-Runway-Version.
        base_url: Root URL of the service, without a path.

    Example:
        Load a saved block and make a video with it:

        ```python
        from prefect_cometapi.blocks import CometAPICredentials
        from prefect_cometapi.flows import image_to_video

        credentials = CometAPICredentials.load("BLOCK_NAME")
        result = image_to_video(
            {"promptImage": "https://example.com/cat.jpg"}, credentials=credentials
        )
        ```
    """

    _block_type_name = "CometAPI Credentials"
    _block_type_slug = "cometapi-credentials"
    _logo_url: ClassVar[HttpUrl | None] = LOGO
    _documentation_url: ClassVar[HttpUrl | None] = DOCUMENTATION

    # Prefect's blocks allow extra fields, so a misspelt field would be kept silently while the
    # default of the real one applies.
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    api_key: SecretStr = Field(
        title="API key",
        description="API key from CometAPI's console. It is sent only to the base URL.",
    )
    access_token: SecretStr | None = Field(
        default=None,
        title="Access token",
        description="Access token of the account, from the personal settings of CometAPI's "
        "console. With it, the account's own tasks and charges can be listed. It is sent only to "
        "the base URL.",
    )
    runway_version: str = Field(
        default=DEFAULT_RUNWAY_VERSION,
        pattern=RUNWAY_VERSION_PATTERN,
        title="Runway version",
        description="Value of the header X-Runway-Version, which every request carries.",
    )
    base_url: str = Field(
        default=DEFAULT_BASE_URL,
        title="Base URL",
        description="Root URL of the service, without a path such as /v1.",
    )

    _check_base_url = field_validator("base_url")(check_base_url)

    @field_validator("api_key")
    @classmethod
    def _check_api_key(cls, api_key: SecretStr) -> SecretStr:
        checked = check_secret(api_key, "API key")
        if not checked.get_secret_value():
            raise ValueError("the API key is empty")
        return checked

    @field_validator("access_token")
    @classmethod
    def _check_access_token(cls, access_token: SecretStr | None) -> SecretStr | None:
        checked = check_secret(access_token or SecretStr(""), "access token")
        return checked if checked.get_secret_value() else None  # an empty field of the form

    @classmethod
    def from_settings(cls, settings: CometAPISettings | None = None) -> Self:
        """Create credentials from ``COMETAPI_KEY`` and the other settings.

        Raises:
            AuthenticationError: No API key is set.
        """
        settings = settings or read_settings()
        return cls(
            api_key=require_api_key(settings),
            access_token=settings.access_token,
            runway_version=settings.runway_version,
            base_url=settings.base_url,
        )

    @property
    def saved_as(self) -> str | None:
        """Name of the saved block as ``cometapi-credentials/name``, or None if it is not saved."""
        name = self._block_document_name
        return f"{self.get_block_type_slug()}/{name}" if name else None

    def get_client(self, transport: httpx.AsyncBaseTransport | None = None) -> RunwayClient:
        """Return a client for CometAPI's Runway routes, to use as an async context manager.

        Args:
            transport: Transport for httpx in place of the default one.
        """
        return RunwayClient(
            self.api_key,
            base_url=self.base_url,
            runway_version=self.runway_version,
            transport=transport,
        )

    def get_account(self, transport: httpx.AsyncBaseTransport | None = None) -> AccountClient:
        """Return a read-only client for the account, to use as an async context manager.

        Args:
            transport: Transport for httpx in place of the default one.
        """
        return AccountClient(
            api_key=self.api_key,
            access_token=self.access_token,
            base_url=self.base_url,
            transport=transport,
        )

    def get_catalogue(self, transport: httpx.AsyncBaseTransport | None = None) -> Catalogue:
        """Return the public catalogue of models, which is read without any secret.

        Args:
            transport: Transport for httpx in place of the default one.
        """
        return Catalogue(self.base_url, transport)
