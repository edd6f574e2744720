"""What was run is noted, however it ends."""

import csv
import sys
from pathlib import Path

import pytest

import landmarks
from landmarks.running import history
from landmarks.running.command import InputError, Stopped


def rows(work: Path) -> list[dict[str, str]]:
    with open(work / history.HISTORY, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_each_run_is_a_line_with_its_command_and_versions(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/somewhere/recognition.py", "--work", "my work"])
    for _ in range(2):
        with history.noted(tmp_path):
            pass
    first, second = rows(tmp_path)
    assert first["command"] == "python recognition.py --work 'my work'"
    assert first["ended"] == second["ended"] == "finished" and int(first["seconds"]) == 0
    assert (
        first["versions"].startswith(f"landmarks {landmarks.__version__}, Python 3.") and "numpy" in first["versions"]
    )


def test_a_command_with_any_name_in_it_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["recognition.py", "--work", "caf\udce9", "--mirror", "two\nlines ü"])
    with history.noted(tmp_path):
        pass
    assert rows(tmp_path)[0]["command"] == "python recognition.py --work 'caf\\udce9' --mirror 'two\\nlines ü'"
    assert (tmp_path / history.HISTORY).read_text(encoding="utf-8").count("\n") == 2


@pytest.mark.parametrize(
    ("error", "ended"), [(Stopped("time"), "stopped"), (InputError("bad"), "refused"), (RuntimeError("bug"), "failed")]
)
def test_how_it_ended_is_noted_and_goes_on(tmp_path, error, ended):
    with pytest.raises(type(error)), history.noted(tmp_path):
        raise error
    assert [row["ended"] for row in rows(tmp_path)] == [ended]


def test_a_place_that_cannot_be_written_does_not_spoil_the_end(tmp_path):
    with history.noted(tmp_path / "absent"):
        pass
    assert not (tmp_path / "absent").exists()
