from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from conftest import identity, recipe_with

from landmarks.running import command
from landmarks.running.features_file import Features, save_features
from landmarks.training import validation
from landmarks.training.validation import Validation, hold_out

# Two landmarks: of class 0 four photos, a to d, of class 1 two, e and f, of class 2 one, g, which is in the database.
# An id is its letter three times.
CLASSES = pd.Series({"aaa": 0, "bbb": 0, "ccc": 0, "ddd": 0, "eee": 1, "fff": 1, "ggg": 2})
ANGLES = {"a": 0, "b": 50, "c": 10, "d": 92, "e": 80, "f": 70, "g": 120}  # queries are b, d and f
HEAD = {"a": 0, "b": 0, "c": 0, "d": 1, "e": 1, "f": 1, "g": 1}
SURE = {"a": 0.9, "b": 0.8, "c": 0.7, "d": 0.95, "e": 0.6, "f": 0.5, "g": 0.4}


class Shard:
    ids = ["xxx", *CLASSES.index]  # xxx has no class

    def read(self, identity):
        return identity.encode()


class Mirror:
    def __init__(self):
        self.streamed = []

    def stream(self, split, names):
        self.streamed += names
        return iter([Shard()] * len(names))


@pytest.fixture
def held_out(monkeypatch, tmp_path):
    class Batches:
        def __init__(self, shard, ids, size, batch_size):
            self.ids = ids

        def __iter__(self):
            for begin in range(0, len(self.ids), 3):
                part = self.ids[begin : begin + 3]
                yield part, np.array([ord(name[0]) for name in part], "uint8").reshape(-1, 1, 1, 1)

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

    def hold_out(names=("images_000",), mirror=None, validation_images=2048, batch_size=32):
        return Validation(mirror or Mirror(), list(names), CLASSES, tmp_path, validation_images, 32, batch_size)

    return hold_out


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


def test_pairs_may_lie_in_two_held_out_shards(held_out, tmp_path):
    class Two(Mirror):
        def stream(self, split, names):
            (name,) = names
            shard = Shard()
            shard.ids = {"images_000": ["ggg", "eee", "ccc"], "images_001": ["eee", "bbb", "ddd", "fff"]}[name]
            return iter([shard])

    for _ in range(2):  # the second time from what is kept
        held = held_out(["images_000", "images_001"], Two(), validation_images=5)
        assert held.classes.tolist() == [2, 1, 0, 0, 1]  # g, e and c, then b and f; e a second time is not its own mate
        assert held.is_query.tolist() == [False, False, False, True, True]


def test_a_resumed_run_asks_the_mirror_for_nothing(held_out, tmp_path):
    expected = held_out().scores(None)
    again = Mirror()
    assert held_out(mirror=again).scores(None) == expected and again.streamed == []
    kept = tmp_path / "validation/images_000.tar"
    kept.write_bytes(kept.read_bytes()[:700])  # cut
    assert held_out(mirror=again).scores(None) == expected and again.streamed == ["images_000"]
    validation.clear(tmp_path)
    assert not kept.parent.exists()


def test_pairs_of_a_landmark_are_held_out_first():
    """2,000 landmarks of two or three photos, a third of all photos in the held-out shard: most are alone in it."""
    generator = np.random.default_rng(0)
    landmark = np.repeat(np.arange(2000), generator.integers(2, 4, 2000))
    classes = pd.Series(landmark, index=[f"id{number:05d}" for number in range(len(landmark))])
    ids = generator.permutation(classes.index)[: len(classes) // 3].tolist()

    def queries(chosen):
        return int((classes[chosen].groupby(classes[chosen]).cumcount() % 2 == 1).sum())

    chosen = validation.choose(["unknown", *ids], classes, 400, [])
    assert len(set(chosen)) == len(chosen) == 400 and chosen == [
        identity for identity in ids if identity in set(chosen)
    ]
    assert queries(chosen) == 200 > 3 * queries(ids[:400])
    assert classes[chosen].mean() == pytest.approx(1000, rel=0.1)  # from the first landmark to the last
    assert validation.choose(ids, classes, 10**6, []) == ids
    assert queries(validation.choose(ids, classes, 10**6, [])) == queries(ids) > 200


def test_without_photos_there_are_no_scores(held_out):
    assert held_out([]).scores(None) == {}


def test_photos_are_held_out_evenly():
    classes = pd.Series(np.repeat([0, 1, 2], [4, 5, 26]), index=[f"{number}" for number in range(35)])
    held = hold_out(classes, seed=1)
    assert held.value_counts().to_dict() == {1: 1, 2: 5}
    pd.testing.assert_series_equal(held, hold_out(classes, seed=1))
    assert set(held.index) != set(hold_out(classes, seed=2).index)


def test_a_photo_is_held_out_where_no_model_has_learnt_it(tmp_path, capsys):
    """Of three shards with photos of two landmarks: the last one by a model, the last two by another."""
    ids = [identity(number) for number in range(12)]
    photos = pd.DataFrame({"id": ids, "landmark_id": [5, 6] * 6})
    names = ["images_000", "images_001", "images_002"]
    mirror = SimpleNamespace(train=lambda: photos, shard_names=lambda _: names)
    files = [tmp_path / f"{name}.npz" for name in names]
    for number, path in enumerate(files):
        save_features(path, Features(np.array(ids[4 * number :][:4]), np.eye(4, dtype=np.float16)))

    def folder(name, landmarks="0,5\n1,6\n", **settings):
        work = tmp_path / name
        work.mkdir()
        (work / "model.keras").touch()
        (work / "labels.csv").write_text(f"class,landmark_id\n{landmarks}")
        recipe_with(work=work, **settings).keep()
        return work

    one, two, frozen = folder("one"), folder("two", validation_shards=2), folder("frozen", loss="none")
    fives, everything = folder("fives", "0,5\n"), folder("all", validation_shards=0)
    for folders, expected in (
        ([one], ids[8:]), ([two], ids[4:]), ([two, one], ids[8:]), ([frozen, one], ids[8:]), ([frozen], []),
        ([fives, two], ids[8::2]),
    ):  # fmt: skip
        assert validation.learnt_by_none(folders, mirror, files) == set(expected)
    assert validation.learnt_by_none([one], mirror, files[:1]) == set()  # the others have no features
    command._say_warnings()
    assert "scores are rough as probabilities" in capsys.readouterr().err
    assert validation.learnt_by_none([frozen, everything, one], mirror, files) == set()
    command._say_warnings()
    assert "every train photo was learnt" in capsys.readouterr().err
    assert validation.learnt_by_none([frozen, one], mirror, files)
    assert not command._warnings
