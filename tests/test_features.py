import numpy as np
import pytest

from features import Features, load_features, save_features

FEATURES = Features(
    ids=np.array(["abc1", "abc2"]),
    embeddings=np.eye(2, 3, dtype="float16"),
    landmark=np.array([2**40, 7]),
    score=np.array([0.1, 1e-30], "float32"),
)


def test_features_come_back_as_written(tmp_path):
    save_features(tmp_path / "images_000.npz", FEATURES)
    for name, array in load_features(tmp_path / "images_000.npz")._asdict().items():
        np.testing.assert_array_equal(array, getattr(FEATURES, name))
        assert array.dtype == getattr(FEATURES, name).dtype
    assert [path.name for path in tmp_path.iterdir()] == ["images_000.npz"]


def test_a_model_without_head(tmp_path):
    save_features(tmp_path / "x.npz", Features(FEATURES.ids, FEATURES.embeddings))
    assert load_features(tmp_path / "x.npz").landmark is None


def test_damage_is_noticed_anywhere_in_the_file(tmp_path):
    path = tmp_path / "x.npz"
    save_features(path, FEATURES)
    whole = path.read_bytes()
    for length in range(0, len(whole), 50):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="not a whole features file"):
            load_features(path)
    for place in range(len(whole)):  # every byte: zip headers, array headers, arrays; some are of no consequence
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        try:
            load_features(path)
        except ValueError:
            pass
    begin = whole.index(np.eye(2, 3, dtype="float16").tobytes())
    path.write_bytes(whole[:begin] + b"\xff" + whole[begin + 1 :])
    with pytest.raises(ValueError, match="not a whole features file"):
        load_features(path)


@pytest.mark.parametrize(
    "arrays",
    [
        {"ids": np.array(["a"]), "embeddings": np.zeros((2, 3))},
        {"ids": np.array(["a"])},
        {"ids": np.array(["a"]), "embeddings": np.zeros((1, 3)), "landmark": np.zeros((1, 1)), "score": np.zeros(1)},
        {"ids": np.array(["a"]), "embeddings": np.zeros((1, 3)), "landmark": np.zeros(2), "score": np.zeros(1)},
        {"ids": np.array(["a"]), "embeddings": np.full((1, 3), np.nan)},
        {"ids": np.array(["a"]), "embeddings": np.zeros((1, 3)), "other": np.zeros(1)},
        {"ids": np.array([{"a": 1}], dtype=object), "embeddings": np.zeros((1, 3))},
    ],
)
def test_other_arrays_are_refused_and_nothing_is_unpickled(tmp_path, arrays):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(ValueError, match="not a whole features file"):
        load_features(tmp_path / "x.npz")
