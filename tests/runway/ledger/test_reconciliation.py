# SPDX-License-Identifier: Apache-2.0
"""A verdict about an uncertain submission is given only where one explanation is left."""

from datetime import timedelta

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from prefect_cometapi.runway import Entry, State
from prefect_cometapi.runway.ledger.reconciliation import (
    Account,
    Action,
    Tolerance,
    Verdict,
    action_of,
    period_of,
    reconcile,
    window_of,
)
from prefect_cometapi.runway.ledger.resubmission import ARRIVAL_WINDOW
from prefect_cometapi.runway.models.account import AccountTask, AccountTasks

from ..factories import MOMENT, entry

S = State
MODELS = ("gen3a_turbo", "gen4_aleph")
ROUTES = ("image_to_video", "video_to_video")
TOLERANCE = Tolerance(slack=timedelta(seconds=2), delay=timedelta(seconds=120))
LATER = ARRIVAL_WINDOW.total_seconds() + 1000
OPEN = (S.CLAIMED, S.UNCERTAIN, S.WRITTEN_OFF, S.RESUBMIT_ALLOWED)


def at(seconds: float):
    """Return a time, in seconds after the beginning of the tests' world."""
    return MOMENT + timedelta(seconds=seconds)


def sent(
    key: str, begin: float, end: float, state: State = S.UNCERTAIN, model: str = MODELS[0]
) -> Entry:
    """Make an entry that was sent at a time, and whose attempt ended at another one."""
    return entry(
        state,
        idempotency_key=key,
        model=model,
        created_at=at(begin),
        claimed_at=at(begin),
        unresolved_since=at(begin),
        changed_at=at(end),
    )


def row(
    task_id: str, seconds: float | None, model: str = MODELS[0], action: str = ""
) -> AccountTask:
    """Make a row of the account's list."""
    moment = None if seconds is None else at(int(seconds))
    return AccountTask(task_id=task_id, submitted_at=moment, model=model, action=action)


def bought(task_id: str, seconds: float, model: str = MODELS[0]) -> Entry:
    """Make a purchase whose id the ledger knows."""
    known = sent(task_id, seconds, seconds + 1, S.SUBMITTED, model)
    return known.model_copy(
        update={"task_id": task_id, "submitted_at": at(seconds + 1), "unresolved_since": None}
    )


WITNESS = bought("witness", -60)


def account(
    *rows: AccountTask,
    asked: float = LATER,
    complete: bool = True,
    known: tuple[str, ...] = (),
    purchases: tuple[Entry, ...] = (WITNESS,),
    missing: bool = False,
) -> Account:
    """Make an account whose list has the rows and, unless it is missing, the known purchases."""
    ours = [row(each.task_id or "", (each.claimed_at - MOMENT).total_seconds(), each.model or "")
            for each in purchases if each.claimed_at and not missing]  # fmt: skip
    listed = AccountTasks(
        tasks=(*ours, *rows),
        is_complete=complete,
        asked_at=at(asked),
        problem=None if complete else "HTTP 500",
    )
    ids = {*known, *(each.task_id or "" for each in purchases)}
    return Account(listed, ids, purchases, MODELS, ROUTES)


def decide(entries, seen, tolerance=TOLERANCE):
    """Return the decisions by key."""
    return {made.idempotency_key: made for made in reconcile(entries, seen, tolerance)}


def test_the_only_row_that_fits_is_probably_the_generation():
    """One unknown row inside the window of one submission, and the row fits no other one."""
    made = decide([sent("a", 0, 3), sent("b", 60, 63)], account(row("task-a", 1)))
    assert made["a"].verdict is Verdict.PROBABLY_THIS
    assert made["a"].task
    assert made["a"].task.task_id == "task-a"
    assert made["b"].verdict is Verdict.NOT_ACCEPTED
    assert made["b"].task is None
    assert "task-a" in made["a"].in_words()


@pytest.mark.parametrize(
    ("entries", "seen", "reason"),
    [
        ([sent("a", 0, 3)], account(row("x", 1), row("y", 2)), "2 tasks"),
        ([sent("a", 0, 3), sent("b", 1, 4)], account(row("x", 2)), "1 other keys"),
        ([sent("a", 0, 3), sent("b", 1, 4, S.CLAIMED)], account(row("x", 2)), "1 other keys"),
        ([sent("a", 0, 3), sent("b", 1, 4, S.WRITTEN_OFF)], account(row("x", 2)), "1 other keys"),
        ([sent("a", 0, 3)], account(row("x", None), row("y", 1)), "2 tasks"),
        ([sent("a", 0, 3)], account(complete=False), "incomplete: HTTP 500"),
        ([sent("a", 0, 3)], account(row("x", 1), complete=False), "incomplete: HTTP 500"),
        ([sent("a", 0, 3)], account(missing=True), "lacks witness"),
        ([sent("a", 0, 3)], account(row("x", 1), missing=True), "lacks witness"),
        ([sent("a", 0, 3)], account(asked=100), "may list it later"),
        ([sent("a", 0, 3)], account(purchases=()), "belong to the same account"),
        ([sent("a", 0, 3)], account(row("late", 90)), "shortly after its attempt"),
    ],
)
def test_everything_else_is_undecided(entries, seen, reason):
    """Several rows or submissions, and a list that is incomplete or early, decide nothing."""
    made = decide(entries, seen)["a"]
    assert made.verdict is Verdict.UNDECIDED
    assert reason in made.reason
    assert made.task is None


def test_clocks_that_disagree_decide_nothing():
    """A known purchase that CometAPI dates outside of its own request shows that clocks differ."""
    seen = account(row("x", 1))
    moved = AccountTask(task_id="witness", submitted_at=at(-200), model=MODELS[0])
    tasks = (moved, *seen.listed.tasks[1:])
    listed = seen.listed.model_copy(update={"tasks": tasks})
    made = decide([sent("a", 0, 3)], Account(listed, seen.known_ids, seen.purchases))["a"]
    assert (made.verdict, "clocks" in made.reason) == (Verdict.UNDECIDED, True)


def test_a_row_of_another_model_or_route_does_not_fit():
    """Rows of other known models and routes are left out; other words say nothing."""
    other = account(row("x", 1, MODELS[1]), row("y", 1, MODELS[0], "VIDEO-TO-VIDEO"))
    assert decide([sent("a", 0, 3)], other)["a"].verdict is Verdict.NOT_ACCEPTED
    says_nothing = account(row("x", 1, "runway", "GENERATE"))
    assert decide([sent("a", 0, 3)], says_nothing)["a"].verdict is Verdict.PROBABLY_THIS


def test_a_list_whose_models_are_not_ours_is_compared_by_time_only():
    """If a known purchase is listed under another model, the models of the list say nothing."""
    known = bought("other", -60, MODELS[1])
    seen = account(row("x", 1, MODELS[1]), purchases=(WITNESS, known))
    tasks = tuple(
        task.model_copy(update={"model": MODELS[0]}) if task.task_id == "other" else task
        for task in seen.listed.tasks
    )
    listed = seen.listed.model_copy(update={"tasks": tasks})
    made = decide([sent("a", 0, 3)], Account(listed, seen.known_ids, seen.purchases, MODELS))
    assert made["a"].verdict is Verdict.PROBABLY_THIS


def test_a_late_row_that_is_another_generation_does_not_count():
    """A row that belongs to one later submission is no late arrival of an earlier one."""
    made = decide([sent("a", 0, 3), sent("b", 60, 63)], account(row("task-b", 61)))
    assert made["a"].verdict is Verdict.NOT_ACCEPTED
    assert made["b"].verdict is Verdict.PROBABLY_THIS


def test_an_earlier_submission_without_an_answer_widens_the_window():
    """A key that was sent twice is searched from its first submission on."""
    twice = sent("a", 300, 303).model_copy(update={"unresolved_since": at(0)})
    assert decide([twice], account(row("x", 1)))["a"].verdict is Verdict.PROBABLY_THIS
    assert decide([twice], account(row("x", 1), row("y", 301)))["a"].verdict is Verdict.UNDECIDED


def test_the_earlier_submission_of_a_known_purchase_may_own_a_row():
    """A key that was resubmitted and has an id may have been accepted before, too."""
    resubmitted = bought("known", 40).model_copy(update={"unresolved_since": at(0)})
    made = decide([sent("a", 0, 3), resubmitted], account(row("x", 1), known=("known",)))
    assert made["a"].verdict is Verdict.UNDECIDED
    assert window_of(resubmitted).end == at(45)  # the later claim, and the tolerance


def test_the_period_covers_every_window_and_purchase():
    """The list is requested from before the earliest window until after now."""
    begin, end = period_of([sent("a", 0, 3)], [WITNESS], TOLERANCE.slack, at(900))
    assert begin <= at(-64)
    assert end >= at(902)
    assert period_of([], [], TOLERANCE.slack, at(900))[0] < at(900)


@pytest.mark.parametrize(
    ("rows", "now", "action"),
    [
        ([("x", 1)], 200, Action.ADOPT),
        ([("x", 1), ("y", 1)], LATER, Action.NONE),
        ([], 200, Action.WAIT),
        ([], ARRIVAL_WINDOW.total_seconds() + 1, Action.RESUBMIT),
    ],
)
def test_a_key_is_not_freed_while_its_request_may_still_arrive(rows, now, action):
    """A generation is adopted at once; a key is freed 15 minutes after its request was sent."""
    uncertain = sent("a", 0, 3)
    made = decide([uncertain], account(*[row(*each) for each in rows]))["a"]
    assert action_of(uncertain, made, at(now)) is action


def test_a_decision_of_a_person_that_came_late_does_not_widen_the_window():
    """Nothing arrives after 15 minutes, so a later change of the state is no longer of interest."""
    allowed = sent("a", 0, 90_000, S.RESUBMIT_ALLOWED)
    assert window_of(allowed).end == at(ARRIVAL_WINDOW.total_seconds() + 5)
    assert window_of(sent("a", 0, 3, S.CLAIMED)).end is None


seconds = st.integers(0, 60)
kinds = st.sampled_from(MODELS)


@st.composite
def attempts(draw, states=OPEN, count=5):
    """Return entries with any windows, models and states."""
    made = []
    for number in range(draw(st.integers(0, count))):
        begin = draw(seconds)
        state, model = draw(st.sampled_from(states)), draw(kinds)
        made.append(sent(f"key-{number}", begin, begin + draw(st.integers(0, 8)), state, model))
    return made


@st.composite
def rows(draw):
    """Return rows with any times and models, some without either."""
    return [
        row(f"task-{number}", draw(st.none() | seconds), draw(st.sampled_from((*MODELS, ""))))
        for number in range(draw(st.integers(0, 6)))
    ]


known_ids = st.sets(st.sampled_from([f"task-{number}" for number in range(6)]))


@given(attempts(), rows(), known_ids, st.booleans(), st.floats(0, 2000), st.booleans())
def test_no_list_leads_to_an_unfounded_verdict(entries, listed, known, complete, asked, missing):
    """Whatever is listed: no known id, no id twice, nothing from an incomplete or early list."""
    seen = account(*listed, asked=asked, complete=complete, known=tuple(known), missing=missing)
    made = reconcile(entries, seen, TOLERANCE)
    assert {each.idempotency_key for each in made} == {
        each.idempotency_key for each in entries if each.state is S.UNCERTAIN
    }
    adopted = [each.task.task_id for each in made if each.task]
    assert len(adopted) == len(set(adopted))
    assert not set(adopted) & known
    assert all(each.verdict is Verdict.UNDECIDED for each in made) or (complete and not missing)
    by_key = {each.idempotency_key: each for each in entries}
    for each in made:
        ended = by_key[each.idempotency_key].changed_at
        if each.verdict is Verdict.NOT_ACCEPTED:
            assert seen.listed.asked_at >= ended + TOLERANCE.delay
            assert not each.candidates
        if each.task:
            moment = each.task.submitted_at
            assert moment is None or moment <= ended + TOLERANCE.slack


@st.composite
def worlds(draw, foreign=False):
    """Return entries, the truth about each, and the rows of the account.

    Each submission was accepted within its attempt, or never. The clock of CometAPI differs by less
    than the tolerance. With ``foreign``, another client of the account buys in the same seconds.
    """
    entries, truth, listed = draw(attempts((S.UNCERTAIN,))), {}, []
    skew = draw(st.floats(-1.5, 1.5))
    for made in entries:
        key, model = made.idempotency_key, made.model
        begin, end = ((moment - MOMENT).total_seconds() for moment in
                      (made.claimed_at, made.changed_at))  # fmt: skip
        truth[key] = None
        if draw(st.booleans()):
            truth[key] = f"of-{key}"
            listed.append(row(truth[key], draw(st.floats(begin, end)) + skew, model))
    if foreign:
        others = range(draw(st.integers(0, 3)))
        listed += [row(f"foreign-{number}", draw(seconds), draw(kinds)) for number in others]
    return entries, truth, listed


@given(worlds())
def test_a_verdict_is_right_if_nothing_else_uses_the_account(world):
    """Each adopted row is the generation, and what was not accepted was not accepted."""
    entries, truth, listed = world
    for made in reconcile(entries, account(*listed), TOLERANCE):
        if made.task:
            assert made.task.task_id == truth[made.idempotency_key]
        if made.verdict is Verdict.NOT_ACCEPTED:
            assert truth[made.idempotency_key] is None


@given(worlds(foreign=True))
def test_a_row_of_another_client_never_takes_the_place_of_ours(world):
    """A generation that was accepted is never given another row, and never called not accepted."""
    # Not excluded: a generation that was not accepted, and a foreign row that alone fits it.
    entries, truth, listed = world
    for made in reconcile(entries, account(*listed), TOLERANCE):
        if truth[made.idempotency_key]:
            assert made.verdict is not Verdict.NOT_ACCEPTED
            assert made.task is None or made.task.task_id == truth[made.idempotency_key]


@given(worlds())
def test_submissions_that_do_not_overlap_are_all_decided(world):
    """Without overlapping windows, each submission gets a verdict."""
    entries, truth, listed = world
    gap = timedelta(seconds=3)
    windows = sorted((window_of(made, TOLERANCE.slack) for made in entries), key=lambda w: w.start)
    ends = [window.end or window.latest for window in windows]
    assume(all(end + gap < after.start for end, after in zip(ends, windows[1:], strict=False)))
    for key, made in decide(entries, account(*listed)).items():
        assert made.verdict is (Verdict.PROBABLY_THIS if truth[key] else Verdict.NOT_ACCEPTED)
