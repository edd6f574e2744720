"""Photos that stand in for non-landmarks, and the part of the penalty that train photos choose."""

import re

import numpy as np
import pandas as pd
import pytest
from conftest import write_features

from landmarks.neighbours import nonlandmarks, penalty
from landmarks.neighbours.nonlandmarks import FarReferences
from landmarks.neighbours.search import search, without_itself


def towards(rng, centres, noise):
    embeddings = centres + noise * rng.standard_normal(centres.shape)
    return embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)


@pytest.fixture
def world(tmp_path):
    """12 landmarks with 10 train photos each; of the 200 index photos the first 20 are of nothing."""
    rng = np.random.default_rng(0)
    centres, crowd = rng.standard_normal((12, 32)), rng.standard_normal((1, 32))
    landmark = np.repeat(np.arange(12), 10)
    none = rng.standard_normal((20, 32))
    index = towards(rng, np.concatenate([none, centres[rng.integers(0, 12, 180)]]), 0.3)
    files = {
        "train": write_features(tmp_path, "train", towards(rng, centres[landmark], 0.3)),
        "index": write_features(tmp_path, "index", index),
    }
    train = pd.DataFrame({"id": [f"train{n}" for n in range(120)], "landmark_id": landmark})
    return files, train, rng, centres, crowd


def test_photos_far_from_every_landmark(world, tmp_path):
    files, train, *_ = world
    found = nonlandmarks.find_far(FarReferences(["index"], {"t"}), files, train, 2, tmp_path / "penalty")
    assert found.serve == {"t"} and found.ids == {f"index{n}" for n in range(20)}


def test_train_photos_do_not_find_themselves(world, tmp_path):
    files, train, *_ = world
    neighbours = search(files["train"], files["train"], 3)
    assert (neighbours.index_ids[neighbours.positions[:, 0]] == neighbours.query_ids).all()
    others = without_itself(neighbours)
    assert (others.positions[:, 0] == neighbours.positions[:, 1]).all() and (others.positions[:, 2] == -1).all()
    assert (others.similarities[:, 2] == -np.inf).all()
    found = nonlandmarks.find_far(FarReferences(["train"], set()), files, train, 2, tmp_path / "penalty")
    assert len(found.ids) == 12


def test_too_few_photos_to_look_at_are_none(world, tmp_path):
    files, train, *_ = world
    files["index"] = write_features(tmp_path, "few", np.eye(32)[:20])
    assert nonlandmarks.find_far(FarReferences(["index"], set()), files, train, 1, tmp_path / "penalty").ids == set()


@pytest.mark.parametrize("name", ["published", "winners"])
def test_the_weight_is_chosen_on_train_photos(world, tmp_path, name, capsys):
    """Non-landmarks nearly as near to train photos as these are to each other, but nearer to one another."""
    files, train, rng, centres, crowd = world
    files["train"] = write_features(tmp_path, "train", towards(rng, centres[train["landmark_id"]], 0.7))
    how = penalty.penalty(name, 1, 1.0)
    near = np.repeat(centres, 5, axis=0) + 1.2 * crowd
    crowding = write_features(tmp_path, "crowding", towards(rng, near, 0.2))[0]
    chosen = penalty.choose_weight(how, files["train"], train, crowding, 2, tmp_path / "a")
    gaps = dict(re.findall(r"GAP ([\d.]+) on train photos, ([\d.]+) without", capsys.readouterr().out))
    ((best, without),) = gaps.items()
    assert chosen > 0 and float(best) > float(without) + 0.05
    assert penalty.choose_weight(how, files["train"], train, crowding, 1, tmp_path / "b") == chosen


def test_a_penalty_that_harms_is_left_out(world, tmp_path):
    """References that look like six of the landmarks, where the judged photos look, from afar, like the other six."""
    files, train, rng, centres, _ = world
    embeddings = np.empty((40, 32))
    embeddings[::2] = towards(rng, centres[rng.integers(6, 12, 20)], 0.8)
    embeddings[1::2] = towards(rng, centres[rng.integers(0, 6, 20)], 0.1)
    references = write_features(tmp_path, "like", embeddings)[0]
    how = penalty.penalty("published", 1, 1.0)
    assert penalty.choose_weight(how, files["train"], train, references, 2, tmp_path / "a") <= 0.25
