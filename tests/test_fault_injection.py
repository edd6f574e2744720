"""The short form of benchmarks/faults.py: a handful of its faults, which its long form injects by the hundred."""

from itertools import islice

import pytest

from benchmarks import faults


@pytest.mark.parametrize(
    "kind, recipe, times",
    [("kill", "bottleneck", 2), ("disk", "triplet", 2), ("every", "frozen", 2), ("server", "arcface", 1)],
)
def test_a_run_ends_with_the_same_bytes_or_one_clear_line(kind, recipe, times, tmp_path):
    trials = list(islice(faults.inject(kind, recipe, times, 0, tmp_path), times))
    assert len(trials) == times
    assert not [trial for trial in trials if trial[1] == "bad"]
