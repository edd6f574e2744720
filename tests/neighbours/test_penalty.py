"""Photos that stand in for non-landmarks, and the part of the penalty that train photos choose."""

import re

import numpy as np
import pandas as pd
import pytest
from conftest import write_features
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from landmarks.neighbours import nonlandmarks, penalty
from landmarks.neighbours.nonlandmarks import FarReferences
from landmarks.neighbours.penalty import nonlandmark_similarity, subtract
from landmarks.neighbours.search import Neighbours, search, without_itself


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


def test_train_photos_do_not_find_themselves(world, tmp_path):
    files, train, *_ = world
    neighbours = search(files["train"], files["train"], 3)
    assert (neighbours.index_ids[neighbours.positions[:, 0]] == neighbours.query_ids).all()
    others = without_itself(neighbours)
    assert (others.positions[:, 0] == neighbours.positions[:, 1]).all() and (others.positions[:, 2] == -1).all()
    assert (others.similarities[:, 2] == -np.inf).all()
    found = nonlandmarks.find_far(FarReferences(["train"], set()), files, train, 2, tmp_path / "penalty")
    assert len(found.ids) == 12


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


def neighbours(similarities, positions, query_landmark, index_landmark) -> Neighbours:
    return Neighbours(
        np.array([f"query{n}" for n in range(len(positions))], dtype="U10"),
        np.array([f"index{n}" for n in range(len(index_landmark))], dtype="U10"),
        np.array(similarities, np.float32),
        np.array(positions, np.int32),
        np.array(query_landmark, np.int64),
        np.array(index_landmark, np.int64),
    )


@st.composite
def random_neighbours(draw, max_queries=4):
    queries, k, photos = draw(st.integers(0, max_queries)), draw(st.integers(1, 8)), draw(st.integers(0, 10))
    found = min(k, photos)
    similarities = np.full((queries, k), -np.inf, np.float32)
    positions = np.full((queries, k), -1, np.int32)
    for row in range(queries):
        values = draw(arrays(np.float32, found, elements=st.floats(-1, 1.0009765625, width=32)))
        similarities[row, :found] = -np.sort(-values)
        positions[row, :found] = draw(st.permutations(range(photos)))[:found]
    landmark = st.integers(0, 2)
    return neighbours(
        similarities, positions, draw(arrays(np.int64, queries, elements=landmark)),
        draw(arrays(np.int64, photos, elements=landmark)),
    )  # fmt: skip


def test_nonlandmark_similarity_by_hand():
    found = neighbours([[0.5, 0.25, -0.25], [0.5, 0.25, -np.inf]], [[4, 2, 0], [1, 0, -1]], [0, 0], [0] * 5)
    assert nonlandmark_similarity(found, 1).tolist() == [0.5, 0.5]
    assert nonlandmark_similarity(found, 2).tolist() == [0.375, 0.375]
    assert nonlandmark_similarity(found, 3).tolist() == [0.5 / 3, 0.375]
    assert nonlandmark_similarity(found, 10).tolist() == [0.5 / 3, 0.375]
    assert nonlandmark_similarity(neighbours([[-np.inf]], [[-1]], [0], []), 5).tolist() == [0]


@given(st.data(), random_neighbours())
def test_subtract_equals_a_loop(data, given):
    penalty = data.draw(arrays(np.float64, len(given.index_ids), elements=st.integers(-8, 8).map(lambda n: n / 8)))
    result = subtract(given, penalty)
    assert result.similarities.dtype == np.float32 and result.positions.dtype == np.int32
    for query, (similarities, positions) in enumerate(zip(given.similarities, given.positions, strict=True)):
        left = [
            (s - np.float32(penalty[p]) if p >= 0 else -np.inf, p) for s, p in zip(similarities, positions, strict=True)
        ]
        left.sort(key=lambda pair: -pair[0])
        assert list(zip(result.similarities[query], result.positions[query], strict=True)) == left
