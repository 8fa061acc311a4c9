# SPDX-License-Identifier: Apache-2.0
"""Prefect flows, the four tasks that they consist of, and the job block.

Each function exists twice: the plain name is for sync code, and the name with the prefix ``a`` is
for async code. Prefect builds a parameter schema for every flow when it is declared, which takes
about 20 ms. Therefore a module is loaded only when one of its names is first used.
"""

import json
from importlib import import_module
from importlib.resources import files
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .batch.flow import agenerate_batch, generate_batch
    from .batch.shard import agenerate_batch_shard, generate_batch_shard
    from .collector import Collected, CollectResult, acollect, collect
    from .generate import (
        acharacter_performance,
        afinish_generation,
        aimage_to_video,
        atext_to_image,
        avideo_to_video,
        character_performance,
        finish_generation,
        image_to_video,
        text_to_image,
        video_to_video,
    )
    from .job import RunwayJob, RunwayJobRun
    from .steps.fetch import afetch_output, fetch_output
    from .steps.persist import apersist_output, persist_output
    from .steps.poll import apoll_generation, poll_generation
    from .steps.submit import asubmit_generation, submit_generation

__all__ = [
    "CollectResult",
    "Collected",
    "RunwayJob",
    "RunwayJobRun",
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
    "submit_generation",
    "text_to_image",
    "video_to_video",
]

# A route that the table declares adds its flow and the async twin. The file is read as it is, since
# its models would add the time of their import to every `import prefect_cometapi.flows`.
_table = json.loads((files("prefect_cometapi") / "models.json").read_bytes())
_routes = {name for route in _table["routes"] for name in (route, f"a{route}")}
globals()["__all__"] = sorted({*__all__, *_routes})

_HOMES = {
    "steps.submit": {"submit_generation"},
    "steps.poll": {"poll_generation"},
    "steps.fetch": {"fetch_output"},
    "steps.persist": {"persist_output"},
    "batch.flow": {"generate_batch"},
    "batch.shard": {"generate_batch_shard"},
    "collector": {"collect", "Collected", "CollectResult"},
    "job": {"RunwayJob", "RunwayJobRun"},
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    plain = {name, name.removeprefix("a")}
    home = next((home for home, names in _HOMES.items() if names & plain), "generate")
    return getattr(import_module(f".{home}", __name__), name)


def __dir__() -> list[str]:
    return __all__
