# SPDX-License-Identifier: Apache-2.0
"""Failed runs end with one line, and their logs hold the complete error without a stack trace."""

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prefect import flow

from prefect_cometapi import runway
from prefect_cometapi.flows import (
    aimage_to_video,
    asubmit_generation,
    generate,
    generate_batch,
    image_to_video,
)
from prefect_cometapi.flows.runtime.failures import in_one_line
from prefect_cometapi.runway import CometAPIError, GenerationFailed, InvalidRequest
from prefect_cometapi.runway.errors import SubmissionUncertain

ERRORS = [
    kind
    for kind in vars(runway).values()
    if isinstance(kind, type) and issubclass(kind, CometAPIError) and kind.__name__ != "BatchFailed"
]


@given(st.sampled_from(ERRORS), st.text(max_size=80))
def test_a_state_is_one_line_with_the_type_the_money_and_the_next_step(kind, message):
    """The message of a state is one line with the error, the money and the next step."""
    error = kind(message)
    text = in_one_line(error)
    assert text.isprintable() or not message.isprintable()
    assert not {"\n", "\r"} & set(text)
    assert text.startswith(f"{kind.__name__}:")
    assert "Generation: " not in text.removeprefix(f"{kind.__name__}: {message}")
    assert " ".join(error.money.split()) in text
    assert " ".join(error.hint().split()) in text


def test_a_state_names_the_generation_before_the_money():
    """A person who reads only the state finds the generation in the ledger and at CometAPI."""
    error = GenerationFailed("it failed").with_context(idempotency_key="sku-17", task_id="task-1")
    text = in_one_line(error)
    assert "failed. Generation: idempotency key sku-17, task id task-1. Money: " in text
    assert text.count("Generation: ") == 1
    unnamed = in_one_line(SubmissionUncertain("no answer").with_context(idempotency_key="sku-17"))
    assert "Generation: idempotency key sku-17. Money: " in unnamed
    signed = InvalidRequest("no").with_context(idempotency_key="https://a.example/b?sig=canary")
    assert "canary" not in in_one_line(signed)


@pytest.mark.server
def test_a_failed_run_shows_one_line_and_logs_the_advice(prefect_server, sandbox, history, image):
    """The state is one line; the log has the advice once, no stack and no escaped line break."""
    sandbox.add_fault("create:failed")
    state = image_to_video(image, return_state=True)
    assert state.is_failed()
    assert state.message
    assert state.message.startswith("GenerationFailed: the generation failed")
    assert ". Generation: idempotency key " in state.message
    assert f"task id {sandbox.accepted[0].task_id}. Money: " in state.message
    assert "Money: accepted, then failed" in state.message
    assert "Next: change the image or the prompt" in state.message
    assert "\n" not in state.message
    lines = history.logs(state.state_details.flow_run_id, until="Finished in state Failed('Gen")
    text = "\n".join(lines)
    assert text.count("Next: ") == text.count("Generation: ") == 1
    assert "Traceback" not in text
    assert "  File " not in text
    assert "\\n" not in text


@pytest.mark.server
async def test_the_error_that_a_caller_gets_is_the_original(prefect_server, sandbox, image):
    """The flow and its async twin raise the error with its ids and its complete text."""
    sandbox.add_fault("create:reset-after")
    with pytest.raises(SubmissionUncertain) as caught:
        await aimage_to_video(image, idempotency_key="mine")
    assert caught.value.idempotency_key == "mine"
    assert "\nNext: " in str(caught.value)


@pytest.mark.server
def test_a_failed_batch_shows_one_line_and_keeps_its_result(prefect_server, sandbox, image):
    """A batch that fails ends with a state of one line, and its error holds the result."""
    sandbox.add_fault("create:invalid-request:times=9")
    state = generate_batch([image], return_state=True)
    assert state.message
    assert state.message.startswith("BatchFailed: 1 failed")
    assert "\n" not in state.message
    error = state.result(raise_on_failure=False)
    assert isinstance(error, runway.BatchFailed)
    assert error.result
    assert error.result.failed == 1


@pytest.mark.server
def test_a_retried_run_fails_first_and_then_stores(prefect_server, sandbox, image):
    """Prefect retries a flow whose run failed, as for any other error."""
    sandbox.add_fault("create:invalid-request")
    result = image_to_video.with_options(retries=1)(image)
    assert len(result.videos) == 1
    assert len(sandbox.accepted) == 1


@pytest.mark.server
def test_the_last_error_of_a_repeated_run_is_the_one_that_is_raised(
    prefect_server, sandbox, image, monkeypatch
):
    """A run that fails in two ways within one process raises the error of its last attempt."""
    attempts: list[int] = []

    async def broken_at_first(*arguments, **options):
        attempts.append(1)
        if len(attempts) == 1:
            raise KeyError("ours")
        return await asubmit_generation(*arguments, **options)

    monkeypatch.setattr(generate, "asubmit_generation", broken_at_first)
    sandbox.add_fault("create:invalid-request")
    with pytest.raises(InvalidRequest):
        image_to_video.with_options(retries=1)(image)
    assert len(attempts) == 2


@pytest.mark.server
def test_an_unexpected_error_ends_the_run_as_in_any_flow(
    prefect_server, sandbox, history, image, monkeypatch
):
    """The state and the log of an unexpected error are those of Prefect, with its stack trace."""

    async def broken(*_arguments, **_options):
        raise KeyError("ours")

    monkeypatch.setattr(generate, "asubmit_generation", broken)
    state = image_to_video(image, return_state=True)
    assert state.message == "Flow run encountered an exception: KeyError: 'ours'"
    with pytest.raises(KeyError):
        state.result()
    lines = history.logs(state.state_details.flow_run_id, until="Finished in state Failed(")
    assert any("Traceback (most recent call last)" in line for line in lines)


@pytest.mark.server
def test_a_flow_around_it_logs_the_lines_of_the_user(prefect_server, sandbox, image, caplog):
    """The log of a user's flow names the line of its call, and no line of the packages below."""
    sandbox.add_fault("create:failed")

    @flow
    def nightly():
        return image_to_video(image)

    with caplog.at_level(logging.ERROR), pytest.raises(GenerationFailed):
        nightly()
    (reported,) = [
        record
        for record in caplog.records
        if record.getMessage().startswith("Encountered exception during execution")
    ]
    shown = logging.Formatter().format(reported)
    assert "return image_to_video(image)" in shown
    assert shown.count("  File ") == 1


def test_the_trace_of_any_other_error_is_kept(caplog):
    """An unexpected exception keeps its stack trace in the log."""
    log = logging.getLogger("prefect.flow_runs")
    for error in (KeyError("ours"), InvalidRequest("no cats")):
        try:
            raise error
        except Exception:
            log.exception("it failed", extra={"send_to_api": False})
    shown = [logging.Formatter().format(record) for record in caplog.records]
    assert "Traceback (most recent call last)" in shown[0]
    assert "Traceback" not in shown[1]
