# SPDX-License-Identifier: Apache-2.0
"""Randomly generated replies; the nightly job runs a hundred thousand of them."""

import pytest

from ...chaos.fuzz.replies import SLOWEST, fuzz


@pytest.mark.slow
async def test_ten_thousand_hostile_replies_do_no_harm():
    """Each reply gives a valid value or one typed error without a secret, in time."""
    found = await fuzz(10_000, seed=20_261_121)
    assert found.wrong == []
    assert found.replies == 10_000
    assert found.slowest < SLOWEST
    kinds = {kind.partition(": ")[2] for kind in found.outcomes}
    assert {"an id", "Generation", "SubmissionUncertain", "ServiceUnavailable"} <= kinds
