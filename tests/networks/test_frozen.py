"""Networks of other runtimes as backbones, from the file to the scores: DELG's SavedModel, ONNX, anyone's .keras."""

import zipfile
from importlib.util import find_spec

import keras
import numpy as np
import pytest
import scripts
from conftest import ROOT
from delg import MATRIX, save_delg, save_tensorflow_1

import model as models
from landmarks.networks.backbones import build_backbone, check, resolved
from landmarks.running.command import InputError
from landmarks.running.settings import ModelSettings

pytestmark = pytest.mark.filterwarnings("ignore")  # TensorFlow's and tf2onnx's own, as they save
SIDES = (32, 48)
RUN = ["--recipe=small-frozen", "--image-size=32", "--batch-size=8", "--dimensions=4"]


def settings(path, **changed):
    return ModelSettings(**{"backbone": str(path), "loss": "none", "image_size": 32, **changed})


def photos(side):
    return np.random.default_rng(side).integers(0, 256, (3, side, side, 3), dtype=np.uint8)


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def onnx_files(tmp_path_factory):
    """A feature map and a vector, and the vector for photos of 32 px alone, with the Keras models that they are of."""
    pytest.importorskip("tf2onnx", reason="pip install -r requirements-export.txt")
    pytest.importorskip("onnxruntime", reason="pip install -r requirements-export.txt")
    folder, found = tmp_path_factory.mktemp("onnx"), {}
    for name, side in (("map", None), ("vector", None), ("fixed", 32)):
        keras.utils.set_random_seed(0)
        inputs = keras.Input((side, side, 3))
        maps = keras.layers.Conv2D(6, 4, strides=4, bias_initializer="ones")(inputs)
        vectors = keras.layers.GlobalAveragePooling2D()(maps)
        model = keras.Model(inputs, maps if name == "map" else vectors)
        model(np.zeros((1, 32, 32, 3), "float32"))
        model.export(folder / f"{name}.onnx", format="onnx", verbose=False)
        found[name] = (folder / f"{name}.onnx", keras.Model(inputs, vectors))
    return found


@pytest.mark.parametrize("save", [save_delg, save_tensorflow_1])
def test_delg_is_seen_at_our_sizes_and_kept_within_the_model(tmp_path, save):
    model = models.build_model(0, settings(save(tmp_path / "delg")))
    assert not model.trainable_weights
    expected = [unit(photos(side).mean(axis=(1, 2)) @ MATRIX) for side in SIDES]
    for one in (model, saved_and_loaded(model, tmp_path)):
        found = models.predict(models.predictor(one, True, SIDES), [photos(side) for side in SIDES], 4)["embedding"]
        np.testing.assert_allclose(found, unit(sum(expected)), atol=1e-5)


def saved_and_loaded(model, folder):
    models.save(model, folder / "model.keras")
    return models.load(folder / "model.keras")


@pytest.mark.parametrize("name", ["map", "vector"])
def test_onnx_gives_what_keras_does(onnx_files, tmp_path, name):
    path, of_keras = onnx_files[name]
    model = models.build_model(0, settings(path))
    for one in (model, saved_and_loaded(model, tmp_path)):
        predictor = models.predictor(one, False, SIDES, "side_by_side")
        found = models.predict(predictor, [photos(side) for side in SIDES], 4)["embedding"]
        views = [unit(np.asarray(of_keras(photos(side).astype("float32")))) for side in SIDES]
        np.testing.assert_allclose(found, unit(np.concatenate(views, axis=1)), atol=1e-5)


def test_onnx_runs_on_every_back_end(onnx_files, tmp_path):
    expected = {}
    for name in ("map", "vector"):
        model = models.build_model(0, settings(onnx_files[name][0]))
        models.save(model, tmp_path / f"{name}.keras")
        expected[name] = models.predict(models.predictor(model), photos(32), 4)["embedding"]
    np.save(tmp_path / "photos.npy", photos(32))
    program = (
        "import sys, numpy as np; from pathlib import Path; sys.path.insert(0, sys.argv[1]); import model\n"
        "for path in Path(sys.argv[2]).glob('*.keras'):\n"
        "    predictor = model.predictor(model.load(path))\n"
        "    found = model.predict(predictor, np.load(Path(sys.argv[2]) / 'photos.npy'), 4)['embedding']\n"
        "    np.save(path.with_suffix('.npy'), found)"
    )
    for backend in ("jax", "torch"):
        if find_spec(backend) is None:
            continue
        done = scripts.run("-c", program, ROOT, tmp_path, environment=scripts.on(backend))
        assert done.returncode == 0, done.stderr[-3000:]
        for name, values in expected.items():
            np.testing.assert_allclose(np.load(tmp_path / f"{name}.npy"), values, atol=1e-5)


def test_weights_may_name_a_whole_network(onnx_files, tmp_path):
    ours = models.build_model(2, ModelSettings(backbone="MobileNet", weights="none", image_size=32))
    models.save(ours, tmp_path / "ours.keras")
    onnx_files["vector"][1].save(tmp_path / "anyones.keras")
    delg = str(save_delg(tmp_path / "delg"))
    for weights in (str(onnx_files["vector"][0]), str(tmp_path / "anyones.keras"), delg):
        found = resolved(ModelSettings(weights=weights, loss="none"))
        assert (found.backbone, found.weights) == (weights, "imagenet")
    for weights in ("imagenet", "none", "gone.onnx.h5", str(tmp_path / "ours.keras"), str(tmp_path / "gone.keras")):
        assert resolved(ModelSettings(weights=weights)) == ModelSettings(weights=weights)
    model = models.build_model(0, ModelSettings(weights=str(tmp_path / "anyones.keras"), loss="none", image_size=32))
    found = models.predict(models.predictor(model), photos(32), 4)["embedding"]
    np.testing.assert_allclose(
        found, unit(np.asarray(onnx_files["vector"][1](photos(32).astype("float32")))), atol=1e-5
    )


def test_what_it_cannot_do_is_one_clear_line(onnx_files, tmp_path):
    vector, fixed = (onnx_files[name][0] for name in ("vector", "fixed"))
    with pytest.raises(InputError, match="vector.onnx is frozen, nothing in it can be trained, and --loss is arcface"):
        check(settings(vector, loss="arcface"))
    with pytest.raises(InputError, match="32 x 32 px alone: --image-size 32 --crop 1 --scales 1"):
        check(settings(fixed, image_size=64))
    with pytest.raises(InputError, match="32 x 32 px alone: --image-size 32 --crop 1 --scales 1"):
        check(settings(fixed, crop=1.0), [32, 48])
    check(settings(fixed, crop=1.0), [32])
    with pytest.raises(InputError, match="--scales 1"):  # another scale, once it is in a work folder
        models.predictor(models.build_model(0, settings(fixed, crop=1.0)), sizes=[32, 48])
    (tmp_path / "broken.onnx").write_bytes(b"broken")
    with pytest.raises(InputError, match="backbone .*broken.onnx: .* is not an ONNX file"):
        build_backbone(settings(tmp_path / "broken.onnx"))


def test_a_model_with_a_graph_that_could_do_harm_is_not_loaded(tmp_path):
    """As a stranger may send one: its SavedModel is looked at again when the .keras file is opened."""
    models.save(models.build_model(0, settings(save_delg(tmp_path / "delg"))), tmp_path / "model.keras")
    import tensorflow as tf

    harmful = save_delg(tmp_path / "harmful", harm=lambda _: tf.io.write_file(str(tmp_path / "written"), "caught"))
    with zipfile.ZipFile(tmp_path / "model.keras") as archive, zipfile.ZipFile(tmp_path / "sent.keras", "w") as sent:
        for name in archive.namelist():
            is_graph = name.endswith("saved_model.pb")
            sent.writestr(name, (harmful / "saved_model.pb").read_bytes() if is_graph else archive.read(name))
    with pytest.raises(InputError, match="WriteFile.* is not run"):
        models.load(tmp_path / "sent.keras")
    assert not (tmp_path / "written").exists()


@pytest.mark.parametrize("kind", ["delg", "onnx"])
def test_both_scripts_run_on_it(kind, request, tiny_mirror, tmp_path):
    if kind == "delg":
        weights = save_delg(tmp_path / "delg")
    else:
        weights = request.getfixturevalue("onnx_files")["vector"][0]
    work = tmp_path / "work"
    done = scripts.run(
        ROOT / "recognition.py", f"--work={work}", f"--weights={weights}", f"--mirror={tiny_mirror}", *RUN
    )
    assert done.returncode == 0, done.stderr[-3000:]
    done = scripts.run(ROOT / "retrieval.py", f"--work={work}")
    assert done.returncode == 0, done.stderr[-3000:]
    done = scripts.run(ROOT / "metrics.py", "recognition", work / "recognition.csv",
                       tiny_mirror / "ground_truth/recognition_solution_v2.1.csv")  # fmt: skip
    assert '"top1": 1.0' in done.stdout  # a landmark of the tiny mirror is its colour
    done = scripts.run(ROOT / "model.py", "export", work)
    assert done.returncode == 2
    assert "has a network of another runtime, which cannot be exported" in done.stderr
