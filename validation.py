"""How well a model does on held-out photos after each mini-epoch: by its head, and by neighbours among them."""

import keras
import numpy as np
import pandas as pd

import metrics
import model as models
from command import check_stop
from generators import Batches
from mirror import Mirror
from settings import Recipe


class Validation:
    """Photos of the held-out shards, of landmarks that are learnt, in memory: uint8, 400 MB for 2,048 of 256 px.

    Of each landmark every second one is a query, the others are the database that it is recognised by; a landmark's
    only photo is in the database.
    """

    def __init__(self, recipe: Recipe, mirror: Mirror, names: list[str], classes: pd.Series):
        self.batch_size = recipe.batch_size
        self.batches: list[np.ndarray] = []
        ids: list[str] = []
        for shard in mirror.stream("train", names):
            room = recipe.validation_images - len(ids)
            wanted = [identity for identity in shard.ids if identity in classes.index][:room]
            for some_ids, photos in Batches(shard, wanted, recipe.image_size, recipe.batch_size):
                ids += some_ids
                self.batches.append(photos)
                check_stop()
            if len(ids) == recipe.validation_images:
                break
        self.classes = classes[ids].to_numpy()
        place = pd.Series(self.classes).groupby(self.classes).cumcount().to_numpy()
        self.is_query = place % 2 == 1
        self.predictor: keras.Model | None = None

    def scores(self, model: keras.Model) -> dict[str, float]:
        """Top-1 accuracy and GAP of the head, `validation_*`, the nearest photo and the nearest class centre.

        On landmarks only, so GAP is far above the test set's. Nothing of which there are no photos is left out.
        """
        if not len(self.classes):
            return {}
        self.predictor = self.predictor or models.predictor(model)
        outputs = []
        for photos in self.batches:
            check_stop()
            outputs.append(models.predict(self.predictor, photos, self.batch_size))
        found = {name: np.concatenate([output[name] for output in outputs]) for name in outputs[0]}
        scores = {}
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


def _nearest(name: str, queries: np.ndarray, truth: np.ndarray, gallery: np.ndarray, labels: np.ndarray):
    similarity = queries @ gallery.T
    return _scores(name, labels[similarity.argmax(axis=1)], similarity.max(axis=1), truth)


def _scores(name: str, predicted: np.ndarray, score: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    predictions = dict(enumerate(zip(predicted.tolist(), score.tolist(), strict=True)))
    solution = {number: [landmark] for number, landmark in enumerate(truth.tolist())}
    return {
        f"{name}_accuracy": metrics.top1_accuracy(predictions, solution),
        f"{name}_gap": metrics.gap(predictions, solution),
    }
