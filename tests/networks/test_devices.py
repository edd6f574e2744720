"""Several devices do what one does: eight virtual ones of a CPU, in a process of their own, on JAX."""

import json
from importlib.util import find_spec

import numpy as np
import pytest
import scripts
from noise import require_equal

from landmarks.networks import devices
from landmarks.running.command import InputError
from landmarks.running.features_file import load_features
from landmarks.running.recipe import load

# Each run trains so many mini-epochs on so many devices, or goes on there, and leaves what came of it in its folder. By
# SGD: Adam makes large steps of the rounding errors that are all the gradient of a bias before a batch normalisation.
PROGRAM = """
import json, sys
sys.path.append("tests")
from landmarks.running import command
command.prepare_backend()
import keras, noise
from landmarks.networks import devices
from landmarks.running.recipe import load
from landmarks.training.trainer import Trainer

for count, mini_epochs, *arguments in json.loads(sys.argv[1]):
    keras.distribution.set_distribution(None)
    recipe = load(arguments)
    recipe.run.work.mkdir(exist_ok=True)
    devices.share(count, [recipe.divisible()])
    trainer = Trainer(recipe.run, recipe.model, recipe.training, noise.classes, 3, batches=noise.Batches)
    out = recipe.run.work / f"{len(trainer.history)}.npz"
    first = noise.weights(trainer) if trainer.resumed else {}
    for _ in range(mini_epochs):
        trainer.finish_mini_epoch(trainer.mini_epoch(noise.Shard, noise.ids))
    noise.save(out, trainer, first)
"""
PARTS = ("--loss=arcface", "--head-parts=8")
SAMPLED = ("--loss=arcface", "--head-parts=2", "--sampled-classes=0.4")  # 16 of the 32 landmarks of each part


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of all runs."""
    if find_spec("jax") is None:
        pytest.skip("pip install jax")
    folder = tmp_path_factory.mktemp("devices")
    runs = [
        ("1", 3, "alone", *PARTS),
        ("8", 1, "shared", *PARTS),
        ("1", 1, "shared", *PARTS),
        ("4", 1, "shared", *PARTS),
    ]
    runs += [(count, 1, f"sampled{count}", *SAMPLED) for count in ("1", "2")]
    common = [
        "--backbone=Tiny", "--weights=none", "--image-size=32", "--crop=0.8", "--batch-size=16", "--epochs=1",
        "--validation-shards=0", "--embedding-size=8", "--learning-rate=0.01", "--optimizer=sgd", *scripts.PLAIN,
    ]  # fmt: skip
    given = [[count, number, f"--work={folder / name}", *common, *settings] for count, number, name, *settings in runs]
    done = scripts.run("-c", PROGRAM, json.dumps(given), environment=scripts.jax(8))
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def test_sampled_classes_are_those_of_one_device(trained):
    require_equal(*(np.load(trained / f"sampled{count}" / "0.npz") for count in (1, 2)))


def test_a_checkpoint_goes_on_with_another_number_of_devices(trained):
    eight, one, four = (np.load(trained / "shared" / f"{done}.npz") for done in range(3))
    for before, after in ((eight, one), (one, four)):
        names = [name.removeprefix("last ") for name in before if name.startswith("last ")]
        assert len(names) > 10
        for name in names:
            np.testing.assert_array_equal(after[f"first {name}"], before[f"last {name}"], err_msg=name)
    require_equal(four, np.load(trained / "alone" / "0.npz"))


@pytest.mark.parametrize(("done", "count"), [(0, 8), (1, 1), (2, 4)])
def test_each_device_holds_its_classes_alone(trained, done, count):
    found = np.load(trained / "shared" / f"{done}.npz")
    of_head = [
        tuple(found[name]) for name in found if name.startswith("held ") and name.endswith(("parts", "parts_momentum"))
    ]
    assert of_head.count((8, 3, 64 // count)) == 2  # the centres of 63 landmarks, filled up, and their momentum
    assert (3, 3, 3, 8) in [tuple(found[name]) for name in found if name.startswith("held ")]  # the backbone is whole


def test_a_head_that_no_layout_was_meant_for_is_told(monkeypatch):
    class Weight:
        name, path, shape = devices.PARTS, "landmark/parts", (8, 3, 64)

        class value:
            class sharding:
                shard_shape = staticmethod(lambda shape: shape)

    class Sharing:
        num_model_replicas = 4

    monkeypatch.setattr(devices.keras.distribution, "distribution", Sharing)
    with pytest.raises(InputError, match="landmark/parts .* each device would hold"):
        devices.require_shared(type("Model", (), {"weights": [Weight]}))


def test_other_back_ends_are_told_to_take_jax(monkeypatch):
    monkeypatch.setattr(devices.keras.backend, "backend", lambda: "tensorflow")
    with pytest.raises(InputError, match="--devices 2 needs JAX.*KERAS_BACKEND=jax"):
        devices.share("2")
    devices.share("1")


@pytest.mark.parametrize(
    ("count", "reason"),
    [("9", "JAX finds 8"), ("3", "cannot share batch_size 16"), ("all", "cannot share head_parts 4")],
)
def test_what_devices_cannot_share(monkeypatch, tmp_path, count, reason):
    monkeypatch.setattr(devices.keras.backend, "backend", lambda: "jax")
    monkeypatch.setattr(devices.keras.distribution, "list_devices", lambda: [f"gpu:{number}" for number in range(8)])
    recipe = load([f"--work={tmp_path}", "--loss=arcface", "--head-parts=4", "--batch-size=16"])
    with pytest.raises(InputError, match=reason):
        devices.share(count, [recipe.divisible()])


@pytest.mark.parametrize("value", ["0", "-1", "some", ""])
def test_no_number_of_devices(tmp_path, value):
    with pytest.raises(InputError, match="--devices: give a number of devices, or all"):
        load([f"--work={tmp_path}", f"--devices={value}"])


def test_both_scripts_run_on_several_devices(tiny_mirror, tmp_path):
    if find_spec("jax") is None:
        pytest.skip("pip install jax")
    settings = [
        f"--mirror={tiny_mirror}", "--backbone=Tiny", "--weights=none", "--image-size=32", "--crop=1", "--batch-size=4",
        "--epochs=1", "--optimizer=sgd", "--loss=arcface", "--head-parts=2", "--embedding-size=8", *scripts.PLAIN,
    ]  # fmt: skip
    for count in ("1", "all"):
        for script in ("recognition.py", "retrieval.py"):
            given = [f"--work={tmp_path / count}", f"--devices={count}", *settings]
            done = scripts.run(script, *given, environment=scripts.jax(2))
            assert done.returncode == 0, done.stderr[-3000:]
    for path in sorted((tmp_path / "1" / "features").rglob("*.npz")):
        one, two = (load_features(tmp_path / count / path.relative_to(tmp_path / "1")) for count in ("1", "all"))
        np.testing.assert_array_equal(one.ids, two.ids)
        np.testing.assert_allclose(one.embeddings, two.embeddings, atol=2e-3)  # of float16
