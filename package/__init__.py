# SPDX-License-Identifier: Apache-2.0
"""Runway videos through CometAPI as Prefect flows, tasks and blocks.

Every public name can be imported from here. A module loads when one of its names is first used,
which keeps the import of the package itself light.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .blocks import (
        CometAPICredentials,
        GenerationLedger,
    )
    from .flows import (
        CollectResult,
        RunwayJob,
        RunwayJobRun,
        acollect,
        afetch_output,
        afinish_generation,
        agenerate_batch,
        aimage_to_video,
        apersist_output,
        apoll_generation,
        asubmit_generation,
        avideo_to_video,
        collect,
        fetch_output,
        finish_generation,
        generate_batch,
        image_to_video,
        persist_output,
        poll_generation,
        submit_generation,
        video_to_video,
    )
    from .runway import (
        AssetURL,
        AuthenticationError,
        BatchFailed,
        BatchResult,
        BudgetExceeded,
        CometAPIError,
        CometAPISettings,
        CompletedGeneration,
        ContentModeration,
        DeliveryError,
        DownloadInterrupted,
        Entry,
        FetchedVideo,
        Generation,
        GenerationCancelled,
        GenerationError,
        GenerationFailed,
        GenerationNotFound,
        GenerationRequest,
        GenerationResult,
        GenerationTimeout,
        IdempotencyKeyConflict,
        ImageToVideoRequest,
        InvalidManifest,
        InvalidOutput,
        InvalidRequest,
        InvalidSource,
        ItemResult,
        Ledger,
        LedgerCorrupted,
        LedgerOutdated,
        LedgerUnavailable,
        NotSubmitted,
        Outcome,
        OutputExpired,
        QuotaExceeded,
        Reference,
        RunwayClient,
        ServiceUnavailable,
        SourceUnavailable,
        SourceUnreachable,
        StagedFileMissing,
        State,
        Status,
        StorageError,
        StorageUnavailable,
        StoredVideo,
        Submission,
        SubmissionUncertain,
        TooManyRunAttempts,
        UnexpectedResponse,
        UnknownTaskId,
        VideoToVideoRequest,
    )

    __version__: str

__all__ = [
    "AssetURL",
    "AuthenticationError",
    "BatchFailed",
    "BatchResult",
    "BudgetExceeded",
    "CollectResult",
    "CometAPICredentials",
    "CometAPIError",
    "CometAPISettings",
    "CompletedGeneration",
    "ContentModeration",
    "DeliveryError",
    "DownloadInterrupted",
    "Entry",
    "FetchedVideo",
    "Generation",
    "GenerationCancelled",
    "GenerationError",
    "GenerationFailed",
    "GenerationLedger",
    "GenerationNotFound",
    "GenerationRequest",
    "GenerationResult",
    "GenerationTimeout",
    "IdempotencyKeyConflict",
    "ImageToVideoRequest",
    "InvalidManifest",
    "InvalidOutput",
    "InvalidRequest",
    "InvalidSource",
    "ItemResult",
    "Ledger",
    "LedgerCorrupted",
    "LedgerOutdated",
    "LedgerUnavailable",
    "NotSubmitted",
    "Outcome",
    "OutputExpired",
    "QuotaExceeded",
    "Reference",
    "RunwayClient",
    "RunwayJob",
    "RunwayJobRun",
    "ServiceUnavailable",
    "SourceUnavailable",
    "SourceUnreachable",
    "StagedFileMissing",
    "State",
    "Status",
    "StorageError",
    "StorageUnavailable",
    "StoredVideo",
    "Submission",
    "SubmissionUncertain",
    "TooManyRunAttempts",
    "UnexpectedResponse",
    "UnknownTaskId",
    "VideoToVideoRequest",
    "__version__",
    "acollect",
    "afetch_output",
    "afinish_generation",
    "agenerate_batch",
    "aimage_to_video",
    "apersist_output",
    "apoll_generation",
    "asubmit_generation",
    "avideo_to_video",
    "collect",
    "fetch_output",
    "finish_generation",
    "generate_batch",
    "image_to_video",
    "persist_output",
    "poll_generation",
    "submit_generation",
    "video_to_video",
]

_BLOCKS = {"CometAPICredentials", "GenerationLedger"}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return version("prefect-cometapi")
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name in _BLOCKS:
        return getattr(import_module(".blocks", __name__), name)
    flows = import_module(".flows", __name__)
    home = flows if name in flows.__all__ else import_module(".runway", __name__)
    return getattr(home, name)


def __dir__() -> list[str]:
    return __all__
