from itertools import islice

import pandas as pd
import pytest

from landmarks.local_features import rounds
from landmarks.local_features.rounds import by_gain, compare_in_rounds
from landmarks.running import command

COUNTS = {f"photo{number:03d}": [number % 5, number % 7, number % 3] for number in range(200)}
CANDIDATES = {photo: [f"{photo}-{place}" for place in range(3)] for photo in COUNTS}


class Clock:
    """A comparison that takes so many seconds of an invented clock: a photo, and a round."""

    def __init__(self, monkeypatch, each: float = 1.0, fixed: float = 0.0):
        self.now, self.each, self.fixed = 0.0, each, fixed
        self.rounds: list[list[str]] = []
        monkeypatch.setattr(rounds.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(rounds, "FIRST", 8)
        monkeypatch.setattr(rounds, "LEAST", 2)

    def __call__(self, some):
        self.rounds.append(list(some))
        self.now += self.fixed * bool(some)

        def counts():
            for photo in some:
                self.now += self.each
                yield photo, COUNTS[photo]

        return some, counts()

    @property
    def compared(self) -> list[str]:
        return [photo for some in self.rounds for photo in some]


def expected(photos):
    return {photo: (max(COUNTS[photo]), CANDIDATES[photo][COUNTS[photo].index(max(COUNTS[photo]))]) for photo in photos}


def said(rows):
    return {photo: (row.inliers, row.match) for photo, row in rows.items()}


def test_the_highest_scores_come_first_and_equal_ones_in_their_order():
    assert by_gain(pd.Series({"a": 0.2, "b": 0.9, "c": -1.0, "d": 0.9})) == ["b", "d", "a", "c"]


def test_without_a_budget_all_are_one_round_and_what_is_known_is_not_done_again(tmp_path, monkeypatch):
    clock, path = Clock(monkeypatch), tmp_path / "compared.csv"
    found = compare_in_rounds(CANDIDATES, "one", path, clock)
    assert said(found) == expected(CANDIDATES) and clock.rounds == [list(CANDIDATES)]
    assert sum(row.seconds for row in found.values()) == pytest.approx(clock.now)

    again = Clock(monkeypatch)
    assert compare_in_rounds(CANDIDATES, "one", path, again) == found and not again.compared
    changed = CANDIDATES | {"photo003": ["other", "photo003-1", "photo003-2"]}
    compare_in_rounds(changed, "one", path, again)
    assert again.compared == ["photo003"]
    compare_in_rounds(dict(list(CANDIDATES.items())[:3]), "two", path, again)  # as by another model
    assert again.compared[1:] == ["photo000", "photo001", "photo002"]


def test_a_stopped_comparison_goes_on_where_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(rounds, "KEPT_EVERY", 10)
    clock, path = Clock(monkeypatch), tmp_path / "compared.csv"

    def stopping(some):
        _, counts = clock(some)

        def until_asked():
            yield from islice(counts, 25)
            command.stop_event.set()
            command.check_stop()

        return some, until_asked()

    with pytest.raises(command.Stopped):
        compare_in_rounds(CANDIDATES, "", path, stopping)
    command.stop_event.clear()
    with open(path, "a") as file:
        file.write("photo100,1,2")  # as a kill leaves it
    again = Clock(monkeypatch)
    assert said(compare_in_rounds(CANDIDATES, "", path, again)) == expected(CANDIDATES)
    assert again.compared == list(CANDIDATES)[20:]


@pytest.mark.parametrize("fixed", [0.0, 10.0])
def test_a_budget_is_used_and_kept_and_the_first_photos_come_first(tmp_path, monkeypatch, fixed):
    clock, path = Clock(monkeypatch, fixed=fixed), tmp_path / "compared.csv"
    found = compare_in_rounds(CANDIDATES, "", path, clock, budget=120)
    assert list(found) == clock.compared == list(CANDIDATES)[: len(found)]
    assert 60 < clock.now <= 120
    assert len(clock.rounds[0]) == 8 and not clock.rounds[-1]
    assert said(found) == expected(found)

    after = Clock(monkeypatch, fixed=fixed)
    same = compare_in_rounds(CANDIDATES, "", path, after, budget=120)
    assert after.now <= 120 - clock.now + 8 + 2 * fixed  # no more than a first round beyond what was left
    more = compare_in_rounds(CANDIDATES, "", path, after, budget=10_000)
    assert said(more) == expected(CANDIDATES) and set(found) <= set(same) <= set(more)
    assert not set(after.compared) & set(found)


def test_damaged_rows_are_made_again(tmp_path, monkeypatch):
    path = tmp_path / "compared.csv"
    compare_in_rounds(CANDIDATES, "", path, Clock(monkeypatch))
    lines = path.read_text().splitlines(keepends=True)
    lines[1], lines[2], lines[3] = "photo000,1\n", lines[2].replace(",", ",x", 1), "\0\n"
    path.write_text("".join(lines))
    again = Clock(monkeypatch)
    assert said(compare_in_rounds(CANDIDATES, "", path, again)) == expected(CANDIDATES)
    assert again.compared == ["photo000", "photo001", "photo002"]
