"""What a work folder tells of its run: settings, scores, training, photos, what was passed over, and what it lacks."""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pandas as pd

from landmarks.mirrors.base import SPLITS, Mirror
from landmarks.mirrors.folder import FolderMirror
from landmarks.mirrors.open import open_mirror
from landmarks.neighbours import gallery
from landmarks.neighbours.gallery import Gallery
from landmarks.report import judged
from landmarks.running.command import InputError, without_password
from landmarks.running.features_file import outline
from landmarks.running.history import COLUMNS, HISTORY
from landmarks.running.settings import BESIDE, URLS, MirrorSettings, RunSettings
from landmarks.scoring.scores import SCORERS

MAX_BYTES = 2**26  # of a table or JSON that a run leaves; training.csv of 4,000 mini-epochs has one
READERS: dict[str, Callable[[Path, Path | None], pd.DataFrame]] = {
    "recognition": judged.recognised,
    "retrieval": judged.retrieved,
}
Read = TypeVar("Read")


class Photos(NamedTuple):
    """A split of the mirror."""

    split: str
    listed: int | None  # in its table; None where the mirror is not at hand
    files: list[Path]  # features of a shard each
    embedded: int


class Run(NamedTuple):
    """A run, as its work folder and what is at hand of its mirror tell it. What is not there is empty."""

    work: Path
    settings: dict[str, dict[str, Any]]  # by section and name
    scores: dict[str, dict]  # by task: as in the metrics.json files
    start: dict[str, Any]  # how the first weights did, as in start.json
    beside: dict[str, dict]  # by task: as in the metrics.json files of the model beside, alone
    training: pd.DataFrame
    history: pd.DataFrame
    skipped: pd.DataFrame  # split, shard, name, reason
    md5: pd.DataFrame  # shard, expected, found
    photos: dict[str, Photos]  # by split
    per_landmark: pd.Series  # train photos, by landmark
    learnt: int  # landmarks
    names: dict[int, str]  # of landmarks
    gallery: Gallery | None
    judged: dict[str, pd.DataFrame]  # by task: as in `judged.recognised` and `judged.retrieved`
    solutions: dict[str, Path | None]  # by task
    mirror: FolderMirror | None  # where photos are read one by one
    remarks: list[str]  # what is not there, and why


def gather(
    run: RunSettings, source: MirrorSettings, seed: int, settings: dict[str, dict[str, Any]], given: Mapping[str, Path]
) -> Run:
    """All that a run has left in its work folder, finished or not. Nothing is downloaded, and no sample rendered.

    Args:
        seed: of the sample.
        settings: all of them, by section and name, to be shown.
        given: solutions by task, in place of the mirror's.
    """
    work, remarks = run.work, list[str]()
    beside = [run.work / BESIDE] if run.beside else []
    mirror, has_photos = _at_hand(source, work / "mirror", seed, remarks)
    solutions = {task: given.get(task) or (mirror.solution(task) if mirror else None) for task in READERS}
    kept = either(lambda: gallery.read(run)[0], None, remarks) if (work / gallery.GALLERY).exists() else None
    folders = dict.fromkeys([work, *run.folders])
    skipped = [_table(folder / "skipped.csv", remarks, ["split", "shard", "name", "reason"]) for folder in folders]
    return Run(
        work=work,
        settings={section: _without_passwords(values) for section, values in settings.items()},
        scores={task: _json(work / f"{task}.metrics.json", remarks) for task in SCORERS},
        start=_json(run.folders[0] / "start.json", remarks),
        beside={task: _json(folder / f"{task}.metrics.json", remarks) for folder in beside for task in READERS},
        training=_table(run.folders[0] / "training.csv", remarks),
        history=_history(work / HISTORY, remarks),
        skipped=pd.concat(skipped),
        md5=_table(work / "mirror/md5_mismatches.csv", remarks, ["shard", "expected", "found"]),
        photos={split: _photos(split, run.features / split, mirror, remarks) for split in SPLITS},
        per_landmark=either(lambda: _per_landmark(mirror, kept), pd.Series(dtype=int), remarks),
        learnt=len(_table(run.folders[0] / "labels.csv", remarks)),
        names=either(lambda: gallery.names(work), {}, remarks),
        gallery=kept,
        judged={task: _judged(task, work / f"{task}.csv", solutions[task], remarks) for task in READERS},
        solutions=solutions,
        mirror=mirror if has_photos else None,
        remarks=remarks,
    )


def _at_hand(source: MirrorSettings, cache: Path, seed: int, remarks: list[str]) -> tuple[FolderMirror | None, bool]:
    """The mirror as far as it is on this disk, and whether its photos are."""
    name = without_password(source.mirror)
    if source.mirror.startswith(URLS):
        remarks.append(f"Photos are not shown: the mirror {name} is at a URL, where one would cost its whole shard.")
        return (FolderMirror(cache) if cache.is_dir() else None), False
    if source.mirror == "sample" and not (cache / f"sample-{seed}").is_dir():
        remarks.append("Photos are not shown: the sample is in the work folder no more.")
        return None, False
    try:
        mirror = open_mirror(source.mirror, cache, seed)
    except InputError:
        remarks.append(f"Photos are not shown: the mirror {name} is not there, or is being written.")
        return None, False
    assert isinstance(mirror, FolderMirror)
    return mirror, True


def _history(path: Path, remarks: list[str]) -> pd.DataFrame:
    """The lines of `runs.csv` that are whole."""
    history = _table(path, remarks, COLUMNS).map(_without_password)
    return history[history["seconds"].str.fullmatch("[0-9]{1,9}")] if len(history) else history


def _judged(task: str, submission_csv: Path, solution_csv: Path | None, remarks: list[str]) -> pd.DataFrame:
    if not submission_csv.exists():
        remarks.append(f"There is no {submission_csv.name}: {task}.py has not finished here.")
        return pd.DataFrame()
    if solution_csv is None:
        remarks.append(f"No solution of {task} is at hand: nothing tells which answers are right.")
    return either(lambda: READERS[task](submission_csv, solution_csv), pd.DataFrame(), remarks)


def _photos(split: str, folder: Path, mirror: Mirror | None, remarks: list[str]) -> Photos:
    files = sorted(folder.glob("*.npz"))
    listed = either(lambda: len(mirror.ids(split)), None, []) if mirror else None
    embedded = sum(either(partial(_count, path), 0, remarks) for path in files)
    return Photos(split, listed, files, embedded)


def _count(path: Path) -> int:
    return len(outline(path).ids)


def _per_landmark(mirror: Mirror | None, kept: Gallery | None) -> pd.Series:
    """How many train photos each landmark has: in the mirror, or else among those that vote."""
    if mirror is not None:
        return mirror.train()["landmark_id"].value_counts()
    return pd.Series(kept.landmark[kept.landmark >= 0] if kept else [], dtype=int).value_counts()


def either(read: Callable[[], Read], otherwise: Read, remarks: list[str]) -> Read:
    """What `read` gives, or this and a remark where a file is not whole."""
    try:
        return read()
    except (InputError, ValueError, KeyError, TypeError, OSError, RecursionError) as error:
        remarks.append(" ".join(str(error).split())[:300])
        return otherwise


def _json(path: Path, remarks: list[str]) -> dict:
    def read() -> dict:
        with open(path, "rb") as file:
            found = json.loads(file.read(MAX_BYTES))
        if not isinstance(found, dict):
            raise ValueError(f"{path} is not what a run writes")
        return found

    return either(read, {}, remarks) if path.exists() else {}


def _table(path: Path, remarks: list[str], columns: Sequence[str] = ()) -> pd.DataFrame:
    """A CSV that a run leaves: these columns, as text, or all of it as pandas takes it; empty where it is not there."""

    def read() -> pd.DataFrame:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"{path} is too long for what a run writes")
        if not columns:
            return pd.read_csv(path)
        return pd.read_csv(path, usecols=list(columns), dtype=str, keep_default_na=False, encoding_errors="replace")

    return either(read, pd.DataFrame(), remarks) if path.exists() else pd.DataFrame()


def _without_passwords(values: dict[str, Any]) -> dict[str, Any]:
    return {name: _without_password(value) for name, value in values.items()}


def _without_password(value: Any) -> Any:
    """A setting, or a cell: a text, a list of texts, or what can have no password."""
    if isinstance(value, list):
        return list(map(_without_password, value))
    return without_password(value) if isinstance(value, str) else value
