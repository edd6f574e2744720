import io
import sys
from types import SimpleNamespace

import pytest

from landmarks.running import progress
from landmarks.running.progress import Progress
from landmarks.running.said import size_of, time_of


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch):
    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now.seconds))
    monkeypatch.setattr(Progress, "_said", 0.0)
    return now


def work(clock, shards: int, seconds: int) -> None:
    """A step of so many shards of ten batches, where a shard takes so long."""
    for _ in Progress(range(shards), "embed", unit=" shards", mininterval=0, miniters=1):
        for _ in Progress(range(10), "images_000", unit=" batches", leave=False, mininterval=0, miniters=1):
            clock.seconds += seconds / 10


def test_a_log_gets_a_line_a_minute_and_one_at_the_end(capsys, clock):
    work(clock, shards=4, seconds=300)
    lines = capsys.readouterr().err.splitlines()
    assert 10 <= len(lines) <= 21  # of the 20 minutes
    assert all(line.isprintable() and line.startswith(("embed", "images_000")) for line in lines)
    assert lines[-1].startswith("embed: 100% 4/4")


def test_a_short_step_is_one_line_of_a_log(capsys, clock):
    work(clock, shards=12, seconds=1)
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and said.strip().isprintable()


def test_on_a_terminal_a_bar_moves(monkeypatch, clock):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    work(clock, shards=2, seconds=1)
    assert "\r" in terminal.getvalue() and "100%|" in terminal.getvalue()


def test_three_metrics_at_most_stand_beside_a_bar(capsys):
    bar = Progress(total=1)
    bar.show({"loss": 1.23456, "gap": 0.5, "accuracy": 1.0, "learning_rate": 3e-4})
    bar.update()
    bar.close()
    assert capsys.readouterr().err.rstrip().endswith("loss=1.23, gap=0.5, accuracy=1]")


def test_sizes_are_for_people():
    assert (size_of(850e6), size_of(1_234_567_890)) == ("850MB", "1.23GB")


def test_times_are_in_words():
    assert [time_of(seconds) for seconds in (0.2, 1.2, 80, 100, 7200)] == [
        "0 seconds", "1 second", "80 seconds", "2 minutes", "2.0 hours"
    ]  # fmt: skip
