# SPDX-License-Identifier: Apache-2.0
"""Prefect ``JobBlock`` for one generation.

The block holds a request and its settings. Any flow can load and trigger it.
"""

from collections.abc import Awaitable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from prefect.blocks.abstract import JobBlock, JobRun
from pydantic import ConfigDict, Field, HttpUrl, field_validator

from ..blocks.credentials import CometAPICredentials
from ..blocks.metadata import DOCUMENTATION, LOGO
from ..runway.models.generation import CompletedGeneration, GenerationResult, Submission
from ..runway.models.requests import AnyRequest, GenerationRequest
from ..runway.plain_help import PlainHelp
from .runtime.caller_arguments import GivenCredentials, GivenStorage, as_credentials, as_location
from .runtime.sync import in_async_code, run_sync

T = TypeVar("T")


def _either(work: Coroutine[Any, Any, T]) -> Any:
    """Run a coroutine in sync code and return its result; in async code return the coroutine.

    Prefect's own blocks do the same.
    """
    return work if in_async_code() else run_sync(work)


class RunwayJobRun(JobRun[GenerationResult]):
    """Run of a ``RunwayJob``: one generation, bought now or earlier.

    The plain methods are called in sync code, such as a sync flow in a notebook, and awaited in
    async code. ``await_for_completion`` and ``afetch_result`` are always awaited.

    Attributes:
        submission: The generation, with its task id and its idempotency key.
    """

    def __init__(
        self, submission: Submission, credentials: GivenCredentials, storage: GivenStorage
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

    def wait_for_completion(self) -> "CompletedNow":  # pyright: ignore[reportIncompatibleMethodOverride] -- also for sync code
        """Run ``await_for_completion`` in sync code; in async code, await the call."""
        return _either(self.await_for_completion())

    def fetch_result(self) -> "ResultNow":  # pyright: ignore[reportIncompatibleMethodOverride]
        """Run ``afetch_result`` in sync code; in async code, await the call."""
        return _either(self.afetch_result())


class RunwayJob(JobBlock, metaclass=PlainHelp):
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

    if TYPE_CHECKING:  # a mapping is validated as a request

        def __init__(
            self,
            *,
            request: GenerationRequest | Mapping[str, Any],
            credentials: GivenCredentials = None,
            storage: GivenStorage = None,
            idempotency_key: str | None = None,
        ) -> None: ...

    _load_credentials = field_validator("credentials", mode="before")(as_credentials)
    _name_storage = field_validator("storage", mode="before")(as_location)

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

    def trigger(self, *, idempotency_key: str | None = None) -> "RunNow":  # pyright: ignore[reportIncompatibleMethodOverride]
        """Run ``atrigger`` in sync code; in async code, await the call."""
        return _either(self.atrigger(idempotency_key=idempotency_key))


if TYPE_CHECKING:
    # No type says "a result in sync code and a coroutine in async code".
    class CompletedNow(CompletedGeneration, Awaitable[CompletedGeneration]):
        """Completed generation that async code awaits."""

    class ResultNow(GenerationResult, Awaitable[GenerationResult]):
        """Result that async code awaits."""

    class RunNow(RunwayJobRun, Awaitable[RunwayJobRun]):
        """Run of a job that async code awaits."""
else:
    CompletedNow, ResultNow, RunNow = CompletedGeneration, GenerationResult, RunwayJobRun


# Saved blocks, their code examples and pickles refer to the classes by this public module.
for _public in (RunwayJob, RunwayJobRun):
    _public.__module__ = "prefect_cometapi.flows"
