"""How well a model does on held-out photos after each mini-epoch: by its head, and by neighbours among them."""

import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import keras
import numpy as np
import pandas as pd

import model as models
from generators import Batches
from landmarks.mirrors.base import Mirror
from landmarks.mirrors.shards import DamagedShard, Shard, TarShard, write_tar
from landmarks.running import recipe as recipes
from landmarks.running.command import check_stop, warn
from landmarks.running.features_file import ids_in
from landmarks.running.settings import TrainingSettings
from landmarks.scoring import measures
from landmarks.training.selection import voters


class Validation:
    """Photos of the held-out shards, of landmarks that are learnt, in memory: uint8, 400 MB for 2,048 of 256 px.

    Of each landmark every second one is a query, the others are the database that it is recognised by; a landmark's
    only photo is in the database. Where there is no room for all, photos of landmarks with at least two come first.
    They stay in `WORK/validation/` as they came: a resumed run asks no mirror for 1 GB again.
    """

    def __init__(
        self,
        mirror: Mirror,
        names: list[str],
        classes: pd.Series,
        work: Path,
        most: int,
        image_size: int,
        batch_size: int,
    ):
        """At most `most` photos of the shards `names`; `classes` by photo id."""
        self.batch_size = batch_size
        self.batches: list[np.ndarray] = []
        ids: list[str] = []
        for number, name in enumerate(names):
            path = work / "validation" / f"{name}.tar"
            if not _is_whole(path):
                room = -(-(most - len(ids)) // (len(names) - number))  # as much for each shard
                _keep(mirror, name, path, classes, room, ids)
            with closing(TarShard(path)) as shard:
                for some_ids, photos in Batches(shard, shard.ids, image_size, batch_size):
                    ids += some_ids
                    self.batches.append(photos)
                    check_stop()
            if len(ids) == most:
                break
        self.classes = classes[ids].to_numpy()
        place = pd.Series(self.classes).groupby(self.classes).cumcount().to_numpy()
        self.is_query = place % 2 == 1
        self.predictor: keras.Model | None = None

    def embeddings(self, model: keras.Model) -> np.ndarray:
        """(N, D) float32 of all photos, in the order of `classes`, L2-normalised."""
        return self._predict(models.predictor(model))["embedding"]

    def _predict(self, predictor: keras.Model) -> dict[str, np.ndarray]:
        outputs = []
        for photos in self.batches:
            check_stop()
            outputs.append(models.predict(predictor, photos, self.batch_size))
        return {name: np.concatenate([output[name] for output in outputs]) for name in outputs[0]}

    def scores(self, model: keras.Model) -> dict[str, float]:
        """Top-1 accuracy and GAP of the head, `validation_*`, the nearest photo and the nearest class centre.

        On landmarks only, so GAP is far above the test set's. Nothing of which there are no photos is left out.
        """
        if not len(self.classes):
            return {}
        self.predictor = self.predictor or models.predictor(model)
        found = self._predict(self.predictor)
        scores: dict[str, float] = {}
        if "landmark" in found:
            scores |= _scores("validation", found["landmark"], found["score"], self.classes)
        if self.is_query.any():
            queries, truth = found["embedding"][self.is_query], self.classes[self.is_query]
            database, labels = found["embedding"][~self.is_query], self.classes[~self.is_query]
            scores |= _nearest("nearest_photo", queries, truth, database, labels)
            present, which = np.unique(labels, return_inverse=True)
            sums = np.zeros((len(present), database.shape[1]), database.dtype)
            np.add.at(sums, which, database)
            centres = sums / np.linalg.norm(sums, axis=1, keepdims=True)
            scores |= _nearest("nearest_centre", queries, truth, centres, present)
        return scores


def hold_out(classes: pd.Series, seed: int) -> pd.Series:
    """Every fifth photo, drawn by the seed, of each class: photos of a mirror with too few shards to hold one out."""
    drawn = classes.iloc[np.random.default_rng(seed).permutation(len(classes))]
    return drawn[drawn.groupby(drawn).cumcount() % 5 == 4]


def held_out(settings: TrainingSettings, names: list[str], classes: pd.Series) -> tuple[list[str], pd.Series]:
    """The train shards that held-out photos are in, and the classes by id of all that may be held out there.

    They are the last shards; in a mirror with no more than `validation_shards` every fifth photo of each class.
    """
    if settings.validation_shards < len(names):
        return names[len(names) - settings.validation_shards :], classes
    return names, hold_out(classes, settings.seed)


def learnt_by_none(folders: list[Path], mirror: Mirror, files: list[Path]) -> set[str]:
    """The train photos that were held out from all models in these work folders; none where no model learns any.

    Warns where each photo was learnt by one of them.

    Args:
        files: features files of the train photos, named after their shards.
    """
    found: set[str] | None = None
    for folder in folders:
        own = recipes.of(folder)
        if own.model.loss == "none":
            continue
        learnt = voters(False, own.photos, mirror, folder).set_index("id")["landmark_id"]
        names, candidates = held_out(own.training, mirror.shard_names("train"), learnt)
        here = set(candidates.index.intersection(ids_in(path for path in files if path.stem in names)))
        found = here if found is None else found & here
    if found is not None and not found:
        warn("scores are rough as probabilities, as every train photo was learnt: --validation-shards 1 holds some out")
    return found or set()


def choose(ids: list[str], classes: pd.Series, room: int, held: list[str]) -> list[str]:
    """At most `room` of these photos that have a class, in their order: pairs of a class before third ones and single.

    Photos that are `held` already count as the first ones of their class. A shard of the public mirror has 8,000 photos
    of 203,094 landmarks, most of them alone: of 2,048 taken as they come, some 80 would have another of their landmark
    to be recognised by, in pairs about ten times as many.
    """
    new = set(classes.index.intersection(ids)) - set(held)
    found = classes[[identity for identity in ids if identity in new]]
    before = found.map(classes[held].value_counts()).fillna(0).astype(int)
    place = before + found.groupby(found).cumcount()
    count = before + found.groupby(found).transform("size")
    pair, is_odd_one = place // 2, (place % 2 == 0) & (place == count - 1)
    # The class that is seen first is first: the smallest numbers may be all of one country.
    order = np.lexsort((pd.factorize(found)[0], pair, is_odd_one))[:room]
    return found.index[np.sort(order)].tolist()


def clear(work: Path) -> None:
    """Delete the photos that are kept for a resumed run."""
    shutil.rmtree(work / "validation", ignore_errors=True)


def _keep(mirror: Mirror, name: str, path: Path, classes: pd.Series, room: int, held: list[str]) -> None:
    for shard in mirror.stream("train", [name]):
        write_tar(path, _readable(shard, choose(shard.ids, classes, room, held)))


def _readable(shard: Shard, ids: list[str]) -> Iterator[tuple[str, bytes]]:
    for identity in ids:
        check_stop()
        try:
            yield identity, shard.read(identity)
        except OSError:
            continue  # an extracted tree may lack a photo; embedding names it


def _is_whole(path: Path) -> bool:
    try:
        TarShard(path).close()
    except (DamagedShard, FileNotFoundError):
        return False
    return True


def _nearest(name: str, queries: np.ndarray, truth: np.ndarray, gallery: np.ndarray, labels: np.ndarray):
    similarity = queries @ gallery.T
    return _scores(name, labels[similarity.argmax(axis=1)], similarity.max(axis=1), truth)


def _scores(name: str, predicted: np.ndarray, score: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    predictions = dict(enumerate(zip(predicted.tolist(), score.tolist(), strict=True)))
    solution = {number: [landmark] for number, landmark in enumerate(truth.tolist())}
    return {
        f"{name}_accuracy": measures.top1_accuracy(predictions, solution),
        f"{name}_gap": measures.gap(predictions, solution),
    }
