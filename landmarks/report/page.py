"""A run, or several side by side, as one page: laid out by the templates beside this file, and asking for nothing."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from landmarks.report import comparison, figures, galleries, judged, words
from landmarks.report.galleries import TrainPhoto
from landmarks.report.thumbnails import picture, thumbnails
from landmarks.report.work_folder import Run, either
from landmarks.running.files import whole
from landmarks.running.recipe import Recipe

REPORT = "report.html"  # in a work folder
MOST_LETTERS = 80  # of a name
MOST_SKIPPED = 100  # that are listed
CURVES = {  # of training.csv, by what they tell
    "Loss": ("loss",),
    "Accuracy while training": ("accuracy", "arcface_accuracy"),
    "GAP of held-out photos": ("validation_gap", "nearest_photo_gap", "nearest_centre_gap"),
    "Accuracy of held-out photos": ("validation_accuracy", "nearest_photo_accuracy", "nearest_centre_accuracy"),
    "Learning rate": ("learning_rate",),
}


class Answer(NamedTuple):
    """A test photo in a gallery."""

    id: str
    said: int
    score: float
    shown: list[int]
    right: bool | None  # None: nobody knows
    photo: str | None
    nearest: TrainPhoto | None
    nearest_photo: str | None


class Query(NamedTuple):
    """A query with its first neighbours: the id of each, whether it is right, and its photo."""

    id: str
    photo: str | None
    precision: float
    relevant: int
    shown: list[int]
    found: list[tuple[str, bool, str | None]]


def write(run: Run, out: Path) -> None:
    """Write the page of a run: under 15 MB, as it shows at most 200 photos of 30 KB and 12 matches of 200 KB."""
    photos, found = run.judged["recognition"], run.judged["retrieval"]
    scored = _is_judged(run)
    threshold = judged.best_threshold(photos) if scored else None
    _render(
        "run.html", out, run=run, result=words.result(run), tiles=words.tiles(run.scores),
        commands=words.commands(run), curves=training_curves(run.training), threshold=threshold,
        per_landmark=figures.photos_per_landmark(run.per_landmark) if len(run.per_landmark) else None,
        precision=precision_curves(photos) if scored else None,
        histograms=figures.score_histograms(photos, threshold) if threshold else None,
        reliability=reliability(photos) if scored else None,
        confusions=judged.confusions(photos) if scored else [],
        named_without=judged.named_without(photos, threshold.score) if threshold else [],
        galleries=answers(run) if len(photos) else {}, queries=queries(run) if len(found) else {},
        verified=matches(run),
        defaults=Recipe().model_dump(mode="json"),
        skipped=run.skipped.head(MOST_SKIPPED).to_dict("records"),
    )  # fmt: skip


def compare(runs: Sequence[Run], out: Path) -> None:
    """Write a page with several runs side by side."""
    by_letter = {chr(ord("A") + number): run for number, run in enumerate(runs)}
    curves = {letter: judged.ranked(run.judged["recognition"]) for letter, run in by_letter.items() if _is_judged(run)}
    _render(
        "comparison.html", out, runs=by_letter, scores=comparison.scores(runs), differing=comparison.differing(runs),
        times=comparison.times(runs), precision=figures.precision_by_rank(curves) if curves else None,
    )  # fmt: skip


def _is_judged(run: Run) -> bool:
    photos = run.judged["recognition"]
    return run.solutions["recognition"] is not None and len(photos) > 0 and bool(photos["score"].notna().any())


def training_curves(training: pd.DataFrame) -> dict[str, figures.Drawn]:
    """The figures of training.csv by title, those of which it has a column of numbers."""
    numbers = training.select_dtypes("number")
    if "mini_epoch" not in numbers:
        return {}
    there = {title: [column for column in columns if column in numbers] for title, columns in CURVES.items()}
    return {
        title: figures.training_curves(numbers, columns, title, f"training-{place}")
        for place, (title, columns) in enumerate(there.items())
        if columns
    }


def precision_curves(photos: pd.DataFrame) -> figures.Drawn:
    """Precision against rank of each half that has a prediction, with its GAP."""
    by_half = {half: photos[photos["half"] == half] for half in words.HALVES}
    curves = {f"{half}, GAP {judged.gap(part):.3f}": judged.ranked(part) for half, part in by_half.items()}
    return figures.precision_by_rank({label: ranking for label, ranking in curves.items() if len(ranking)})


def reliability(photos: pd.DataFrame) -> figures.Drawn | None:
    """The reliability diagram, where scores can be probabilities."""
    bins = judged.reliability(photos)
    fits = len(bins) and bins["score"].between(0, 1).all()
    return figures.reliability(bins) if fits else None


def answers(run: Run) -> dict[str, list[Answer]]:
    """The galleries of recognised photos, with the train photo that is nearest to each."""
    ranking = judged.ranked(run.judged["recognition"])
    knows = run.solutions["recognition"] is not None
    shown = galleries.galleries(ranking, knows)
    ids = [one for some in shown.values() for one in some]
    test, train = run.photos["test"].files, run.photos["train"].files
    nothing: dict[str, TrainPhoto] = {}
    nearest = either(lambda: galleries.nearest_train_photos(ids, test, run.gallery), nothing, run.remarks)
    of_test = thumbnails(run.mirror, "test", ids, test)
    of_train = thumbnails(run.mirror, "train", [one.id for one in nearest.values()], train)

    def answer(identity: str) -> Answer:
        row, near = ranking.loc[identity], nearest.get(identity)
        right = bool(row["right"]) if knows else None
        return Answer(
            identity, int(row["landmark"]), float(row["score"]), row["shown"], right, of_test.get(identity), near,
            of_train.get(near.id) if near else None,
        )  # fmt: skip

    return {title: [answer(one) for one in some] for title, some in shown.items() if some}


def queries(run: Run) -> dict[str, list[Query]]:
    """The queries that are shown, with their first neighbours."""
    found, truth = run.judged["retrieval"], run.judged["recognition"]
    shown = galleries.queries(found, run.solutions["retrieval"] is not None)
    ids = [one for some in shown.values() for one in some]
    of_test = thumbnails(run.mirror, "test", ids, run.photos["test"].files)
    first = [one for query in ids for one in found.at[query, "first"]]
    of_index = thumbnails(run.mirror, "index", first, run.photos["index"].files)

    def query(identity: str) -> Query:
        row = found.loc[identity]
        landmarks = truth.at[identity, "shown"] if identity in truth.index else []
        neighbours = [(one, right, of_index.get(one)) for one, right in zip(row["first"], row["right"], strict=True)]
        return Query(identity, of_test.get(identity), row["precision"], row["relevant"], landmarks, neighbours)

    return {title: [query(one) for one in some] for title, some in shown.items() if some}


def matches(run: Run) -> list[tuple[str, int, str | None]]:
    """The id, landmark and picture of each photo whose matches were drawn."""
    nothing: list[tuple[str, int, Path]] = []
    drawn = either(lambda: galleries.verified(run.work), nothing, run.remarks)
    return [(identity, landmark, picture(path)) for identity, landmark, path in drawn]


def _render(template: str, out: Path, **values: Any) -> None:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {
        "digits": _digits, "minute": _minute, "score": _score, "setting": _setting, "short": _short, "time": _time,
    }  # fmt: skip
    text = environment.get_template(template).render(**values)
    with whole(out) as part:
        part.write_text(text, encoding="utf-8")


def _digits(number: object) -> str:
    return f"{number:.3f}" if isinstance(number, int | float) and number == number else "–"


def _score(score: float) -> str:
    """A score as the photos' cards have it."""
    if not 0 <= score <= 1:
        return f"{score:.3g}"
    return "< 0.001" if score < 0.001 else "> 0.999" if score > 0.999 else f"{score:.3f}"


def _setting(value: object) -> str:
    return "–" if value in ("", None) or value in ([], {}) else str(value)


def _minute(began: object) -> str:
    return _short(began)[:16].replace("T", " ")


def _short(text: object) -> str:
    line = " ".join(str(text).split())
    return line if len(line) <= MOST_LETTERS else f"{line[: MOST_LETTERS - 1]}…"


def _time(seconds: object) -> str:
    """A time as people say it."""
    count = int(float(str(seconds)))
    hours, minutes = count // 3600, count // 60 % 60
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {count % 60} s" if minutes else f"{count} s"
