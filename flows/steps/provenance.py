# SPDX-License-Identifier: Apache-2.0
"""Refusal to publish a file without a C2PA manifest, if the settings require one.

The file is paid for, so it is kept as it was fetched: staged on this machine, where the cleaning of
staged files leaves it while its generation is not stored.
"""

import socket
from collections.abc import Sequence
from pathlib import Path

from ...runway.errors import ProvenanceMissing
from ...runway.ledger.entry import Entry, State
from ...runway.models.generation import FetchedVideo
from ..runtime.ledger_writes import write_best_effort
from ..runtime.run_context import RunContext


async def require_provenance(
    context: RunContext, entry: Entry | None, videos: Sequence[FetchedVideo]
) -> None:
    """Check that each file has a C2PA manifest, if the settings require one.

    Raises:
        ProvenanceMissing: A file has no manifest. The ledger's entry has the reason as its note.
    """
    if not context.settings.require_provenance:
        return
    lacking = next((video for video in videos if not is_proven(video)), None)
    if lacking is None:
        return
    problem = lacking.provenance and lacking.provenance.problem
    reason = problem or "the output has no C2PA manifest"
    error = ProvenanceMissing(
        f"{reason}, which COMETAPI_REQUIRE_PROVENANCE requires, so it is not published. It is "
        f"kept at {Path(lacking.path)} on the machine {socket.gethostname()}"
    )
    if entry and entry.state is State.SUCCEEDED:
        await write_best_effort(context, lambda to: to.mark_withheld(entry, error.message))
    raise error


def is_proven(video: FetchedVideo) -> bool:
    """Return True if a file has a C2PA manifest that can be read; pure."""
    return video.provenance is not None and video.provenance.found
