# SPDX-License-Identifier: Apache-2.0
"""Runway videos through CometAPI as Prefect flows, tasks and blocks.

Every public name can be imported from here. A module loads when one of its names is first used,
which keeps the import of the package itself light.
"""

import json
from importlib import import_module
from importlib.metadata import version
from importlib.resources import files
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
        acharacter_performance,
        acollect,
        afetch_output,
        afinish_generation,
        agenerate_batch,
        agenerate_batch_shard,
        aimage_to_video,
        apersist_output,
        apoll_generation,
        asubmit_generation,
        atext_to_image,
        avideo_to_video,
        character_performance,
        collect,
        fetch_output,
        finish_generation,
        generate_batch,
        generate_batch_shard,
        image_to_video,
        persist_output,
        poll_generation,
        submit_generation,
        text_to_image,
        video_to_video,
    )
    from .runway import (
        AssetURL,
        AuthenticationError,
        BatchFailed,
        BatchResult,
        BudgetExceeded,
        Character,
        CharacterPerformanceRequest,
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
        InvalidEnvironment,
        InvalidManifest,
        InvalidOutput,
        InvalidRequest,
        InvalidSource,
        ItemResult,
        Keyframe,
        KeyframeRange,
        Ledger,
        LedgerCorrupted,
        LedgerOutdated,
        LedgerUnavailable,
        NotSubmitted,
        Outcome,
        OutputExpired,
        Performance,
        PositionedImage,
        Provenance,
        ProvenanceMissing,
        QuotaExceeded,
        Reference,
        RunwayClient,
        ServiceUnavailable,
        SigningError,
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
        TaggedImage,
        TextToImageRequest,
        TooManyRunAttempts,
        UnexpectedResponse,
        UnknownTaskId,
        Verification,
        VideoToVideoRequest,
        sign_copy,
        verify_provenance,
    )

    __version__: str

__all__ = [
    "AssetURL",
    "AuthenticationError",
    "BatchFailed",
    "BatchResult",
    "BudgetExceeded",
    "Character",
    "CharacterPerformanceRequest",
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
    "InvalidEnvironment",
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
    "Provenance",
    "ProvenanceMissing",
    "QuotaExceeded",
    "Reference",
    "RunwayClient",
    "RunwayJob",
    "RunwayJobRun",
    "ServiceUnavailable",
    "SigningError",
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
    "Verification",
    "VideoToVideoRequest",
    "__version__",
    "acharacter_performance",
    "acollect",
    "afetch_output",
    "afinish_generation",
    "agenerate_batch",
    "agenerate_batch_shard",
    "aimage_to_video",
    "apersist_output",
    "apoll_generation",
    "asubmit_generation",
    "atext_to_image",
    "avideo_to_video",
    "character_performance",
    "collect",
    "fetch_output",
    "finish_generation",
    "generate_batch",
    "generate_batch_shard",
    "image_to_video",
    "persist_output",
    "poll_generation",
    "sign_copy",
    "submit_generation",
    "text_to_image",
    "verify_provenance",
    "video_to_video",
]

# A route that the table of models declares adds its two flows and the class of its requests. The
# table is read here, because the modules that know it are slow to import.
_routes = json.loads((files(__name__) / "models.json").read_text(encoding="utf-8"))["routes"]
_names = {name for route, its in _routes.items() for name in (route, f"a{route}", its["request"])}
globals()["__all__"] = sorted({*__all__, *_names})

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
