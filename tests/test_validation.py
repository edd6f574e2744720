import numpy as np
import pandas as pd
import pytest

import validation
from settings import Recipe
from validation import Validation

# Two landmarks: of class 0 four photos, a to d, of class 1 two, e and f, of class 2 one, g, which is in the database.
CLASSES = pd.Series({"a": 0, "b": 0, "c": 0, "d": 0, "e": 1, "f": 1, "g": 2})
ANGLES = {"a": 0, "b": 50, "c": 10, "d": 92, "e": 80, "f": 70, "g": 120}  # queries are b, d and f
HEAD = {"a": 0, "b": 0, "c": 0, "d": 1, "e": 1, "f": 1, "g": 1}
SURE = {"a": 0.9, "b": 0.8, "c": 0.7, "d": 0.95, "e": 0.6, "f": 0.5, "g": 0.4}


class Shard:
    ids = ["x", *CLASSES.index]  # x has no class


class Mirror:
    def stream(self, split, names):
        return iter([Shard()] * len(names))


@pytest.fixture
def held_out(monkeypatch):
    class Batches:
        def __init__(self, shard, ids, size, batch_size):
            self.ids = ids

        def __iter__(self):
            for begin in range(0, len(self.ids), 3):
                part = self.ids[begin : begin + 3]
                yield part, np.array([ord(name) for name in part], "uint8").reshape(-1, 1, 1, 1)

    def predict(_, photos, batch_size):
        names = [chr(code) for code in photos.ravel()]
        angles = np.deg2rad([ANGLES[name] for name in names])
        return {
            "embedding": np.stack([np.cos(angles), np.sin(angles)], axis=1).astype("float32"),
            "landmark": np.array([HEAD[name] for name in names]),
            "score": np.array([SURE[name] for name in names]),
        }

    monkeypatch.setattr(validation, "Batches", Batches)
    monkeypatch.setattr(validation.models, "predict", predict)
    monkeypatch.setattr(validation.models, "predictor", lambda _: None)
    return lambda names=("images_000",), **settings: Validation(Recipe(**settings), Mirror(), list(names), CLASSES)


def test_the_head_and_the_neighbours_are_scored(held_out):
    scores = held_out().scores(None)
    assert scores["validation_accuracy"] == pytest.approx(5 / 7)  # d and g are taken for class 1
    # by falling score d is wrong, then a, b, c, e, f right, g wrong
    assert scores["validation_gap"] == pytest.approx((1 / 2 + 2 / 3 + 3 / 4 + 4 / 5 + 5 / 6) / 7)
    # nearest database photos: b (50) has e (80) by 30, where its c (10) is 40 off, so wrong; d (92) has e by 12: wrong;
    # f (70) has e: right
    assert scores["nearest_photo_accuracy"] == pytest.approx(1 / 3)
    assert scores["nearest_photo_gap"] == pytest.approx(1 / 3)  # f, 10 away, comes first
    # the centre of class 0, a and c, is at 5: nothing changes but by how much
    assert scores["nearest_centre_accuracy"] == pytest.approx(1 / 3)


def test_no_more_photos_than_asked_for(held_out):
    held = held_out(["images_000", "images_001"], validation_images=2)
    assert held.classes.tolist() == [0, 0]
    assert held.scores(None)["nearest_photo_accuracy"] == 1  # b is nearest to a, its only choice


def test_without_photos_there_are_no_scores(held_out):
    assert held_out([]).scores(None) == {}
