"""A number with its unit means one thing, and falls due exactly when it should."""

from __future__ import annotations

from fractions import Fraction

import pytest

from plugin_trainer.cadence import (
    Recurrence,
    Span,
    parse_cadence,
    parse_length,
    parse_span,
    parse_warmup,
    recurrence,
    whole_steps,
)

EVERY_UNIT = ("steps", "epochs", "%")


@pytest.mark.parametrize(
    ("text", "amount", "unit"),
    [
        ("500 steps", "500", "steps"),
        ("1 step", "1", "steps"),
        ("20_000 steps", "20000", "steps"),
        ("1 epoch", "1", "epochs"),
        ("3 epochs", "3", "epochs"),
        ("0.5 epoch", "1/2", "epochs"),
        (".25 epochs", "1/4", "epochs"),
        ("0.1 epochs", "1/10", "epochs"),
        ("10 %", "10", "%"),
        ("10%", "10", "%"),
        ("2.5 percent", "5/2", "%"),
        ("  7 Steps ", "7", "steps"),
        ("0 steps", "0", "steps"),
    ],
)
def test_a_span_is_read_exactly(text, amount, unit):
    assert parse_span(text, units=EVERY_UNIT) == Span(Fraction(amount), unit)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (500, '500 has no unit: write "500 steps" or "1 epoch" or "10 %"'),
        (True, 'true has no unit: write "500 steps" or "1 epoch" or "10 %"'),
        ([True, "x"], "[true, 'x'] has no unit: write"),
        ({"every": 5}, "a table has no unit: write"),
        ("500", '\'500\' has no unit: write "500 steps" or "1 epoch" or "10 %"'),
        ("5 hours", "'hours' in '5 hours' is not a unit: write \"500 steps\" or"),
        ("soon", "'soon' is not a number with a unit: write"),
        ("", "'' is not a number with a unit: write"),
        ("-3 steps", "'-3 steps' is not a number with a unit: write"),
        ("1e3 steps", "'1e3 steps' is not a number with a unit: write"),
        ("1.5 steps", "'1.5 steps' is not a whole number of steps"),
        ("101 %", "'101 %' is more than the whole run"),
    ],
)
def test_a_span_that_cannot_be_read_says_what_to_write(text, message):
    with pytest.raises(ValueError) as caught:
        parse_span(text, units=EVERY_UNIT)
    assert str(caught.value).startswith(message)


def test_a_unit_that_does_not_fit_is_refused_by_name():
    with pytest.raises(ValueError, match="'10 %' cannot be given in %: write \"500 steps\" or"):
        parse_length("10 %")


@pytest.mark.parametrize("text", ["0 steps", "0 epochs", "0.0 epochs"])
def test_a_length_of_nothing_is_refused(text):
    with pytest.raises(ValueError, match="is no length at all"):
        parse_length(text)


def test_a_cadence_of_nothing_is_refused_and_never_is_offered():
    with pytest.raises(ValueError, match='would fall due without end: write "never"'):
        parse_cadence("0 steps")


@pytest.mark.parametrize("text", ["never", " Never ", None])
def test_never_is_no_cadence(text):
    assert parse_cadence(text) is None
    assert recurrence(None, steps_per_epoch=10) is None


@pytest.mark.parametrize(
    "text",
    [
        "500 steps",
        "1 step",
        "1 epoch",
        "0.5 epochs",
        "0.1234567 epochs",
        "1234567.5 epochs",
        "10 %",
    ],
)
def test_a_span_written_down_reads_back_as_itself(text):
    span = parse_span(text, units=EVERY_UNIT)
    assert parse_span(str(span), units=EVERY_UNIT) == span
    assert parse_span(span, units=EVERY_UNIT) == span


def due(period, steps):
    return [step for step in range(1, steps + 1) if Recurrence(Fraction(period)).is_due(step)]


def test_whole_steps_fall_due_at_their_multiples_and_never_at_step_0():
    assert due(3, 10) == [3, 6, 9]


def test_a_fraction_of_a_step_falls_due_on_the_step_that_completes_it():
    assert due("5/2", 10) == [3, 5, 8, 10]


def test_tenths_of_an_epoch_never_drift():
    # A tenth of 7 steps in floats is due at 699 and not at 700 somewhere within a thousand epochs.
    every = recurrence(parse_cadence("0.1 epoch"), steps_per_epoch=77)
    found = [step for step in range(1, 77 * 100 + 1) if every.is_due(step)]
    assert len(found) == 1000
    assert found == [-(-77 * k // 10) for k in range(1, 1001)]
    assert all(every.is_due(77 * epoch) for epoch in range(1, 101))


def test_a_cadence_shorter_than_a_step_falls_due_at_every_step():
    every = recurrence(parse_cadence("0.01 epoch"), steps_per_epoch=5)
    assert [every.is_due(step) for step in range(1, 6)] == [True] * 5


def test_a_part_of_a_step_counts_as_one_in_a_length():
    assert whole_steps(parse_length("0.5 epochs"), steps_per_epoch=5) == 3
    assert whole_steps(parse_length("3 epochs"), steps_per_epoch=5) == 15
    assert whole_steps(parse_warmup("10 %"), steps_per_epoch=5, total_steps=15) == 2
    assert whole_steps(parse_warmup("0 %"), steps_per_epoch=5, total_steps=15) == 0


def test_epochs_need_data_of_known_length():
    with pytest.raises(ValueError, match="'2 epochs' needs training data with a known length"):
        whole_steps(parse_length("2 epochs"), steps_per_epoch=None)
    with pytest.raises(ValueError, match="'10 %' needs a run of known length"):
        whole_steps(parse_warmup("10 %"), steps_per_epoch=4)
