# SPDX-License-Identifier: Apache-2.0
"""Annotated parameters of the flows; Prefect shows the descriptions in the form of its UI."""

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from ..blocks.credentials import CometAPICredentials
from ..runway.models.keys import MAX_KEY_LENGTH, check_key, check_task_id
from .runtime.caller_arguments import GivenCredentials, GivenStorage, as_credentials, as_location

REQUEST = Field(description="Request to submit.")
"""Description of the request of a route."""

if TYPE_CHECKING:
    Credentials = GivenCredentials
    Location = GivenStorage
    _Wait = bool | Literal["suspend"]
else:
    # A form shows a list of values as one choice, and a union as a switch between types.
    _Wait = Literal[True, "suspend", False]
    Credentials = Annotated[
        CometAPICredentials | str | None,
        BeforeValidator(as_credentials),
        Field(description="Block with the API key, or its name. Default: COMETAPI_KEY."),
    ]
    Location = Annotated[
        str | None,
        BeforeValidator(as_location),
        Field(
            description="Folder, fsspec URL or storage block (type-slug/name) for the video. "
            "Default: COMETAPI_STORAGE."
        ),
    ]
_CheckedId = Annotated[str, Field(min_length=1), AfterValidator(check_task_id)]
TaskId = Annotated[_CheckedId, Field(description="Task id of the generation at CometAPI.")]
AdoptedTaskId = Annotated[
    _CheckedId | None,
    Field(
        description="Task id of a generation that was bought elsewhere, such as in a console or by "
        "a lost run. The flow finishes it and buys nothing."
    ),
]
Wait = Annotated[
    _Wait,
    Field(
        description="Wait for the video. If false, the run ends after the submission, and the flow "
        "collect finishes the generation. With suspend, the run leaves its process until collect "
        "resumes it."
    ),
]
Variation = Annotated[
    int,
    Field(
        ge=1,
        description="Number of this video among several for the same request in one run. 2 buys a "
        "second one.",
    ),
]
_CheckedKey = Annotated[str, Field(max_length=MAX_KEY_LENGTH), AfterValidator(check_key)]
IdempotencyKey = Annotated[
    _CheckedKey | None,
    Field(
        description="Idempotency key. By default a run pays for a request once, however often the "
        "run is retried. A key of your own also applies across runs."
    ),
]
