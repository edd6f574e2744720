import keras
import numpy as np
import pytest

from landmarks.local_features import products
from landmarks.local_features.matching import match
from landmarks.local_features.points import LocalFeatures, Matching, none_found
from landmarks.local_features.products import match_all
from landmarks.networks.devices import full_precision


def features(seed: int, count: int, like: LocalFeatures | None = None) -> LocalFeatures:
    rng = np.random.default_rng(seed)
    descriptors = rng.standard_normal((count, 16))
    if like is not None:
        descriptors = 0.5 * descriptors + 4 * like.descriptors[rng.integers(0, len(like.points), count)]
    descriptors /= np.linalg.norm(descriptors, axis=1, keepdims=True)
    return LocalFeatures(rng.uniform(0, 512, (count, 2)).astype(np.float32), descriptors.astype(np.float32))


@pytest.mark.parametrize("ratio", [1.0, 0.95, 0.7])
@pytest.mark.parametrize("least", [0.0, 0.9])
def test_matches_are_those_that_the_cpu_finds_pair_by_pair(ratio, least):
    how, photo = Matching(ratio, least, 4.0), features(0, 300)
    others = [none_found(), features(1, 1), features(2, 2), features(3, 300, photo), features(4, 257, photo)]
    found = match_all(photo, others, how)
    assert len(found) == len(others)
    for other, pairs in zip(others, found, strict=True):
        assert pairs.dtype == np.int64
        assert pairs.tolist() == match(photo, other, how).tolist()
    assert len(found[3]) > 20 and not len(found[0]) and not len(found[1])


def test_a_photo_without_points_matches_nothing():
    how = Matching(1.0, 0.0, 4.0)
    for photo in (none_found(), features(0, 1)):
        assert [len(pairs) for pairs in match_all(photo, [features(1, 9), none_found()], how)] == [0, 0]
    assert match_all(features(0, 9), [], how) == []


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="how TensorFlow is told")
def test_what_the_user_has_set_of_precision_is_left_behind():
    from tensorflow.config import experimental

    for before in (True, False):
        experimental.enable_tensor_float_32_execution(before)
        with full_precision():
            assert not experimental.tensor_float_32_execution_enabled()
        assert experimental.tensor_float_32_execution_enabled() == before
    experimental.enable_tensor_float_32_execution(True)


def test_many_candidates_are_taken_in_turns(monkeypatch):
    how, photo = Matching(0.95, 0.0, 4.0), features(0, 300)
    others = [features(seed, 200, photo) for seed in range(1, 8)]
    others.insert(3, none_found())
    at_once = [pairs.tolist() for pairs in match_all(photo, others, how)]
    largest, convert = [], products.ops.matmul
    monkeypatch.setattr(products, "MOST", 3 * 512 * 256)
    monkeypatch.setattr(products.ops, "matmul", lambda a, b: largest.append(b.shape[1]) or convert(a, b))
    assert [pairs.tolist() for pairs in match_all(photo, others, how)] == at_once
    assert max(largest) <= 4 * 256 and len(largest) > 1
