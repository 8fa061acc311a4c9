# SPDX-License-Identifier: Apache-2.0
"""Amounts of money have one name and wording, and a new run is advised only if it helps."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_cometapi import runway
from prefect_cometapi.runway.batch.models import ItemResult, Outcome
from prefect_cometapi.runway.batch.outcomes import Again, again
from prefect_cometapi.runway.ledger.budget import EXCEEDS_LIMIT
from prefect_cometapi.runway.ledger.figures import Spending, Tally, figures, in_words

NOT_ENDED = [Outcome.WAITING, Outcome.RUNNING]


def item(outcome: Outcome, **values: object) -> ItemResult:
    return ItemResult.model_validate({"id": "a", "outcome": outcome, **values})


def test_every_figure_has_its_name_and_its_limit():
    """A dry run has no figures of a run, and no amounts of money without prices."""
    spending = Spending(seconds=2000, spent_seconds=10, max_seconds=1500, run_seconds=5)
    assert figures(spending) == {
        "bought by this run": "5 s of video",
        "bought by this batch so far": "10 of 1,500 s of video (1,490 left)",
        "estimated for all": "2,000 s of video",
    }
    assert list(figures(spending, of_run=False)) == list(figures(spending))[1:]
    assert in_words(5, 0.5, None, 0.4) == "5 s of video, 0.50 of 0.40 (0.00 left) as estimated"


@given(st.lists(st.tuples(st.integers(0, 10**6), st.none() | st.integers(0, 10**6))))
def test_what_was_refused_is_not_counted(costs):
    """Adding an amount and refunding it restores the previous figures."""
    tally = Tally(7.0, 1.0)
    for cost in costs:
        tally.add(*cost)
    for cost in costs:
        tally.refund(*cost)
    assert (tally.seconds, tally.money) == (7.0, 1.0)


@pytest.mark.parametrize(
    ("result", "use"),
    [
        (item(Outcome.STORED), Again.NOTHING),
        (item(Outcome.INVALID, error="InvalidManifest"), Again.NOTHING),
        (item(Outcome.UNCERTAIN, error="SubmissionUncertain"), Again.NOTHING),
        (item(Outcome.NOT_BOUGHT, message="2 items failed, and at most 1 may"), Again.BUYS),
        (item(Outcome.NOT_BOUGHT, message=f"{EXCEEDS_LIMIT} (0 more)"), Again.NOTHING),
        *((item(outcome), Again.BUYS) for outcome in NOT_ENDED),
        *((item(outcome, task_id="task-1"), Again.FINISHES) for outcome in NOT_ENDED),
        *(
            (item(Outcome.FAILED, error=error, task_id="task-1"), Again.NOTHING)
            for error in (
                "GenerationFailed",
                "GenerationCancelled",
                "IdempotencyKeyConflict",
                "RuntimeError",
            )
        ),
        *(
            (item(Outcome.FAILED, error=error, task_id="task-1"), Again.FINISHES)
            for error in (
                "DownloadInterrupted",
                "OutputExpired",
                "InvalidOutput",
                "StorageError",
                "StagedFileMissing",
                "GenerationTimeout",
                "GenerationNotFound",
                "ServiceUnavailable",
            )
        ),
        *(
            (item(Outcome.FAILED, error=error), Again.BUYS)
            for error in ("QuotaExceeded", "InvalidRequest", "ServiceUnavailable")
        ),
        (item(Outcome.FAILED, error="IdempotencyKeyConflict"), Again.NOTHING),
    ],
)
def test_another_run_is_advised_only_where_it_does_something(result, use):
    """A repeated run does nothing for items that failed for good, are stored or have no room."""
    assert result.error is None or hasattr(runway, result.error) or result.error == "RuntimeError"
    assert again([item(Outcome.STORED), result]) is use


def test_one_that_buys_counts_more_than_one_that_finishes():
    """The stronger advice wins: a run that buys over one that only finishes."""
    finishes = item(Outcome.FAILED, error="StorageError", task_id="task-1")
    assert again([finishes, item(Outcome.WAITING)]) is Again.BUYS
    assert again([]) is Again.NOTHING
