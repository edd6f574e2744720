import numpy as np
import pytest
from conftest import make_mirror

from features import Features, embed, load_features, prepare_folder, save_features, take
from mirror import open_mirror
from settings import Recipe

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


def test_some_photos_of_a_file():
    for rows in ([False, True], [1]):
        some = take(FEATURES, np.array(rows))
        assert some.ids.tolist() == ["abc2"] and some.landmark.tolist() == [7]
        np.testing.assert_array_equal(some.embeddings, [[0, 1, 0]])
    assert take(Features(FEATURES.ids, FEATURES.embeddings), np.array([0])).score is None


def test_a_folder_of_features_made_from_others(tmp_path):
    sources = [tmp_path / "a.npz", tmp_path / "b.npz"]
    for path in sources:
        path.write_bytes(b"1234")
    made = tmp_path / "made/x.npz"

    def is_kept(*arguments, **settings):
        prepare_folder(made.parent, *arguments, **settings)
        kept = made.exists()
        made.touch()
        return kept

    assert not is_kept(sources, count=1)
    assert is_kept(sources, count=1)
    assert not is_kept(sources, count=2)
    assert not is_kept(sources, count=1)
    assert not is_kept(sources[:1], count=1)
    sources[0].write_bytes(b"12345")
    assert not is_kept(sources[:1], count=1)
    assert is_kept(sources[:1], count=1)


@pytest.mark.parametrize("has_head", [True, False])
def test_embedding_with_and_without_a_head(tmp_path, has_head):
    import keras
    from keras import layers

    mirror = open_mirror(str(make_mirror(tmp_path / "mirror", landmarks=2, train=1, index=0, test=3, others=0)))
    photos = keras.Input((None, None, 3), dtype="uint8")
    embedding = layers.GlobalAveragePooling2D(name="embedding")(photos)
    head = layers.Dense(2, activation="softmax", name="landmark") if has_head else layers.UnitNormalization()
    model = keras.Model(photos, head(embedding))
    recipe = Recipe(work=tmp_path / "work", image_size=32, batch_size=4)
    found = [load_features(path) for path in embed(model, np.array([10, 20]), recipe, mirror, "test")]
    assert sorted(i for part in found for i in part.ids) == sorted(mirror.ids("test"))
    for part in found:
        assert part.embeddings.shape == (len(part.ids), 3) and part.embeddings.dtype == np.float16
        np.testing.assert_allclose(np.linalg.norm(part.embeddings.astype(float), axis=1), 1, atol=2e-3)
        if has_head:
            assert set(part.landmark.tolist()) <= {10, 20} and (part.score >= 0.5).all()
        else:
            assert part.landmark is part.score is None
