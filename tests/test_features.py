import io
import os
import shutil
import tracemalloc
import zipfile
from contextlib import closing
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import identity, jpeg, make_mirror

import features
import generators
import model as models
from landmarks.mirrors.open import open_mirror
from landmarks.mirrors.shards import TarShard, write_tar
from landmarks.running import command
from landmarks.running.command import InputError
from landmarks.running.features_file import Features, concatenate, load_features, outline, save_features, take
from landmarks.running.files import prepare_folder
from landmarks.running.settings import EmbeddingSettings

FEATURES = Features(
    ids=np.array(["abc1", "abc2"]),
    embeddings=np.eye(2, 3, dtype="float16"),
    landmark=np.array([2**40, 7]),
    score=np.array([0.1, 1e-30], "float32"),
    top_landmark=np.array([[2**40, 7], [7, 2**40]]),
    top_score=np.array([[0.1, 0.05], [1e-30, 0]], "float32"),
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


@pytest.mark.parametrize("spoilt", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_file_is_refused_for_what_is_not_finite_alone(tmp_path, spoilt, dtype):
    embeddings = np.array([[0, -0.0, 6e-8], [65504, -65504, 1]], dtype)  # the least and the largest of float16
    for path, last in ((tmp_path / "whole.npz", 1), (tmp_path / "spoilt.npz", spoilt)):
        embeddings[1, 2] = last
        save_features(path, Features(np.array(["a", "b"]), embeddings))
    assert load_features(tmp_path / "whole.npz").embeddings.dtype == dtype
    with pytest.raises(ValueError, match="not finite"):
        load_features(tmp_path / "spoilt.npz")


def test_parts_are_joined_and_what_they_lack_stays_away():
    parts = [take(FEATURES, np.array([row])) for row in range(2)]
    for name, array in concatenate(parts)._asdict().items():
        np.testing.assert_array_equal(array, getattr(FEATURES, name), strict=True)
    headless = concatenate([Features(FEATURES.ids, FEATURES.embeddings)] * 2)
    assert len(headless.ids) == 4 and headless[2:] == (None,) * 4
    older = FEATURES._replace(top_landmark=None, top_score=None)  # as a release before this one wrote it
    for mixed in ([FEATURES, older], [older, FEATURES]):
        found = concatenate(mixed)
        assert len(found.score) == len(found.ids) and found.top_landmark is found.top_score is None


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
            found = load_features(path)
        except ValueError:
            continue
        for name, array in found._asdict().items():  # what the damage left as it was
            np.testing.assert_array_equal(array, getattr(FEATURES, name), err_msg=f"byte {place}")
            assert array.dtype == getattr(FEATURES, name).dtype
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


def test_a_small_file_does_not_fill_the_memory(tmp_path):
    path = tmp_path / "x.npz"
    ids, packed = np.array(["a"]), np.zeros((1, 2**26), "float16")
    np.savez_compressed(path, ids=ids, embeddings=packed)  # 131 KB, and 128 MiB when they are read
    tracemalloc.start()
    for read in (load_features, outline):
        with pytest.raises(ValueError, match="not a whole features file"):
            read(path)
    assert tracemalloc.get_traced_memory()[1] < packed.nbytes / 10
    tracemalloc.stop()


def test_no_array_is_larger_than_the_file_that_it_is_in(tmp_path):
    path = tmp_path / "x.npz"
    header = io.BytesIO()
    fields = {"descr": "<f2", "fortran_order": False, "shape": (2, 10**15)}
    np.lib.format.write_array_header_1_0(header, fields)
    np.savez(path, ids=FEATURES.ids)
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("embeddings.npy", header.getvalue())
    for read in (load_features, outline):
        with pytest.raises(ValueError, match="not a whole features file"):
            read(path)


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
    (made.parent / "made_from.json").write_bytes(b"\xff")  # no UTF-8
    assert not is_kept(sources[:1], count=1)
    assert is_kept(sources[:1], count=1)


def colours(has_head: bool = True):
    """A model whose embedding is a photo's mean colour."""
    import keras
    from keras import layers

    photos = keras.Input((None, None, 3), dtype="uint8")
    embedding = layers.GlobalAveragePooling2D(name="embedding")(photos)
    head = layers.Dense(2, activation="softmax", name="landmark") if has_head else layers.UnitNormalization()
    return keras.Model(photos, head(embedding))


def tree(out, split, count, first=0):
    """An extracted tree as a competition's input folder has it, with its CSV beside it."""
    shutil.rmtree(out / split, ignore_errors=True)
    ids = [identity(number) for number in range(first, first + count)]
    for number, photo in enumerate(ids, first):
        path = out / split / photo[0] / photo[1] / photo[2] / f"{photo}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(number, size=(40 + number % 7, 30)))
    (out / f"{split}.csv").write_text("id\n" + "\n".join(ids) + "\n")
    return ids


def embed(model, mirror, split, work, mirrored=True, image_size=32, shards=""):
    predictor = models.predictor(model, mirrored)
    settings = EmbeddingSettings(mirrored=mirrored)
    return features.embed(predictor, np.array([10, 20]), mirror, split, work, settings, image_size, 4, shards)


def embedded(model, out, work, split="test", **settings):
    """The ids that have features, and how many shards were embedded now."""
    made = {path: path.stat().st_ino for path in work.glob("features/*/*.npz")}
    files = embed(model, open_mirror(str(out)), split, work, **settings)
    ids = [photo for path in files for photo in load_features(path).ids.tolist()]
    return ids, sum(path.stat().st_ino != made.get(path) for path in files)


def test_other_photos_at_the_same_place_are_embedded_anew(tmp_path):
    """As the re-run of a code competition has them."""
    out, work, model = tmp_path / "input", tmp_path / "work", colours()
    ids = tree(out, "test", 5)
    assert embedded(model, out, work) == (sorted(ids), 1)
    assert embedded(model, out, work) == (sorted(ids), 0)
    others = tree(out, "test", 6, first=100)
    assert embedded(model, out, work) == (sorted(others), 1)
    photo = next(out.rglob(f"{others[0]}.jpg"))
    photo.write_bytes(jpeg(7, size=(80, 60)))  # the same id, another size
    assert embedded(model, out, work) == (sorted(others), 1)
    assert embedded(model, out, work) == (sorted(others), 0)
    assert embedded(model, out, work, mirrored=False)[1] == 1


def test_another_model_at_the_same_place_embeds_anew(tmp_path):
    out, work = tmp_path / "input", tmp_path / "work"
    tree(out, "test", 5)
    work.mkdir()
    for content in (b"one", b"two"):
        (work / "model.keras").write_bytes(content)  # its bytes tell models apart; the model itself is handed over
        assert [embedded(colours(), out, work)[1] for _ in range(2)] == [1, 0]
    os.utime(work / "model.keras", ns=(1, 1))  # as a copy has it
    assert embedded(colours(), out, work)[1] == 0


def test_files_of_an_earlier_release_are_taken_over_if_they_have_these_photos(tmp_path):
    out, work, model = tmp_path / "input", tmp_path / "work", colours()
    ids = tree(out, "test", 5)
    embedded(model, out, work)
    path = work / "features/test/images_000.npz"
    save_features(path, load_features(path))  # as they were: nothing says what it was made from
    embeddings = load_features(path).embeddings
    assert embedded(model, out, work)[0] == sorted(ids)
    np.testing.assert_array_equal(load_features(path).embeddings, embeddings)
    save_features(path, load_features(path))
    others = tree(out, "test", 5, first=50)
    assert embedded(model, out, work) == (sorted(others), 1)


def test_a_photo_in_two_shards_has_one_row(tmp_path):
    """Whichever shards are embedded in this run, the first that has it keeps it."""
    out = make_mirror(tmp_path / "mirror", test=6)
    first, second = sorted((out / "test").glob("*.tar"))
    with closing(TarShard(first)) as shard:
        photos = [(photo, shard.read(photo)) for photo in shard.ids]
    with closing(TarShard(second)) as shard:
        write_tar(second, [*((photo, shard.read(photo)) for photo in shard.ids), photos[0]])
    listed = open_mirror(str(out)).ids("test")
    mirror, work = open_mirror(str(out)), tmp_path / "work"
    assert embed(colours(), mirror, "test", work, shards="1:2") is None
    files = embed(colours(), mirror, "test", work)
    assert photos[0][0] in load_features(files[0]).ids and photos[0][0] not in load_features(files[1]).ids
    assert sorted(photo for path in files for photo in load_features(path).ids) == sorted(listed)
    assert f"images_001,{photos[0][0]},id is in a shard before" in (tmp_path / "work/skipped.csv").read_text()
    assert embedded(colours(), out, tmp_path / "work")[1] == 0


def test_photos_that_no_shard_has_are_counted(tmp_path):
    out, work, model = tmp_path / "mirror", tmp_path / "work", colours()
    work.mkdir()
    photos = [(f"{split}{number}", jpeg(number)) for split in ("here", "gone") for number in range(3)]
    write_tar(out / "test/images_000.tar", [*photos[:2], ("here2", b"no photo")])  # which is told as passed over
    (out / "metadata").mkdir()
    (out / "metadata/test.csv").write_text("id\n" + "".join(f"{photo}\n" for photo, _ in photos))
    for _ in range(2):
        assert embedded(model, out, work)[0] == ["here0", "here1"]
        (told,) = [what for what in command._warnings if "metadata/test.csv" in what]
        assert told.startswith("3 of 6 photos ") and "like gone0," in told
        command._warnings.clear()


@pytest.mark.parametrize("back", [False, True])
def test_the_same_photos_at_another_address_are_not_embedded_again(tmp_path, serve, back):
    out = make_mirror(tmp_path / "mirror", test=6)
    places = [str(out), serve(out).url]
    first, second = reversed(places) if back else places
    work = tmp_path / "work"
    mirrors = [open_mirror(place, tmp_path / f"cache-{number}") for number, place in enumerate((first, second))]
    made = [[path.stat().st_ino for path in embed(colours(), mirror, "test", work)] for mirror in mirrors]
    assert made[0] == made[1]


def test_a_photo_that_cannot_be_read_at_one_of_two_sizes_has_no_features(tmp_path, monkeypatch):
    tree(tmp_path / "mirror", "test", 10)
    spoilt = next((tmp_path / "mirror").rglob("*.jpg"))
    decode_at, settings = generators.decode_at, EmbeddingSettings(scales=[1.0, 0.5])

    def decode_but_one(data, sizes):
        first, second = decode_at(data, sizes)
        if data == spoilt.read_bytes():
            raise generators.UnreadablePhoto("too large at the second size")
        return first, second

    mirror, work = open_mirror(str(tmp_path / "mirror")), tmp_path / "work"
    work.mkdir()
    predictor = models.predictor(colours(has_head=False), True, [32, 16], "side_by_side")
    monkeypatch.setattr(generators, "decode_at", decode_but_one)
    (path,) = features.embed(predictor, np.array([10, 20]), mirror, "test", work, settings, 32, 4)
    assert load_features(path).embeddings.shape == (9, 6)
    assert spoilt.stem not in load_features(path).ids
    assert (work / "skipped.csv").read_text().count(spoilt.stem) == 1


def test_without_room_for_them_no_photo_is_embedded(tmp_path, monkeypatch):
    tree(tmp_path / "mirror", "test", 10)
    mirror = open_mirror(str(tmp_path / "mirror"))
    ids_and_embeddings = 10 * (16 * 4 + 3 * 2)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=ids_and_embeddings))
    with pytest.raises(InputError, match="no space left on the disk: the features of test take"):
        embed(colours(), mirror, "test", tmp_path / "work")
    assert not list(tmp_path.glob("work/**/*.npz"))
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=2 * ids_and_embeddings))
    assert embed(colours(), mirror, "test", tmp_path / "work")


def test_embeddings_that_are_not_finite_are_told_and_not_written(tmp_path):
    import keras

    out, model = tmp_path / "input", colours()
    ids = tree(out, "test", 5)
    model.get_layer("landmark").set_weights([np.full((3, 2), np.nan), np.zeros(2)])
    with pytest.raises(InputError, match="test/images_000: of 5 of 5.*not finite.*train again"):
        embedded(model, out, tmp_path / "work")
    assert not list(tmp_path.glob("work/features/*/*.npz"))
    photos = keras.Input((None, None, 3), dtype="uint8")
    mean = keras.layers.GlobalAveragePooling2D()(photos)
    spoilt = keras.layers.Lambda(lambda x: x / keras.ops.relu(x[:, :1] - 300), name="embedding")(mean)
    with pytest.raises(InputError, match=f"first is ({'|'.join(ids)}).*float32"):
        embedded(keras.Model(photos, keras.layers.UnitNormalization()(spoilt)), out, tmp_path / "work")


@pytest.mark.parametrize("has_head", [True, False])
def test_embedding_with_and_without_a_head(tmp_path, has_head):
    mirror = open_mirror(str(make_mirror(tmp_path / "mirror", landmarks=2, train=1, index=0, test=3, others=0)))
    model = colours(has_head)
    found = [load_features(path) for path in embed(model, mirror, "test", tmp_path / "work")]
    assert sorted(i for part in found for i in part.ids) == sorted(mirror.ids("test"))
    for part in found:
        assert part.embeddings.shape == (len(part.ids), 3) and part.embeddings.dtype == np.float16
        np.testing.assert_allclose(np.linalg.norm(part.embeddings.astype(float), axis=1), 1, atol=2e-3)
        if has_head:
            assert set(part.landmark.tolist()) <= {10, 20} and (part.score >= 0.5).all()
        else:
            assert part.landmark is part.score is None
