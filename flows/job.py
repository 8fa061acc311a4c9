# SPDX-License-Identifier: Apache-2.0
"""Prefect ``JobBlock`` for one generation.

The block holds a request and its settings. Any flow can load and trigger it.
"""

from collections.abc import Coroutine
from typing import Any, ClassVar, TypeVar

from prefect.blocks.abstract import JobBlock, JobRun
from pydantic import ConfigDict, Field, HttpUrl

from ..blocks.credentials import CometAPICredentials
from ..blocks.metadata import DOCUMENTATION, LOGO
from ..runway.models.generation import CompletedGeneration, GenerationResult, Submission
from ..runway.models.requests import AnyRequest
from .runtime.sync import loop_is_running, run_sync

T = TypeVar("T")


def _either(work: Coroutine[Any, Any, T]) -> Any:
    """Run a coroutine in sync code and return its result; in async code return the coroutine.

    Prefect's own blocks do the same.
    """
    return work if loop_is_running() else run_sync(work)


class RunwayJobRun(JobRun[GenerationResult]):
    """Run of a ``RunwayJob``: one generation, bought now or earlier.

    The plain methods are called in sync code and awaited in async code. The methods with the prefix
    ``a`` are always awaited.

    Attributes:
        submission: The generation, with its task id and its idempotency key.
    """

    def __init__(
        self, submission: Submission, credentials: CometAPICredentials | None, storage: str | None
    ) -> None:
        self.submission = submission
        self._credentials = credentials
        self._storage = storage

    async def await_for_completion(self) -> CompletedGeneration:
        """Wait until the generation has succeeded, in a task run with retries.

        Raises:
            GenerationError: The generation failed, was cancelled, is unknown to the service, or
                did not finish in time.
        """
        from .steps.poll import apoll_generation

        return await apoll_generation(self.submission, self._credentials)

    async def afetch_result(self) -> GenerationResult:
        """Return the result with its stored videos.

        Videos that are not stored yet are waited for, fetched and stored.

        Raises:
            GenerationError: The generation failed, was cancelled, is unknown to the service, or
                did not finish in time.
            DeliveryError: The generation finished, but its output could not be stored.
        """
        from .steps.delivery import deliver

        return await deliver(self.submission, self._credentials, self._storage)

    def wait_for_completion(self) -> Any:
        """Run ``await_for_completion`` in sync code; in async code, await the call."""
        return _either(self.await_for_completion())

    def fetch_result(self) -> Any:
        """Run ``afetch_result`` in sync code; in async code, await the call."""
        return _either(self.afetch_result())


class RunwayJob(JobBlock):
    """Job block that makes a video with Runway through CometAPI.

    Attributes:
        request: Request to submit.
        credentials: Credentials with the API key.
        storage: Location where the video is stored.
        idempotency_key: Idempotency key.

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

    request: AnyRequest = Field(
        title="Request", description="Request to submit, with the field names of CometAPI."
    )
    credentials: CometAPICredentials | None = Field(
        default=None,
        title="Credentials",
        description="Block with the API key. Default: COMETAPI_KEY.",
    )
    storage: str | None = Field(
        default=None,
        title="Storage",
        description="Folder, fsspec URL or storage block for the video. Default: COMETAPI_STORAGE.",
    )
    idempotency_key: str | None = Field(
        default=None,
        title="Idempotency key",
        description="By default each flow run pays for one video. Required outside of flows and "
        "tasks.",
    )

    async def atrigger(self, *, idempotency_key: str | None = None) -> RunwayJobRun:
        """Buy the generation in a task run, or return the one that its idempotency key already has.

        Args:
            idempotency_key: Key for this call; defaults to the block's own.

        Raises:
            NotSubmitted: The request was refused or could not be recorded; nothing was bought.
            SubmissionUncertain: The generation was possibly charged.
        """
        from .runtime.run_context import run_context
        from .steps.delivery import check_storage
        from .steps.submit import asubmit_generation

        await check_storage(run_context(self.credentials, self.storage))
        submission = await asubmit_generation(
            self.request,
            self.credentials,
            idempotency_key or self.idempotency_key,
            storage=self.storage,
        )
        return RunwayJobRun(submission, self.credentials, self.storage)

    def trigger(self, *, idempotency_key: str | None = None) -> Any:
        """Run ``atrigger`` in sync code; in async code, await the call."""
        return _either(self.atrigger(idempotency_key=idempotency_key))


# Saved blocks, their code examples and pickles refer to the classes by this public module.
for _public in (RunwayJob, RunwayJobRun):
    _public.__module__ = "prefect_cometapi.flows"
