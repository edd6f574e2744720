import zlib
from importlib.util import find_spec
from io import BytesIO
from types import SimpleNamespace

import keras
import numpy as np
import pandas as pd
import pytest
import scripts
from conftest import ROOT, identity, recipe_with, texture
from PIL import Image

import model as models
from landmarks.local_features import delf, delf_training
from landmarks.mirrors import build
from landmarks.mirrors.folder import FolderMirror
from landmarks.mirrors.open import open_mirror
from landmarks.mirrors.shards import write_tar
from landmarks.networks import layers
from landmarks.networks.efficientnet_lite import preprocess_input
from landmarks.running.command import InputError, Stopped
from landmarks.running.recipe import load
from landmarks.running.settings import ModelSettings
from landmarks.training import trainer


def test_principal_axes_are_those_of_a_singular_value_decomposition():
    random = np.random.default_rng(0)
    samples = random.normal(size=(500, 12)) * np.linspace(3, 0.5, 12) @ random.normal(size=(12, 12)) + 5
    mean, axes = delf_training.principal_axes(np.split(samples.astype("float32"), [10, 10, 300]), 4)
    _, _, expected = np.linalg.svd(samples - samples.mean(axis=0), full_matrices=False)
    np.testing.assert_allclose(mean, samples.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(np.abs(np.sum(axes * expected[:4].T, axis=0)), 1, atol=1e-4)


def backbone(_settings):
    """Two convolutions, so that a test takes a second."""
    photos = keras.Input((None, None, 3))
    x = keras.layers.Conv2D(8, 8, strides=8, activation="relu", name="first")(photos)
    x = keras.layers.Conv2D(12, 2, strides=2, activation="relu", name="second")(x)
    return keras.Model(photos, x, name="backbone"), keras.applications.mobilenet.preprocess_input


LANDMARKS = np.array([10, 20, 30])


@pytest.fixture
def begin(tiny_mirror, tmp_path, monkeypatch):
    """A recipe, in a work folder of its own, and its mirror."""
    monkeypatch.setattr(models, "build_backbone", backbone)
    monkeypatch.setattr(delf_training, "PCA_PHOTOS", 10)
    monkeypatch.setattr(delf_training, "DIMENSIONS", 5)

    def make(name):
        recipe = load([
            f"--mirror={tiny_mirror}", f"--work={tmp_path / name}", "--weights=none", "--image-size=64",
            "--batch-size=4", "--local-size=64", "--delf-epochs=4", "--checkpoint-minutes=60",
        ])  # fmt: skip
        return recipe, open_mirror(recipe.source.mirror)

    return make


def train(recipe, mirror):
    sections = recipe.run, recipe.model, recipe.training, recipe.verification
    return delf_training.train_delf(*sections, mirror, mirror.train(), LANDMARKS)


def dense_features(recipe):
    return delf_training.dense_features(recipe.run.work, recipe.model, recipe.verification)


def patchwork(number):
    """A photo of 4 x 4 cells, red, green or blue at random but for a brighter square of one colour; where that is."""
    rng = np.random.default_rng(number)
    colour, bright = rng.integers(0, 3, (4, 4)), np.zeros((4, 4), bool)
    row, column = rng.integers(0, 2, 2)
    bright[row : row + 3, column : column + 3] = True
    colour[bright] = number % 3
    cells = np.eye(3)[colour] * np.where(bright, 240, rng.uniform(60, 120, (4, 4)))[..., None]
    return np.kron(cells, np.ones((16, 16, 1))).astype(np.uint8), bright


def encoded(photo):
    data = BytesIO()
    Image.fromarray(photo).save(data, "JPEG", quality=95, subsampling=0)
    return data.getvalue()


def colours(_settings):
    """The mean colour of each cell in 256 random directions."""
    photos = keras.Input((None, None, 3))
    x = keras.layers.AveragePooling2D(16)(photos)
    model = keras.Model(photos, keras.layers.Conv2D(256, 1, activation="relu")(x), name="backbone")
    model.set_weights([np.random.default_rng(0).normal(0, 0.3, (1, 1, 3, 256)), np.zeros(256)])
    return model, lambda photos: photos / 255


def test_the_attention_learns_what_tells_the_landmark_and_the_features_stay(begin, tmp_path, monkeypatch):
    """The bright cells have the landmark's colour, the others any; with a frozen attention the loss stays at 1.0."""
    photos = pd.DataFrame({"id": map(identity, range(24)), "url": map(str, range(24)), "split": "train"})
    photos["landmark_id"] = pd.array(LANDMARKS[np.arange(24) % 3], "Int64")
    build.build_mirror(photos, lambda number: encoded(patchwork(int(number))[0]), tmp_path / "patchwork")
    mirror = open_mirror(str(tmp_path / "patchwork"))
    # Under a random softmax, of this seed, the attention learns to look at the dark cells.
    changed = {"label_smoothing": 0.0, "delf_epochs": 20, "seed": 2}
    recipe = recipe_with(begin("work")[0], **changed)
    # At other scales a cell of the patchwork is not one of the features.
    monkeypatch.setattr(delf_training, "SCALES", (1.0,))
    monkeypatch.setattr(models, "build_backbone", colours)
    start = models.build_model(3, recipe.model, recipe.training.seed)
    models.save(start, recipe.run.work / "model.keras")
    extractor = models.load(train(recipe, mirror))
    for before, after in zip(
        start.get_layer("backbone").get_weights(), extractor.get_layer("features").get_weights(), strict=True
    ):
        np.testing.assert_array_equal(before, after)
    history = pd.read_csv(recipe.run.work / "attention/training.csv")
    assert len(history) == 20 * 6  # epochs, shards
    assert history["loss"][-6:].mean() < 0.1
    for number in range(100, 130):  # photos that it has not seen
        photo, bright = patchwork(number)
        scores = np.asarray(extractor.predict_on_batch(photo[None])["scores"])[0, :, :, 0]
        assert scores[bright].min() > 1.5 * scores[~bright].max()
    assert not (recipe.run.work / "attention/checkpoint.keras").exists()
    assert not list(recipe.run.work.glob("attention/photos*"))


def test_a_stopped_training_goes_on_to_the_same_end(begin, monkeypatch):
    whole_run, mirror = begin("whole")
    expected = models.load(train(whole_run, mirror)).get_weights()
    recipe, mirror = begin("stopped")
    steps = iter(range(10))

    def check_stop(_step):
        if next(steps, None) is None:
            raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(trainer.hosts, "check_stop", check_stop)
        with pytest.raises(Stopped):
            train(recipe, mirror)
    assert not (recipe.run.work / delf.FILE).exists()
    assert len(pd.read_csv(recipe.run.work / "attention/training.csv")) > 0
    for ours, theirs in zip(expected, models.load(train(recipe, mirror)).get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_a_finished_extractor_is_kept_and_needs_no_training_with_the_norm(begin):
    recipe, mirror = begin("work")
    path = train(recipe_with(recipe, delf_epochs=0), mirror)
    assert [file.name for file in (recipe.run.work / "attention").iterdir()] == ["made_from.json"]
    written = path.read_bytes()
    train(recipe_with(recipe, delf_epochs=0, local_size=96), mirror)
    assert path.read_bytes() == written
    with pytest.raises(InputError, match="made with .*delf_epochs = 0.*now .*delf_epochs = 4.*delete it"):
        train(recipe, mirror)
    note = recipe.run.work / "attention/made_from.json"
    for damaged in (b"{", b"\xff", b"[]", b"\0"):
        note.write_bytes(damaged)
        with pytest.raises(InputError, match="made with settings that .*made_from.json no longer tells.*delete it"):
            train(recipe, mirror)
    note.unlink()  # as an earlier version left a work folder
    train(recipe, mirror)
    assert path.read_bytes() == written
    (found,) = delf.open_extractor(recipe.run.work, 20)([np.asarray(texture(0, 90, 60))])
    assert found.points.shape == (20, 2)
    assert found.descriptors.shape == (20, 5)
    np.testing.assert_allclose(np.linalg.norm(found.descriptors, axis=1), 1, atol=1e-5)


def test_pca_takes_the_mean_off_and_projects(begin):
    recipe, mirror = begin("work")
    dense = delf.build(
        layers.Normalization.like(preprocess_input), delf.stride_16_features(backbone(None)[0]), delf.FeatureNorm()
    )
    random = np.random.default_rng(0)
    mean, axes = random.normal(size=12).astype("float32"), random.normal(size=(12, 3)).astype("float32")
    photo = np.asarray(texture(0, 64, 64))[None]
    before, after = (model.predict_on_batch(photo) for model in (dense, delf.with_pca(dense, mean, axes)))
    projected = (np.asarray(before["descriptors"]) - mean) @ axes
    expected = projected / np.linalg.norm(projected, axis=-1, keepdims=True)
    np.testing.assert_allclose(np.asarray(after["descriptors"]), expected, atol=1e-5)
    np.testing.assert_array_equal(np.asarray(after["scores"]), np.asarray(before["scores"]))


def many(tmp_path, landmarks, shards=12):
    """A mirror of `shards` train shards and its photos; `landmarks` has the number of photos of each landmark."""
    photos = pd.DataFrame({"landmark_id": np.repeat(10 * np.arange(1, len(landmarks) + 1), landmarks)})
    photos["id"] = list(map(identity, range(len(photos))))
    photos = photos.sort_values("id", ignore_index=True)
    for number, rows in enumerate(np.array_split(photos["id"].to_numpy(), shards)):
        data = [(one, encoded(np.full((24, 36, 3), number, np.uint8))) for one in rows]
        write_tar(tmp_path / f"many/train/images_{number:03d}.tar", data)
    return photos, FolderMirror(tmp_path / "many")


def sample_of(mirror, photos, count, folder, seed=0):
    sample = delf_training.draw_sample(mirror, photos, count, 12, seed, folder)
    return {one: shard.name for shard in sample.stream("train", sample.shard_names("train")) for one in shard.ids}


def test_few_photos_are_all_drawn_and_made_small(tmp_path):
    photos, mirror = many(tmp_path, [9, 2, 30], shards=3)
    assert set(sample_of(mirror, photos, 1000, tmp_path / "sample")) == set(photos["id"])
    shards = FolderMirror(tmp_path / "sample").stream("train", ["images_001"])
    shard = next(shards)
    with Image.open(BytesIO(shard.read(shard.ids[0]))) as photo:
        assert photo.size == (12, 8)


def test_of_many_photos_each_frequent_landmark_gives_as_many_from_few_shards(tmp_path):
    photos, mirror = many(tmp_path, [60] * 4 + [3] * 40)
    streamed = []
    original = mirror.stream
    mirror.stream = lambda split, names: original(split, streamed.extend(names) or names)
    drawn = sample_of(mirror, photos, 40, tmp_path / "sample")
    assert len(streamed) == len(set(streamed)) == 2  # a sixth of them holds 10 of 60 photos
    assert set(drawn.values()) <= set(streamed)
    counts = photos.set_index("id")["landmark_id"].loc[list(drawn)].value_counts()
    assert set(counts.index) == {10, 20, 30, 40} and 25 <= len(drawn) <= 40 and counts.max() <= 10
    assert sample_of(mirror, photos, 40, tmp_path / "again") == drawn
    assert sample_of(mirror, photos, 40, tmp_path / "other", seed=1) != drawn


def test_a_sample_that_was_stopped_goes_on_to_the_same(tmp_path, monkeypatch):
    photos, mirror = many(tmp_path, [30] * 4)
    expected = sample_of(mirror, photos, 60, tmp_path / "whole")
    write, left = build.write_shard, iter(range(5))

    def write_shard(*arguments):
        if next(left, None) is None:
            raise Stopped
        write(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(build, "write_shard", write_shard)
        with pytest.raises(Stopped):
            sample_of(mirror, photos, 60, tmp_path / "stopped")
    names = []
    original = mirror.stream
    mirror.stream = lambda split, some: original(split, names.extend(some) or some)
    assert sample_of(mirror, photos, 60, tmp_path / "stopped") == expected
    assert len(names) == 6 - 5  # those that are done are not read again


def test_a_mirror_at_a_url_is_downloaded_from_once(begin, tiny_mirror, serve):
    server = serve(tiny_mirror)
    recipe, _ = begin("work")
    mirror = open_mirror(server.url, recipe.run.work / "mirror")
    train(recipe, mirror)  # for four epochs
    got = [path for path, part in server.requests if path.startswith("/train/") and part != "bytes=0-0"]
    assert sorted(got) == [f"/train/images_{number:03d}.tar" for number in range(6)]


def test_batches_have_what_extraction_sees():
    """At every scale: the photos' levels, the cells that count, a few shapes."""
    sides = {"abca": (64, 40), "abcb": (30, 64), "abcc": (20, 10), "abcd": (33, 33), "abce": (60, 64)}
    data = {one: encoded(np.asarray(texture(1, *size, grain=5))) for one, size in sides.items()}
    shard = SimpleNamespace(read=data.get)
    shapes, seen = set(), set()
    for number in range(60):
        ids = [list(sides)[i] for i in np.random.default_rng(number).permutation(5)] * (1 + number % 3)
        batches = delf_training.Levels(shard, ids, 64, len(ids), flip=False)
        [(found, photos)] = batches
        assert found == list(dict.fromkeys(ids)) and photos.dtype == np.uint8
        scale = np.random.default_rng(zlib.crc32(" ".join(ids).encode())).choice(delf.SCALES)
        seen.add(scale)
        shapes.add(photos.shape[1:])
        for one, photo in zip(found, photos, strict=True):
            level = delf.level(delf_training.decode(data[one], 64), scale)
            assert max(level.shape[:2]) <= photo.shape[0] == photo.shape[1]
            np.testing.assert_array_equal(photo[: level.shape[0], : level.shape[1], :3], level)
            assert photo[: level.shape[0], : level.shape[1], 3].min() == 255
            assert photo[..., 3].sum() == 255 * level.shape[0] * level.shape[1]
            # The cells whose centre is in the photo, as delf.extract takes them.
            cells = photo[8::16, 8::16, 3] > 0
            assert cells.sum() == len(np.arange(8, level.shape[0], 16)) * len(np.arange(8, level.shape[1], 16))
    assert seen == set(delf.SCALES)
    assert shapes == {(64, 64, 4), (128, 128, 4)}  # of seven that are possible: rounded up to 64


def test_cells_that_were_filled_up_do_not_count():
    random = np.random.default_rng(0)
    maps, scores = random.normal(size=(2, 3, 4, 5)), random.uniform(1, 2, (2, 3, 4, 1))
    inside = np.zeros((2, 3, 4, 1))
    inside[0, :2, :3], inside[1] = 1, 1
    pooled = np.asarray(delf_training.AttentivePooling()(maps, scores, inside))
    unit = maps / np.linalg.norm(maps, axis=-1, keepdims=True) * scores
    np.testing.assert_allclose(pooled[0], unit[0, :2, :3].mean(axis=(0, 1)), rtol=1e-5)
    np.testing.assert_allclose(pooled[1], unit[1].mean(axis=(0, 1)), rtol=1e-5)


def test_delf_has_a_backbone_of_its_own(begin, monkeypatch):
    recipe, mirror = begin("work")
    models.save(models.build_model(3, ModelSettings(backbone="any")), recipe.run.work / "model.keras")
    monkeypatch.undo()
    recipe = recipe_with(recipe, delf_backbone="ResNet50", delf_weights="none", precision="float32")
    normalization, features = dense_features(recipe)
    assert features.output.shape[-1] == 1024 and features.layers[-1].name == "conv4_block6_out"
    red = np.zeros((1, 2, 2, 3), np.uint8)
    red[..., 0] = 255  # as ResNet50 was trained: BGR, less the means of ImageNet
    np.testing.assert_allclose(np.asarray(normalization(red))[0, 0, 0], [-103.939, -116.779, 255 - 123.68], rtol=1e-5)
    with pytest.raises(InputError, match="DELF: .*gone.h5.* neither imagenet, none, nor a file"):
        dense_features(recipe_with(recipe, delf_weights="gone.h5"))
    with pytest.raises(InputError, match="no stage with a stride of 16"):
        dense_features(recipe_with(recipe, delf_backbone="InceptionV3"))


def test_an_unfinished_attention_of_other_settings_is_begun_anew(begin, monkeypatch):
    recipe, mirror = begin("work")
    (recipe.run.work / "attention").mkdir(parents=True)  # an earlier version's, which saw squares
    (recipe.run.work / "attention/checkpoint.keras").write_bytes(b"of squares")
    train(recipe, mirror)
    assert (recipe.run.work / delf.FILE).exists()


def test_what_is_no_extractor_is_one_clear_line(begin):
    recipe, _ = begin("work")
    with pytest.raises(InputError, match="there is no .*delf.keras"):
        delf.open_extractor(recipe.run.work)
    models.save(models.build_model(3, ModelSettings(backbone="any")), recipe.run.work / delf.FILE)
    with pytest.raises(InputError, match="delf.keras is a model, but not one of DELF"):
        delf.open_extractor(recipe.run.work)
    (recipe.run.work / delf.FILE).write_bytes((recipe.run.work / delf.FILE).read_bytes()[:-100])
    with pytest.raises(InputError, match="delf.keras is not a model of this project that loads"):
        delf.open_extractor(recipe.run.work)


def test_other_back_ends_find_the_same(begin, tmp_path):
    recipe, mirror = begin("work")
    train(recipe, mirror)
    photo = np.asarray(texture(0, 90, 60))
    np.save(tmp_path / "photo.npy", photo)
    (expected,) = delf.open_extractor(recipe.run.work)([photo])
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); import numpy as np; from pathlib import Path; "
        "from landmarks.local_features import delf; "
        "found, = delf.open_extractor(Path(sys.argv[2]))([np.load(sys.argv[3])]); np.savez(sys.argv[4], *found)"
    )
    for backend in ("jax", "torch"):
        if find_spec(backend) is None:
            continue
        given = ROOT, recipe.run.work, tmp_path / "photo.npy", tmp_path / "found.npz"
        done = scripts.run("-c", program, *given, environment=scripts.on(backend))
        assert done.returncode == 0, done.stderr[-3000:]
        with np.load(tmp_path / "found.npz") as found:
            points, descriptors = found.values()
        order = [np.lexsort(array.T) for array in (expected.points, points)]  # near ties may come in another order
        np.testing.assert_allclose(expected.points[order[0]], points[order[1]], atol=1e-3)
