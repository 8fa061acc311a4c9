# SPDX-License-Identifier: Apache-2.0
"""Statements carry their values beside their text, in the spelling of each database."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_cometapi.runway.ledger.statement import (
    POSTGRESQL,
    SQLITE,
    Sql,
    all_of,
    join,
    render,
    texts_in,
)

names = st.from_regex(r"[a-z]\w{0,8}", fullmatch=True)


@given(st.lists(names, min_size=1, max_size=8))
def test_each_parameter_has_one_number(parameters):
    """A parameter that occurs twice is sent once."""
    text = ", ".join(f":{name}" for name in parameters)
    rendered = render(text, POSTGRESQL)
    assert list(rendered.names) == list(dict.fromkeys(parameters))
    numbers = [f"${rendered.names.index(name) + 1}" for name in parameters]
    assert rendered.text == ", ".join(numbers)
    assert render(text, SQLITE).text == text


def test_what_the_databases_spell_differently_is_written_once():
    """Words in braces become the words of each database."""
    text = "owner {any:owners} AND leased_until {same} :until"
    assert render(text, SQLITE).text == (
        "owner IN (SELECT value FROM json_each(:owners)) AND leased_until IS :until"
    )
    assert render(text, POSTGRESQL).text == (
        "owner = ANY(CAST($1 AS text[])) AND leased_until IS NOT DISTINCT FROM $2"
    )


def test_a_parameter_never_has_two_values():
    """Two conditions that disagree about a parameter are a mistake and never reach a database."""
    same = Sql("a = :a", {"a": 1})
    assert all_of([same, same]) == Sql("a = :a AND a = :a", {"a": 1})
    with pytest.raises(ValueError, match="parameter a has two values"):
        join(", ", [same, Sql("b = :a", {"a": 2})])


@given(st.text())
def test_no_text_but_a_word_becomes_part_of_a_statement(text):
    """A constant in a statement cannot end its quotes."""
    try:
        listed = texts_in([text])
    except ValueError:
        return
    assert listed == f"('{text}')"
    assert not {"'", " ", ";", ":"} & set(text)


def test_values_are_no_part_of_what_is_shown():
    """A value may be a prompt."""
    assert "secret" not in repr(Sql("a = :a", {"a": "secret"}))
