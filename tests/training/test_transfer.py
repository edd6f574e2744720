import shutil
import sys
import weakref
from types import SimpleNamespace

import keras
import numpy as np
import pandas as pd
import pytest
from conftest import recipe_with
from scripts import PLAIN

import model as models
import recognition
from landmarks.local_features import decision, delf_training, matching, points
from landmarks.mirrors.images import decode
from landmarks.mirrors.open import open_mirror
from landmarks.networks import backbones, layers
from landmarks.running.command import InputError, Stopped
from landmarks.running.features_file import load_features
from landmarks.running.recipe import RECIPES, load
from landmarks.training import run as training
from landmarks.training import trainer, transfer

BUILD_BACKBONE = backbones.build_backbone


def backbone(_settings):
    """Two convolutions, so that a test takes a second; layers: input, first, second."""
    photos = keras.Input((None, None, 3))
    x = keras.layers.Conv2D(8, 8, strides=8, activation="relu", name="first")(photos)
    x = keras.layers.Conv2D(12, 2, strides=2, activation="relu", name="second")(x)
    return keras.Model(photos, x, name="backbone"), keras.applications.mobilenet.preprocess_input


@pytest.fixture(scope="module", autouse=True)
def small_backbone():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "build_backbone", backbone)
        yield


@pytest.fixture
def recipe(tiny_mirror, tmp_path):
    return settings(tiny_mirror, tmp_path)


def settings(mirror, work):
    return load(
        [
            f"--mirror={mirror}", f"--work={work}", *PLAIN, "--weights=none", "--image-size=32", "--crop=1",
            "--pooling=flatten", "--embedding-size=16", "--embedding-layer=relu", "--batch-size=2", "--freeze=2",
            "--bottleneck-epochs=2", "--epochs=1", "--optimizer=sgd", "--learning-rate=0.01", "--schedule=steps",
            "--no-flip",
        ]
    )  # fmt: skip


def build(recipe, classes=3):
    return models.build_model(classes, recipe.model, recipe.training.seed)


def prepared(recipe):
    """The mirror, the names of its shards, and the class of each photo."""
    mirror = open_mirror(recipe.source.mirror)
    photos = mirror.train()
    classes = pd.Series(photos["landmark_id"].to_numpy() // 10 - 1, index=photos["id"])
    return mirror, mirror.shard_names("train"), classes


def train(recipe):
    mirror = open_mirror(recipe.source.mirror)
    return training.train(recipe.run, recipe.model, recipe.training, mirror, mirror.train(), np.array([10, 20, 30]))


def train_top(recipe, *arguments):
    training._train_top(recipe.run, recipe.model, recipe.training, *arguments)


def write_features(recipe, mirror, names, classes, backbone):
    sizes = recipe.model.image_size, recipe.training.batch_size
    transfer.write_features(mirror, names, classes, backbone, recipe.run.work, *sizes)


def times(recipe):
    return {path.name: path.stat().st_mtime_ns for path in (recipe.run.work / "top").glob("*.npz")}


def weights(model):
    return {weight.path: weight.numpy().copy() for weight in model.weights}


def changed(before, after):
    """Names of the layers with weights that differ."""
    return {path.split("/")[-2] for path in before if (before[path] != after[path]).any()}


def test_the_files_hold_the_features_of_whole_photos_that_have_a_class(recipe):
    mirror, names, classes = prepared(recipe)
    augmented = {"image_size": 48, "crop": 0.75, "pooling": "average", "flip": True, "shear": 0.2, "zoom": 0.2}
    recipe = recipe_with(recipe, **augmented)
    model = build(recipe)
    half = classes[::2]
    write_features(recipe, mirror, names, half, transfer.divide(recipe.model, model)[0])
    seen = set()
    for shard in mirror.stream("train", names):
        ids, features, *_ = load_features(recipe.run.work / f"top/{shard.name}.npz")
        photos = np.array([decode(shard.read(identity), 48) for identity in ids]).reshape(-1, 48, 48, 3)
        expected = model.get_layer("backbone").predict_on_batch(photos.astype("float32") / 127.5 - 1)
        np.testing.assert_allclose(features, expected.reshape(len(ids), 3 * 3 * 12), rtol=2e-3, atol=1e-4)
        seen |= set(ids)
    assert seen == set(half.index)


def test_without_room_for_them_no_features_are_made(recipe, monkeypatch):
    mirror, names, classes = prepared(recipe)
    backbone, _ = transfer.divide(recipe.model, build(recipe))
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=len(classes) * 2 * 2 * 12 * 2 - 1))
    with pytest.raises(InputError, match="no space left on the disk: the bottleneck features take"):
        write_features(recipe, mirror, names, classes, backbone)
    assert not list(recipe.run.work.rglob("*.npz"))


def test_the_top_learns_and_leaves_the_backbone_alone(recipe):
    mirror, names, classes = prepared(recipe)
    recipe = recipe_with(recipe, bottleneck_epochs=20, checkpoint_minutes=60)
    model = build(recipe)
    before = weights(model)
    train_top(recipe, mirror, names, classes, model)
    assert changed(before, weights(model)) == {"embedding", "landmark"}
    history = pd.read_csv(recipe.run.work / "top/training.csv")
    assert len(history) == 20 * len(names)
    first, last = history["accuracy"][: len(names)].mean(), history["accuracy"][-len(names) :].mean()
    assert first < 0.7 and last > 0.9, (first, last)


def interrupt(monkeypatch, after: int, error: BaseException) -> list:
    """Let the check for a stop that follows `after` others raise this; each check adds to the list."""
    checks = []

    def check(_step=0):
        checks.append(None)
        if len(checks) == after + 1:
            raise error

    for module in (trainer.hosts, transfer):
        monkeypatch.setattr(module, "check_stop", check)
    return checks


class Killed(BaseException):
    """As SIGKILL would end the run: nothing is saved."""


@pytest.fixture(scope="module")
def straight(tiny_mirror, tmp_path_factory):
    """A run from the beginning to the end: its recipe, and the model's weights before and after fine-tuning."""
    recipe, before = settings(tiny_mirror, tmp_path_factory.mktemp("straight")), {}
    train_top = training._train_top

    def noted(*arguments):
        train_top(*arguments)
        before.update(weights(arguments[-1]))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "_train_top", noted)
        checks = interrupt(patch, -1, Killed())
        after = weights(train(recipe))
    assert len(checks) == 4 * 10  # 10 batches of 2 photos: their features, two epochs of the top, one of all
    return recipe, before, after


def test_fine_tuning_changes_all_but_the_frozen_layers(straight):
    _, before, after = straight
    assert changed(before, after) == {"second", "embedding", "landmark"}


@pytest.mark.parametrize("error", [Stopped("stopped"), Killed()])
def test_an_interrupted_run_ends_as_if_it_had_not_been(recipe, straight, monkeypatch, error):
    """It is interrupted within the second file, the third mini-epoch of the top, and the first step of fine-tuning."""
    before = {}
    lost = isinstance(error, Killed)  # half a mini-epoch
    for after, files, top_is_trained in ((3, 1, False), (8 + 5, 5, False), (15 + lost, 0, True)):
        interrupt(monkeypatch, after, error)
        with pytest.raises(type(error)):
            train(recipe)
        assert len(times(recipe)) == files
        assert (recipe.run.work / "checkpoint.keras").exists() == top_is_trained
        assert top_is_trained or before.items() <= times(recipe).items()
        before = times(recipe)
    checks = interrupt(monkeypatch, -1, error)
    got = train(recipe).get_weights()
    assert len(checks) == 10
    for array, wanted in zip(got, straight[2].values(), strict=True):
        np.testing.assert_allclose(array, wanted, atol=1e-6)
    for name in ("training.csv", "top/training.csv"):
        one, other = (pd.read_csv(work / name) for work in (recipe.run.work, straight[0].run.work))
        assert one["shard"].tolist() == other["shard"].tolist()


def test_it_goes_on_in_half_precision(recipe, monkeypatch):
    """With the loss scaling of mixed_float16, from within the top's training and before the first step after it."""
    recipe = recipe_with(recipe, precision="mixed_float16")
    for after in (10 + 3, 17):
        interrupt(monkeypatch, after, Stopped("stopped"))
        with pytest.raises(Stopped):
            train(recipe)
    assert (recipe.run.work / "checkpoint.keras").exists()
    interrupt(monkeypatch, -1, Killed())
    train(recipe)


def test_only_a_damaged_file_is_made_again(recipe):
    mirror, names, classes = prepared(recipe)
    model, _ = transfer.divide(recipe.model, build(recipe))
    write_features(recipe, mirror, names, classes, model)
    before = times(recipe)
    path = recipe.run.work / "top/images_002.npz"
    data = bytearray(path.read_bytes())
    sound = load_features(path).embeddings
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    shards = transfer.FeatureShards(path.parent, (2, 2, 12))
    with pytest.raises(InputError, match="images_002.npz.*delete it"):
        list(shards.stream("train", names))
    write_features(recipe, mirror, names, classes, model)
    after = times(recipe)
    assert {name for name in before if before[name] != after[name]} == {"images_002.npz"}
    assert np.array_equal(load_features(path).embeddings, sound)


def test_features_of_another_size_are_one_clear_line(recipe):
    mirror, names, classes = prepared(recipe)
    write_features(recipe, mirror, names[:1], classes, transfer.divide(recipe.model, build(recipe))[0])
    with pytest.raises(InputError, match="images_000.npz") as error:
        list(transfer.FeatureShards(recipe.run.work / "top", (3, 3, 12)).stream("train", names[:1]))
    assert "\n" not in str(error.value)


def test_one_shard_is_in_memory_at_a_time(recipe, monkeypatch):
    mirror, names, classes = prepared(recipe)
    made, alive = [], []

    class Array(np.ndarray):
        """An array that can be counted."""

    def counted(path):
        features = load_features(path)
        array = features.embeddings.view(Array)
        made.append(weakref.ref(array))
        alive.append(sum(reference() is not None for reference in made))
        return features._replace(embeddings=array)

    monkeypatch.setattr(transfer, "load_features", counted)
    train_top(recipe, mirror, names, classes, build(recipe))
    assert alive == [1] * (2 * len(names))


def test_a_photo_that_cannot_be_read_is_named_and_left_out(recipe, tiny_mirror, tmp_path):
    shutil.copytree(tiny_mirror, tmp_path / "mirror")
    path = tmp_path / "mirror/train/images_000.tar"
    data = path.read_bytes()
    begin = data.index(b"\xff\xd8")
    path.write_bytes(data[:begin] + bytes(50) + data[begin + 50 :])
    mirror, names, classes = prepared(recipe_with(recipe, mirror=str(tmp_path / "mirror")))
    write_features(recipe, mirror, names[:1], classes, transfer.divide(recipe.model, build(recipe))[0])
    (unreadable,) = pd.read_csv(recipe.run.work / "skipped.csv")["name"]
    (shard,) = transfer.FeatureShards(recipe.run.work / "top", (2, 2, 12)).stream("train", names[:1])
    assert len(shard.ids) == 3 and unreadable not in shard.ids and unreadable in classes.index


def test_a_stage_that_is_done_is_skipped_and_what_it_alone_needs_is_deleted(straight, monkeypatch):
    recipe, *_ = straight
    assert [path.name for path in (recipe.run.work / "top").iterdir() if path.is_file()] == ["training.csv"]
    monkeypatch.setattr(transfer, "write_features", lambda *_: pytest.fail("features again"))
    train(recipe)


def test_an_arcface_head_learns_too(recipe):
    mirror, names, classes = prepared(recipe)
    recipe = recipe_with(recipe, loss="arcface", bottleneck_epochs=20, checkpoint_minutes=60)
    train_top(recipe, mirror, names, classes, build(recipe))
    loss = pd.read_csv(recipe.run.work / "top/training.csv")["loss"]
    assert loss[-len(names) :].mean() < 0.5 * loss[: len(names)].mean()


def test_triplets_have_no_head_to_train(recipe):
    with pytest.raises(InputError, match="--loss softmax or arcface"):
        load(["--bottleneck-epochs=2", "--loss=triplet"])


# The published solution, by its facts and not by what the TOML says


@pytest.fixture
def published(tmp_path, monkeypatch):
    """The recipe, but for the weights, which would be downloaded."""
    monkeypatch.setattr(models, "build_backbone", BUILD_BACKBONE)
    given = ["--weights=none", "--delf-weights=none", "--precision=float32", f"--work={tmp_path / 'work'}"]
    return load(["--recipe=bottleneck", *given])


def test_published_is_vgg16_at_128_pixels_whose_fifth_block_is_fine_tuned(published):
    model = build(published)
    assert model.input.shape[1:] == (128, 128, 3)
    backbone, _ = transfer.divide(published.model, model)
    assert backbone.output["features"].shape[1:] == (4, 4, 512)  # the bottleneck features
    vgg16 = model.get_layer("vgg16")
    assert [layer.name for layer in vgg16.layers if layer.trainable_weights] == [f"block5_conv{n}" for n in (1, 2, 3)]


def test_published_delf_stands_on_the_fourth_stage_of_resnet50(published):
    models.save(build(published), published.run.work / "model.keras")  # VGG16, which is not what DELF is made of
    _, features = delf_training.dense_features(published.run.work, published.model, published.verification)
    assert features.layers[-1].name == "conv4_block6_out" and features.output.shape[-1] == 1024


def test_published_is_a_landmark_with_more_than_35_inliers_with_one_of_20_train_photos(published, monkeypatch):
    most = {"many": [35] * 19 + [36], "few": [35] * 25, "late": [0] * 20 + [99]}
    candidates = {photo: [f"{photo}-{number}" for number in range(len(row))] for photo, row in most.items()}

    def explained(photo, other, *_):
        return range(most[photo][int(other.split("-")[1])])

    class Identity(dict):
        def __missing__(self, key):
            return key

    def most_similar(files, train_files, landmark, train, at_most):
        return {photo: row[:at_most] for photo, row in candidates.items()}

    monkeypatch.setattr(decision, "most_similar", most_similar)
    monkeypatch.setattr(decision, "features_of", lambda *given: (Identity(), Identity(), given[-1]))
    monkeypatch.setattr(decision, "extractor_folder", lambda run, *_: run.work)
    (published.run.work / "local" / "delf").mkdir(parents=True)  # which `features_of` makes
    monkeypatch.setattr(matching, "match", lambda *_: None)
    monkeypatch.setattr(matching, "explained", explained)
    found = pd.DataFrame({"landmark": [1, 2, 3], "score": [0.5, 0.6, 0.7]}, index=list(most))
    nothing = SimpleNamespace(train=lambda: None)
    kept = decision.verify(published.run, published.verification, nothing, {"test": [], "train": []}, found)
    assert kept.index.tolist() == ["many"]
    table = pd.read_csv(published.run.work / "verification.csv", index_col="id")
    assert table["compared"].to_dict() == {"many": 20, "few": 20, "late": 20}


@pytest.mark.parametrize("name, needs_them", [("bottleneck", True), ("small-bottleneck", False)])
def test_what_a_recipe_needs_beside_the_requirements_is_said_before_training(
    name, needs_them, tiny_mirror, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "cv2", None)
    monkeypatch.setitem(sys.modules, "threadpoolctl", None)
    monkeypatch.setattr(recognition, "train_model", lambda *_: (_ for _ in ()).throw(Stopped))
    given = [f"--recipe={name}", f"--mirror={tiny_mirror}", f"--work={tmp_path / 'work'}"]
    monkeypatch.setattr(sys, "argv", ["recognition.py", *given])
    points.opencv.cache_clear()
    message = "pip install opencv-python-headless threadpoolctl" if needs_them else None
    with pytest.raises(InputError if needs_them else Stopped, match=message):  # where it is not raised, training began
        recognition.main()
    points.opencv.cache_clear()


def test_a_model_with_all_augmentation_is_saved_and_loaded(recipe, tmp_path):
    recipe = recipe_with(recipe, shear=0.2, zoom=0.2, flip=True)
    model = build(recipe)
    models.save(model, tmp_path / "model.keras")
    loaded = models.load(tmp_path / "model.keras")
    photos = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    np.testing.assert_allclose(loaded.predict_on_batch(photos), model.predict_on_batch(photos), atol=1e-6)
    (shear,) = (layer for layer in loaded.layers if isinstance(layer, layers.RandomShear))
    assert (shear.x_factor, shear.y_factor) == ((-0.2, 0.2), (-0.2, 0.2))


def test_the_work_folder_may_not_stop_pandas_from_being_imported(monkeypatch):
    monkeypatch.chdir(RECIPES.parent)
    with pytest.raises(InputError, match="pandas"):
        load(["--recipe=bottleneck", "--work=bottleneck"])
