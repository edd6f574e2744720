"""The result in words: what was found, in a line, beside the first weights; its figures; and how to repeat it."""

import shlex
from collections.abc import Mapping
from typing import Any, NamedTuple

import pandas as pd

from landmarks.report.work_folder import Run

HALVES = ("private", "public")  # the challenge goes by the first
TILES = (  # task, measure, what it is called and what it means
    ("recognition", "gap", "GAP", "precision over all predictions, surest first"),
    ("recognition", "top1", "top-1", "photos of a landmark that are named right"),
    ("retrieval", "map@100", "mAP@100", "index photos of the same landmark, first among 100"),
    (
        "calibration",
        "expected_calibration_error",
        "calibration error",
        "how far scores are from the part that is right",
    ),
)


class Tile(NamedTuple):
    """A measure that stands out."""

    title: str
    words: str
    private: float | None
    public: float | None


def tiles(scores: Mapping[str, Mapping[str, Any]]) -> list[Tile]:
    """The measures that stand out, those that were taken."""
    found = []
    for task, measure, title, words in TILES:
        private, public = (number(scores.get(task), half, measure) for half in HALVES)
        if private is not None or public is not None:
            found.append(Tile(title, words, private, public))
    return found


def number(scores: Mapping[str, Any] | None, half: str, measure: str) -> float | None:
    """A measure of metrics.json, if it is there."""
    value = ((scores or {}).get(half) or {}).get(measure)
    return value if isinstance(value, int | float) else None


def result(run: Run) -> list[str]:
    """What was found, in one line, and how the first weights did, in another one if that was compared."""
    photos, found = run.judged["recognition"], run.judged["retrieval"]
    half = next((half for half in HALVES if number(run.scores["recognition"], half, "gap") is not None), HALVES[0])
    gap, top1 = (number(run.scores["recognition"], half, measure) for measure in ("gap", "top1"))
    precision = number(run.scores["retrieval"], half, "map@100")
    said = []
    if gap is not None and top1 is not None:
        shown = photos[photos["half"] == half]["shown"].map(len) if len(photos) else pd.Series(dtype=int)
        of = f"{(shown > 0).sum():,} " if len(shown) else ""
        part = f"{round(top1, 3):.1%}"  # as the tables round it, 77 of 80 photos to 0.963
        said.append(f"{part} of the {of}{half} test photos that show a landmark are named right, GAP {gap:.3f}")
    if precision is not None:
        said.append(f"photos of the same landmark are found in the index with mAP@100 {precision:.3f}")
    if not said:
        answered = [f"{len(photos):,} test photos have an answer"] * (len(photos) > 0)
        answered += [f"{len(found):,} have neighbours in the index"] * (len(found) > 0)
        said = answered + ["nothing tells which are right"] if answered else ["nothing has been predicted here yet"]
    line = "; ".join(said) + "."
    return [line[0].upper() + line[1:], *first_weights(run.start), *beside(run)]


def beside(run: Run) -> list[str]:
    """What the model beside reaches alone."""
    said = []
    for task, measure, title, _ in TILES:
        figures = [(half, number(run.beside.get(task), half, measure)) for half in HALVES]
        there = [f"{half} {value:.3f}" for half, value in figures if value is not None]
        said += [f"{title} {', '.join(there)}"] * bool(there)
    return [f"The model beside, {run.settings['run']['beside']}, alone: {'; '.join(said)}."] if said else []


def first_weights(start: Mapping[str, Any]) -> list[str]:
    """How the trained net did beside its first weights, on held-out train photos; `start` is start.json."""
    try:
        return [
            f"Beside the frozen start: {start['photos']:,} held-out train photos find each other with a mean average "
            f"precision of {start['trained']:.3f}, by the first weights, whitened, {start['start']:.3f}: "
            f"{start['gain']:+.3f} ± {start['standard_error']:.3f}; {start['verdict']}."
        ]
    except (KeyError, TypeError, ValueError):
        return []


def commands(run: Run) -> list[str]:
    """The commands that repeat the run in another work folder."""
    if run.settings["run"]["models"]:
        recognition = ["--work", ",".join(run.settings["run"]["models"])]
        retrieval = recognition
    else:
        recognition, retrieval = ["--recipe", str(run.work / "recipe.toml"), "--work", "again"], ["--work", "again"]
    lines = [shlex.join(["python", "recognition.py", *recognition])]
    return lines + [shlex.join(["python", "retrieval.py", *retrieval])] * (len(run.judged["retrieval"]) > 0)
