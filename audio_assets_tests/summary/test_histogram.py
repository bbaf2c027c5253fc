"""Counting into bins with round edges."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audio_assets.summary.histogram import MAX_BINS, histogram, time_unit

LENGTHS_S = st.just(0.0) | st.floats(1e-3, 1e6)


@given(st.lists(LENGTHS_S, min_size=1, max_size=200))
def test_every_value_is_counted_once(values: list[float]):
    bins = histogram(values)

    assert bins.total == len(values)
    assert len(bins.edges) == len(bins.counts) + 1 <= MAX_BINS + 2
    assert bins.edges[0] == 0
    assert bins.open_ended or bins.edges[-1] >= max(values) * (1 - 1e-9)


@given(st.lists(st.integers(0, 5000), min_size=1, max_size=200))
def test_counts_fall_into_bins_of_whole_numbers(values: list[int]):
    bins = histogram(values, whole=True)

    assert all(edge == int(edge) for edge in bins.edges)
    for i, count in enumerate(bins.counts[:-1]):
        assert count == sum(bins.edges[i] <= v < bins.edges[i + 1] for v in values)


def test_edges_are_round():
    assert histogram([0.3, 7.1, 13.9, 8.2]).edges == (0.0, 5.0, 10.0, 15.0)


def test_one_long_recording_does_not_squeeze_the_others():
    bins = histogram([*range(1, 31), 7200])

    assert bins.open_ended
    assert bins.edges[-1] <= 40
    assert bins.label(len(bins.counts) - 1).startswith("≥ ")


@pytest.mark.parametrize("whole", [False, True])
def test_the_open_bin_holds_nothing_but_what_lies_far_out(whole: bool):
    bins = histogram([4] * 35 + [400_000], whole=whole)

    assert bins.open_ended
    assert bins.counts[-1] == 1
    assert bins.total == 36


def test_a_handful_of_values_is_shown_to_scale():
    assert not histogram([1, 2, 3, 600]).open_ended


def test_labels_name_the_values_of_a_bin():
    assert histogram([0, 1, 2], whole=True).label(1) == "1"
    assert histogram([3.0, 9.0]).label(1) == "2–4"


def test_nothing_to_count():
    assert histogram([]).total == 0
    assert histogram([math.nan, math.inf]).total == 0


def test_given_limits_hold():
    bins = histogram([0.5, 0.9], limits=(0.0, 1.0))

    assert (bins.edges[0], bins.edges[-1]) == (0.0, 1.0)


@pytest.mark.parametrize(("seconds", "unit"), [([], "s"), ([4, 60], "s"), ([600, 900], "min"), ([3600 * 5], "h")])
def test_lengths_are_in_the_unit_that_reads_best(seconds: list[float], unit: str):
    assert time_unit(seconds)[0] == unit
