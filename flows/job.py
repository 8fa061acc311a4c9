# SPDX-License-Identifier: Apache-2.0
"""A generation as Prefect's ``JobBlock``: configured once, triggered in any flow."""

from collections.abc import Coroutine
from typing import Any, ClassVar, TypeVar

from prefect.blocks.abstract import JobBlock, JobRun
from pydantic import ConfigDict, Field, HttpUrl

from ..blocks.credentials import CometAPICredentials
from ..blocks.shown import DOCUMENTATION, LOGO
from ..runway.models.generation import Finished, GenerationResult, Submission
from ..runway.models.requests import ImageToVideoRequest, VideoToVideoRequest
from .runtime.sync import loop_is_running, run_sync

T = TypeVar("T")


def _either(work: Coroutine[Any, Any, T]) -> Any:
    """The result for sync code; for async code the coroutine, as Prefect's own blocks do."""
    return work if loop_is_running() else run_sync(work)


class RunwayJobRun(JobRun[GenerationResult]):
    """One generation that was bought, or found to be bought already.

    Each method can be called in sync code and awaited in async code; the name with an ``a`` is
    always awaited.

    Attributes:
        submission: What was bought, with its task id and its key.
    """

    def __init__(
        self, submission: Submission, credentials: CometAPICredentials | None, storage: str | None
    ) -> None:
        self.submission = submission
        self._credentials = credentials
        self._storage = storage

    async def await_for_completion(self) -> Finished:
        """Wait until it has ended upstream, as a task run with retries.

        Raises:
            GenerationError: It failed, was cancelled, is unknown, or did not finish in time.
        """
        from .steps.tasks import apoll_generation

        return await apoll_generation(self.submission, self._credentials)

    async def afetch_result(self) -> GenerationResult:
        """Its stored videos; they are waited for, fetched and stored where they are not yet.

        Raises:
            GenerationError: It failed, was cancelled, is unknown, or did not finish in time.
            DeliveryError: It finished, but its output could not be stored.
        """
        from .steps.delivery import deliver

        return await deliver(self.submission, self._credentials, self._storage)

    def wait_for_completion(self) -> Any:
        """``await_for_completion`` for sync code; in async code it is awaited."""
        return _either(self.await_for_completion())

    def fetch_result(self) -> Any:
        """``afetch_result`` for sync code; in async code it is awaited."""
        return _either(self.afetch_result())


class RunwayJob(JobBlock):
    """A video to be made by Runway through CometAPI.

    Attributes:
        request: What to make.
        credentials: Whose key to use.
        storage: Where the video is kept.
        key: Idempotency key.

    Example:
        Load a saved job and make its video:

        ```python
        from prefect import flow

        from prefect_cometapi.flows import RunwayJob


        @flow
        def teaser():
            run = RunwayJob.load("BLOCK_NAME").trigger()
            run.wait_for_completion()
            return run.fetch_result().videos[0].uri
        ```
    """

    _block_type_name = "Runway Job"
    _block_type_slug = "runway-job"
    _logo_url: ClassVar[HttpUrl | None] = LOGO
    _documentation_url: ClassVar[HttpUrl | None] = DOCUMENTATION

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    request: ImageToVideoRequest | VideoToVideoRequest = Field(
        title="Request", description="What to make, in the names of CometAPI's documentation."
    )
    credentials: CometAPICredentials | None = Field(
        default=None,
        title="Credentials",
        description="Block with the API key; COMETAPI_KEY where none is given.",
    )
    storage: str | None = Field(
        default=None,
        title="Storage",
        description="Folder, fsspec URL or storage block that keeps the video; COMETAPI_STORAGE "
        "where none is given.",
    )
    key: str | None = Field(
        default=None,
        title="Key",
        description="Idempotency key; where none is given, each flow run pays for one video. "
        "Outside of flows and tasks one is required.",
    )

    async def atrigger(self, *, key: str | None = None) -> RunwayJobRun:
        """Buy the generation, or attach to what its key stands for already, as a task run.

        Args:
            key: Idempotency key for this time; the block's own where none is given.

        Raises:
            NotSubmitted: It was refused, or it could not be recorded; nothing was bought.
            SubmissionUncertain: It was perhaps bought.
        """
        from .steps.delivery import check_storage
        from .steps.tasks import asubmit_generation

        await check_storage(self.storage)
        submission = await asubmit_generation(
            self.request, self.credentials, key or self.key, storage=self.storage
        )
        return RunwayJobRun(submission, self.credentials, self.storage)

    def trigger(self, *, key: str | None = None) -> Any:
        """``atrigger`` for sync code; in async code it is awaited."""
        return _either(self.atrigger(key=key))


# Saved blocks, their code examples and pickles name the public place.
for _public in (RunwayJob, RunwayJobRun):
    _public.__module__ = "prefect_cometapi.flows"
