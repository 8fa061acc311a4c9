# SPDX-License-Identifier: Apache-2.0
"""Prefect block with the location of the generation ledger."""

from typing import TYPE_CHECKING, ClassVar

from prefect.blocks.core import Block
from pydantic import ConfigDict, Field, HttpUrl, SecretStr, field_validator

from ..runway.plain_help import PlainHelp
from .metadata import DOCUMENTATION, LOGO

if TYPE_CHECKING:
    from ..runway.ledger.store import Ledger


class GenerationLedger(Block, metaclass=PlainHelp):
    """Database that records every generation that was bought or possibly charged.

    Attributes:
        url: URL of the database.

    Example:
        Load a saved block and list the latest generations:

        ```python
        import asyncio

        from prefect_cometapi.blocks import GenerationLedger

        ledger = GenerationLedger.load("BLOCK_NAME").get_ledger()
        for entry in asyncio.run(ledger.entries(limit=10)):
            print(entry.idempotency_key, entry.state, entry.task_id)
        ```
    """

    _block_type_name = "Generation Ledger"
    _block_type_slug = "generation-ledger"
    _logo_url: ClassVar[HttpUrl | None] = LOGO
    _documentation_url: ClassVar[HttpUrl | None] = DOCUMENTATION

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    url: SecretStr = Field(
        title="URL",
        description="URL of the database: postgresql://user:password@host/database for several "
        "machines, or sqlite:////folder/ledger.db for one machine.",
    )

    @field_validator("url")
    @classmethod
    def _check_url(cls, url: SecretStr) -> SecretStr:
        from ..runway.errors import LedgerUnavailable
        from ..runway.ledger.open_database import ledger_url

        try:
            ledger_url(url.get_secret_value())
        except LedgerUnavailable as error:
            raise ValueError(error.message) from None
        return url

    def get_ledger(self) -> "Ledger":
        """Return the ledger; the process shares one object per URL.

        Raises:
            LedgerUnavailable: The URL is not a valid database URL for a ledger.
        """
        from ..runway.ledger.store import get_ledger

        return get_ledger(self.url.get_secret_value())
