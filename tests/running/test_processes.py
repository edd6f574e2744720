import math

import pytest

from landmarks.running import processes, threads


@pytest.mark.parametrize(("cores", "share", "worth"), [(2, math.inf, False), (16, math.inf, True), (16, 8, False)])
def test_processes_are_for_many_cores_and_not_within_an_actor(monkeypatch, cores, share, worth):
    monkeypatch.setattr(processes, "cores", lambda: cores)
    monkeypatch.setattr(threads, "share", share)
    assert processes.worth_it() == worth
