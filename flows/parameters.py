# SPDX-License-Identifier: Apache-2.0
"""Annotated parameters of the flows; Prefect shows the descriptions in the form of its UI."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from ..blocks.credentials import CometAPICredentials
from ..runway.models.keys import MAX_KEY_LENGTH, check_key, check_task_id
from ..runway.models.requests import ImageToVideoRequest, VideoToVideoRequest

ImageRequest = Annotated[ImageToVideoRequest, Field(description="What to make.")]
VideoRequest = Annotated[VideoToVideoRequest, Field(description="What to make.")]
Credentials = Annotated[
    CometAPICredentials | None,
    Field(description="Block with the API key; COMETAPI_KEY where none is given."),
]
Location = Annotated[
    str | None,
    Field(
        description="Folder, fsspec URL or storage block (type-slug/name) that keeps the video; "
        "COMETAPI_STORAGE where none is given."
    ),
]
_CheckedId = Annotated[str, Field(min_length=1), AfterValidator(check_task_id)]
TaskId = Annotated[_CheckedId, Field(description="Id that CometAPI gave the generation.")]
AdoptedTaskId = Annotated[
    _CheckedId | None,
    Field(
        description="Id of a generation that was bought elsewhere (a console, a lost run): it is "
        "finished, and nothing is bought."
    ),
]
Wait = Annotated[
    bool | Literal["suspend"],
    Field(
        description="Whether to wait for the video. If not, the run ends once it is submitted, "
        "and the flow collect finishes it. With suspend it leaves its process meanwhile, and "
        "collect resumes it."
    ),
]
Variation = Annotated[
    int,
    Field(
        ge=1,
        description="Which of several videos of the same request in the same run this is: 2 buys "
        "a second one.",
    ),
]
_CheckedKey = Annotated[str, Field(max_length=MAX_KEY_LENGTH), AfterValidator(check_key)]
IdempotencyKey = Annotated[
    _CheckedKey | None,
    Field(
        description="Idempotency key. Where none is given, this run pays for this request once, "
        "however often it is retried; a key of your own holds across runs."
    ),
]
