# SPDX-License-Identifier: Apache-2.0
"""Configuration of a sandbox."""

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator

from .clips.content_credentials import is_available
from .faults.plan import Fault, as_faults
from .messages.replies import ReplyShape

ACCESS_TOKEN = "sandbox-access-token"  # noqa: S105 - it opens nothing but a sandbox
"""Access token that a sandbox requires if it is not configured."""


def _faults(given: Any) -> Any:
    return as_faults(given) if isinstance(given, list | tuple) else given


class SandboxConfig(BaseModel):
    """Configuration of a sandbox.

    Attributes:
        shapes: Shapes of the replies about jobs. Each job has one; new jobs use them in rotation.
        faults: Faults to inject, as `Fault` objects or as short strings (`Fault.parse`).
        seed: Seed that decides which requests are hit by the faults with a rate.
        render_seconds: Minimum seconds that a job takes. A real clip is rendered meanwhile.
        not_visible_polls: Number of polls of a new job that answer ``task_not_exist``.
        asset_ttl: Seconds that an output's URL is valid. Each poll of the task returns a new URL.
        access_token: Access token that the account's lists require.
        balance: US dollars of the account before the first job; ``None`` for an API key without a
            limit.
        c2pa: Whether outputs have a signed C2PA manifest. This needs the extra ``c2pa``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    shapes: tuple[ReplyShape, ...] = Field(default=("bare",), min_length=1)
    faults: Annotated[tuple[Fault, ...], BeforeValidator(_faults)] = ()
    seed: int = 0
    render_seconds: float = Field(default=0.0, ge=0)
    not_visible_polls: int = Field(default=0, ge=0)
    asset_ttl: float = Field(default=3600.0, ge=0)
    access_token: str = Field(default=ACCESS_TOKEN, min_length=1)
    balance: float | None = 100.0
    c2pa: bool = False

    @field_validator("c2pa")
    @classmethod
    def _check_c2pa(cls, wanted: bool) -> bool:
        if wanted and not is_available():
            raise ValueError("this needs the extra c2pa: pip install 'prefect-cometapi[c2pa]'")
        return wanted
