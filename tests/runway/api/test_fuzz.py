# SPDX-License-Identifier: Apache-2.0
"""Randomly generated replies; the command ``replies.py`` runs as many as it is asked to."""

import pytest

from ...chaos.fuzz.replies import SLOWEST, fuzz


@pytest.mark.parametrize("replies", [1_000, pytest.param(10_000, marks=pytest.mark.heavy)])
async def test_thousands_of_hostile_replies_do_no_harm(replies):
    """Each reply gives a valid value or one typed error without a secret, in time."""
    found = await fuzz(replies, seed=20_261_121)
    assert found.wrong == []
    assert found.replies == replies
    assert found.slowest < SLOWEST
    kinds = {kind.partition(": ")[2] for kind in found.outcomes}
    assert {"an id", "Generation", "SubmissionUncertain", "ServiceUnavailable"} <= kinds
