# SPDX-License-Identifier: Apache-2.0
"""CometAPI client with its requests, results, errors and ledger; does not depend on Prefect."""

from typing import TYPE_CHECKING, Any

from .api.client import RunwayClient
from .batch.errors import BatchFailed, InvalidManifest
from .batch.models import BatchResult, ItemResult, Outcome
from .errors import (
    AuthenticationError,
    BudgetExceeded,
    CometAPIError,
    DeliveryError,
    DownloadInterrupted,
    GenerationCancelled,
    GenerationError,
    GenerationFailed,
    GenerationNotFound,
    GenerationTimeout,
    IdempotencyKeyConflict,
    InvalidOutput,
    InvalidRequest,
    InvalidSource,
    LedgerCorrupted,
    LedgerOutdated,
    LedgerUnavailable,
    NotSubmitted,
    OutputExpired,
    QuotaExceeded,
    ServiceUnavailable,
    SourceUnavailable,
    SourceUnreachable,
    StagedFileMissing,
    StorageError,
    StorageUnavailable,
    SubmissionUncertain,
    TooManyRunAttempts,
    UnexpectedResponse,
    UnknownTaskId,
)
from .ledger.entry import Entry, State
from .models.generation import (
    AssetURL,
    CompletedGeneration,
    FetchedVideo,
    Generation,
    GenerationResult,
    Status,
    StoredVideo,
    Submission,
)
from .models.requests import (
    ROUTES,
    Character,
    CharacterPerformanceRequest,
    ContentModeration,
    GenerationRequest,
    ImageToVideoRequest,
    Keyframe,
    KeyframeRange,
    Performance,
    PositionedImage,
    Reference,
    TaggedImage,
    TextToImageRequest,
    VideoToVideoRequest,
)
from .settings import CometAPISettings

if TYPE_CHECKING:
    from .ledger.store import Ledger

__all__ = [
    "AssetURL",
    "AuthenticationError",
    "BatchFailed",
    "BatchResult",
    "BudgetExceeded",
    "Character",
    "CharacterPerformanceRequest",
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
    "Keyframe",
    "KeyframeRange",
    "Ledger",
    "LedgerCorrupted",
    "LedgerOutdated",
    "LedgerUnavailable",
    "NotSubmitted",
    "Outcome",
    "OutputExpired",
    "Performance",
    "PositionedImage",
    "QuotaExceeded",
    "Reference",
    "RunwayClient",
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
    "TaggedImage",
    "TextToImageRequest",
    "TooManyRunAttempts",
    "UnexpectedResponse",
    "UnknownTaskId",
    "VideoToVideoRequest",
]

# A route that the table declares adds the class of its requests.
_routes = {request.__name__: request for request in ROUTES.values()}
globals().update(_routes, __all__=sorted({*__all__, *_routes}))

# Stored results and pickles refer to a class by its public path, so that they stay readable when
# the class moves to another module.
for _name in __all__:
    if isinstance(_public := globals().get(_name), type):
        _public.__module__ = __name__


def __getattr__(name: str) -> Any:
    if name == "Ledger":  # SQLAlchemy is slow to import, so it waits
        from .ledger.store import Ledger

        Ledger.__module__ = __name__
        return Ledger
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
