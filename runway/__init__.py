# SPDX-License-Identifier: Apache-2.0
"""What CometAPI speaks: requests, replies, errors, and the client. Knows nothing of Prefect."""

from typing import TYPE_CHECKING, Any

from .batch import BatchResult, ItemResult, Outcome
from .client import RunwayClient
from .entries import Entry, State
from .errors import (
    AuthenticationError,
    BatchFailed,
    CometAPIError,
    DeliveryError,
    DownloadInterrupted,
    GenerationCancelled,
    GenerationError,
    GenerationFailed,
    GenerationNotVisible,
    GenerationTimeout,
    InvalidManifest,
    InvalidOutput,
    InvalidRequest,
    KeyConflict,
    LedgerDamaged,
    LedgerOutdated,
    LedgerUnavailable,
    NotSubmitted,
    OutputExpired,
    QuotaExceeded,
    RunGivenUp,
    ServiceUnavailable,
    StagedFileMissing,
    StorageError,
    StorageUnavailable,
    SubmissionUncertain,
    UnexpectedResponse,
)
from .generation import (
    AssetURL,
    FetchedVideo,
    Finished,
    Generation,
    GenerationResult,
    Status,
    StoredVideo,
    Submission,
)
from .requests import (
    ContentModeration,
    GenerationRequest,
    ImageToVideoRequest,
    Reference,
    VideoToVideoRequest,
)
from .settings import CometAPISettings

if TYPE_CHECKING:
    from .ledger import Ledger

__all__ = [
    "AssetURL",
    "AuthenticationError",
    "BatchFailed",
    "BatchResult",
    "CometAPIError",
    "CometAPISettings",
    "ContentModeration",
    "DeliveryError",
    "DownloadInterrupted",
    "Entry",
    "FetchedVideo",
    "Finished",
    "Generation",
    "GenerationCancelled",
    "GenerationError",
    "GenerationFailed",
    "GenerationNotVisible",
    "GenerationRequest",
    "GenerationResult",
    "GenerationTimeout",
    "ImageToVideoRequest",
    "InvalidManifest",
    "InvalidOutput",
    "InvalidRequest",
    "ItemResult",
    "KeyConflict",
    "Ledger",
    "LedgerDamaged",
    "LedgerOutdated",
    "LedgerUnavailable",
    "NotSubmitted",
    "Outcome",
    "OutputExpired",
    "QuotaExceeded",
    "Reference",
    "RunGivenUp",
    "RunwayClient",
    "ServiceUnavailable",
    "StagedFileMissing",
    "State",
    "Status",
    "StorageError",
    "StorageUnavailable",
    "StoredVideo",
    "Submission",
    "SubmissionUncertain",
    "UnexpectedResponse",
    "VideoToVideoRequest",
]


def __getattr__(name: str) -> Any:
    if name == "Ledger":  # SQLAlchemy loads when the ledger is first used
        from .ledger import Ledger

        return Ledger
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
