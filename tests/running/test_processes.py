import math
import multiprocessing
import os
import signal
from concurrent.futures import ProcessPoolExecutor

import pytest

from landmarks.running import command, processes, threads
from landmarks.running.command import InputError, Stopped


@pytest.mark.parametrize(("cores", "share", "worth"), [(2, math.inf, False), (16, math.inf, True), (16, 8, False)])
def test_processes_are_for_many_cores_and_not_within_an_actor(monkeypatch, cores, share, worth):
    monkeypatch.setattr(processes, "cores", lambda: cores)
    monkeypatch.setattr(threads, "share", share)
    assert processes.worth_it() == worth


@pytest.mark.parametrize("told", [True, False])
def test_workers_that_a_batch_system_ends_end_a_run_that_it_stops_too_and_else_are_told(monkeypatch, told):
    monkeypatch.setattr(processes, "TOLD", 0.01)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        monkeypatch.setattr(processes, "pool", lambda: pool)
        if told:
            command.stop_event.set()
        with pytest.raises(Stopped if told else InputError):
            list(processes.in_processes(os._exit, [1], ahead=2))


@pytest.mark.parametrize("name", ["SIGINT", "SIGHUP"])
def test_what_a_terminal_sends_to_all_is_not_the_workers_to_heed(name):
    if not hasattr(signal, name):
        pytest.skip(f"no {name} here")
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), processes.begin_worker) as pool:
        assert pool.submit(signal.raise_signal, getattr(signal, name)).result() is None
