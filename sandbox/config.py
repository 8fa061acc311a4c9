# SPDX-License-Identifier: Apache-2.0
"""How a sandbox is to behave."""

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from .faults.plan import Fault, as_faults
from .messages.replies import ReplyShape


def _faults(given: Any) -> Any:
    return as_faults(given) if isinstance(given, list | tuple) else given


class SandboxConfig(BaseModel):
    """How a sandbox is to behave.

    Attributes:
        shapes: The shapes that replies about jobs come in. Each job has one; they take turns.
        faults: What goes wrong, as `Fault` objects or as short strings (`Fault.parse`).
        seed: Decides where faults with a rate strike.
        render_seconds: Seconds that a job takes at least. A real clip is drawn meanwhile.
        not_visible_polls: How many polls of a new job answer ``task_not_exist``.
        asset_ttl: Seconds that an output's URL is valid; asking for the task again gives a new one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    shapes: tuple[ReplyShape, ...] = Field(default=("bare",), min_length=1)
    faults: Annotated[tuple[Fault, ...], BeforeValidator(_faults)] = ()
    seed: int = 0
    render_seconds: float = Field(default=0.0, ge=0)
    not_visible_polls: int = Field(default=0, ge=0)
    asset_ttl: float = Field(default=3600.0, ge=0)
