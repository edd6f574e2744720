"""An index that grows: photos that are added to a finished work folder, found and recognised by without training.

A photo of a known landmark votes on the landmark of single photos, and of index photos when neighbours are re-ranked;
any photo is found among those of the index. The features in `WORK/added/added.npz` are those of the run's model or
models, as `ensemble.embed` would write them. They may be of more photos than the table lists (`mirrors/added.py`), when
a command was stopped; never, for long, of less.

What was measured stays as it was: recognition.csv, its scores and its calibration are made without these photos, which
may be test photos, or of landmarks that its mirror does not know.
"""

from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from landmarks.mirrors import added
from landmarks.mirrors.added import ADDED
from landmarks.mirrors.build import printable, record_failures
from landmarks.mirrors.summary import kinds
from landmarks.mirrors.survey import survey_more
from landmarks.neighbours import ensemble, gallery
from landmarks.neighbours.ensemble import Embedder, Member
from landmarks.neighbours.gallery import Gallery
from landmarks.running import features_file
from landmarks.running.answer_settings import RecognitionSettings
from landmarks.running.command import InputError
from landmarks.running.digest import digest
from landmarks.running.features_file import Features, concatenate, is_whole, load_features, save_features, take
from landmarks.running.settings import EmbeddingSettings, RunSettings

AT_ONCE = 1000  # photos, after which what is embedded is kept


class Added(NamedTuple):
    """The photos that were added, but for those that could not be read."""

    path: Path  # the features file
    features: Features
    landmark: np.ndarray  # (N,) int64: of each; -1 where none is known

    def voters(self) -> tuple[Features, np.ndarray]:
        """The photos of known landmarks, and these."""
        known = self.landmark >= 0
        return take(self.features, known), self.landmark[known]

    def centres(self) -> tuple[Features, np.ndarray]:
        """The normalised mean embedding of each landmark's added photos, and the landmarks, ascending.

        A landmark that has a centre already gets a second one: what it has learnt is left as it is.
        """
        photos, landmark = self.voters()
        landmarks, row = np.unique(landmark, return_inverse=True)
        sums = np.zeros((len(landmarks), photos.embeddings.shape[1]), np.float32)
        np.add.at(sums, row, photos.embeddings.astype(np.float32))
        sums /= np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), np.finfo(np.float32).tiny)
        ids = np.array([f"{ADDED}-{number}" for number in landmarks], dtype=str)
        return Features(ids, sums.astype(np.float16), landmarks if photos.landmark is not None else None), landmarks


def add(
    run: RunSettings,
    embedding: EmbeddingSettings,
    recognition: RecognitionSettings,
    kept: Gallery,
    folder: Path,
    nested: bool,
) -> None:
    """Add the photos in a folder to the index, and those in its folders, one per landmark, to the gallery too.

    A folder that is named as a landmark, or after its number, is of this landmark; any other is a new one. Copies of
    photos that were added before are passed over.

    Args:
        kept: what the run left to recognise by.

    Raises:
        InputError: there is no photo; the run names landmarks by what the model has learnt; or two have such a name.
    """
    folder = folder.resolve()
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder")
    if run.work.resolve().is_relative_to(folder):
        raise InputError(f"{run.work} lies in {folder}, where photos are looked for; give a folder of photos alone")
    before = added.read(run.work)
    known = {**names(run.work), **gallery.names(run.work)}
    taken = {*kept.landmark[kept.landmark >= 0].tolist(), *before["landmark_id"].dropna().tolist()}

    def number(new: list[str]) -> dict[str, int]:
        if new and (recognition.recognizer == "head" or recognition.blend):
            raise InputError(
                f"{run.work} names landmarks by the model's head, which knows those that it has learnt alone: run "
                "recognition.py with --recognizer neighbours --blend 0 first; or put the photos in the folder itself, "
                "to be found in the index and no more"
            )
        return _numbers(new, known, taken)

    found = survey_more(folder, nested, before, number)
    photos = found.photos
    ids, failures = added.take_in(run.work, photos["url"])
    photos = photos.assign(id=photos["url"].map(ids), category=photos["landmark_id"].map({**found.categories, **known}))
    photos = photos.dropna(subset="id").fillna({"category": ""})
    path = _embedded(run, embedding, [*before["id"], *photos["id"]])
    seen = photos["id"].isin(features_file.ids_in([path] if path.exists() else []))
    failures += [(row.id, row.url, "it could not be embedded (skipped.csv)") for row in photos[~seen].itertuples()]
    table = pd.concat([before, photos.loc[seen, before.columns]]) if len(before) else photos.loc[seen, before.columns]
    if seen.any():
        added.write(run.work, table)
    _tidy(run.work, table)
    new = set(table["landmark_id"].dropna()) - taken
    print(f"+{_counted(int(seen.sum()), 'photo')}, {_counted(len(new), 'landmark')}")
    if passed_over := [*found.passed_over, *failures]:
        record_failures(run.work / ADDED, passed_over)
        reasons = ", ".join(f"{count:,} {kind}" for kind, count in kinds(reason for _, _, reason in passed_over))
        print(f"passed over, as {run.work / ADDED / 'failed.csv'} says: {reasons}")


def remove(work: Path, ids: Collection[str], landmarks: Collection[str], everything: bool) -> None:
    """Take added photos out again: these, those of landmarks given by name or number, or all of them."""
    try:
        before = added.read(work)
    except InputError:
        if not everything:
            raise
        (work / ADDED / "photos.csv").unlink()  # damaged: nobody can tell how many there were
        before = added.read(work)
    there = set(before["id"])
    number = before["landmark_id"].astype("string").fillna("")
    goes = before["id"].isin(ids) | before["category"].isin(landmarks) | number.isin(landmarks) | everything
    absent = [one for one in dict.fromkeys(ids) if one not in there]
    absent += [one for one in landmarks if not (before["category"].eq(one) | number.eq(one)).any()]
    table = before[~goes]
    if goes.any():
        added.write(work, table)
    _tidy(work, table)
    landmarks_of = before.loc[goes, "landmark_id"].nunique()
    print(f"-{_counted(int(goes.sum()), 'photo')}, of {_counted(landmarks_of, 'landmark')}")
    if absent:
        print(f"not among the photos that were added: {', '.join(absent)}")


def current(run: RunSettings, embedding: EmbeddingSettings) -> Added | None:
    """The added photos, embedded anew if the model or its settings are others than before; None if there are none."""
    table = added.read(run.work)
    if table.empty:
        return None
    path = _embedded(run, embedding, table["id"].tolist())
    _tidy(run.work, table)
    return _of(table, path) if path.exists() else None


def opened(run: RunSettings, members: list[Member]) -> Added | None:
    """As `current`, but that nothing is written. Raises InputError if the features are of another model or settings."""
    table, path = added.read(run.work), run.work / ADDED / "added.npz"
    if table.empty:
        return None
    if features_file.made_from(path) != _note(run, members):
        works = ",".join(map(str, run.models or [run.work]))
        raise InputError(f"{path} goes with another model or other settings: run recognition.py --work {works} again")
    return _of(table, path)


def names(work: Path) -> dict[int, str]:
    """The names of the landmarks that were added."""
    table = added.read(work).dropna(subset="landmark_id")
    return dict(zip(table["landmark_id"].tolist(), table["category"], strict=True))


def voting(grown: Added, recognizer: str, files: list[Path], train: pd.DataFrame) -> tuple[list[Path], pd.DataFrame]:
    """What `voting.gallery` gives, and the added photos that vote, or the centres of these, in `WORK/added`."""
    photos, landmark = grown.centres() if recognizer == "centres" else grown.voters()
    if not len(landmark):
        return files, train
    path = grown.path
    if recognizer == "centres":
        path = grown.path.with_name("added-centres.npz")
        save_features(path, photos)
    return [*files, path], pd.concat([train, pd.DataFrame({"id": photos.ids, "landmark_id": landmark})])


def _numbers(new: list[str], known: dict[int, str], taken: Collection[int]) -> dict[str, int]:
    """The landmark that each name is of, or the number of a new one."""
    numbers: dict[str, int] = {}
    free = max([0, *taken, *known]) + 1
    for name in new:
        these = [number for number, category in known.items() if category == printable(name)]
        if len(these) > 1:
            raise InputError(f"landmarks {these} have the name {name}: name the folder after the number of one")
        if not these and name.isascii() and name.isdigit() and int(name) in {*taken, *known}:
            these = [int(name)]
        numbers[name] = these[0] if these else free
        free += not these
    return numbers


def _embedded(run: RunSettings, embedding: EmbeddingSettings, ids: list[str]) -> Path:
    """The features file of the added photos, with those of these that it lacks; all are made anew for another model."""
    path = run.work / ADDED / "added.npz"
    note = _note(run, ensemble.members(run, embedding))
    there = load_features(path) if features_file.made_from(path) == note and is_whole(path) else None
    has = set(there.ids.tolist()) if there else set()
    missing = [identity for identity in ids if identity not in has]
    embed = Embedder(run, embedding) if missing else None
    for begin in range(0, len(missing), AT_ONCE):
        assert embed is not None
        more = embed.of_shard(added.shard(run.work, missing[begin : begin + AT_ONCE]), ADDED, run.work)
        there = concatenate([there, more]) if there else more
        save_features(path, there, note)
    return path


def _note(run: RunSettings, members: list[Member]) -> str:
    return digest([one.made_by() for one in members], run.model_weights)


def _of(table: pd.DataFrame, path: Path) -> Added:
    landmark = table.set_index("id")["landmark_id"].fillna(-1).astype(np.int64)
    there = load_features(path)
    there = take(there, np.isin(there.ids, landmark.index.to_numpy(str)))
    return Added(path, there, landmark[there.ids].to_numpy())


def _tidy(work: Path, table: pd.DataFrame) -> None:
    """Clear away features and photos that the table does not list."""
    path = work / ADDED / "added.npz"
    if is_whole(path):
        there = load_features(path)
        listed = np.isin(there.ids, table["id"].to_numpy(str))
        if not listed.all():
            for made in [*work.glob("local/*/*/added.npz"), *work.glob("expanded/*/added.npz")]:
                made.unlink()  # of those that are gone, too
            save_features(path, take(there, listed), features_file.made_from(path))
    added.clear(work, table["id"])


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'s' * (count != 1)}"
