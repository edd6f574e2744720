import json
import zipfile
from importlib.util import find_spec

import h5py
import keras
import numpy as np
import pytest
import scripts
import tiny  # noqa: F401  the backbone
from conftest import ROOT
from keras import ops

import model as models
from landmarks.running.command import InputError
from landmarks.running.settings import ModelSettings

BACKBONE = 3  # after the input, the augmentation and the normalization


def build_small(seed=0, **settings):
    given = {"backbone": "Tiny", "weights": "none", "crop": 1.0, "pooling": "gem"} | settings
    return models.build_model(5, ModelSettings(**given), seed)


@pytest.fixture(scope="module")
def small_model():
    return build_small(image_size=40, crop=0.8)


def photos(count=4, size=40):
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def softmax_of(model, images):
    return keras.ops.convert_to_numpy(keras.ops.softmax(model.predict_on_batch(images)))


def test_predictions_are_the_softmax_maximum_and_normalised_embeddings(small_model):
    images = photos()
    predictor = models.predictor(small_model)
    outputs = models.predict(predictor, images[:3], batch_size=4)
    softmax = softmax_of(small_model, images)[:3]
    np.testing.assert_array_equal(outputs["landmark"], softmax.argmax(axis=1))
    np.testing.assert_allclose(outputs["score"], softmax.max(axis=1), rtol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(outputs["embedding"], axis=1), 1, rtol=1e-5)
    assert outputs["embedding"].shape == (3, 8)
    larger = models.predict(predictor, photos(2, 64), batch_size=2)
    assert larger["embedding"].shape == (2, 8)


def test_the_best_classes_come_best_first(small_model):
    outputs = models.predict(models.predictor(small_model), photos(), batch_size=4)
    softmax = softmax_of(small_model, photos())
    np.testing.assert_allclose(outputs["top_score"], np.sort(softmax, axis=1)[:, ::-1][:, :10], rtol=1e-4)
    chosen = np.take_along_axis(softmax, outputs["top_landmark"], axis=1)
    np.testing.assert_allclose(outputs["top_score"], chosen, rtol=1e-4)


def test_a_model_with_the_softmax_in_its_head_predicts_as_before(small_model):
    """As all models had it before losses took logits."""
    embedding = small_model.get_layer("embedding").output
    head = small_model.get_layer("landmark")
    old = keras.layers.Dense(head.units, activation="softmax", dtype="float32", name="landmark")
    model = keras.Model(small_model.input, old(embedding))
    old.set_weights(head.get_weights())
    expected = models.predict(models.predictor(small_model), photos(), 4)
    for name, found in models.predict(models.predictor(model), photos(), 4).items():
        np.testing.assert_allclose(found, expected[name], rtol=1e-4, atol=1e-6)


def test_mirrored_predictions_are_the_means_over_both_views(small_model):
    images = photos()
    plain = [models.predict(models.predictor(small_model), view, 4) for view in (images, images[:, :, ::-1])]
    softmax = sum(softmax_of(small_model, view) for view in (images, images[:, :, ::-1])) / 2
    outputs = models.predict(models.predictor(small_model, mirrored=True), images, 4)
    embedding = plain[0]["embedding"] + plain[1]["embedding"]
    embedding /= np.linalg.norm(embedding, axis=1, keepdims=True)
    np.testing.assert_allclose(outputs["embedding"], embedding, atol=1e-5)
    np.testing.assert_allclose(outputs["score"], softmax.max(axis=1), rtol=1e-4)
    np.testing.assert_array_equal(outputs["landmark"], softmax.argmax(axis=1))


def test_saved_and_loaded_it_predicts_the_same_on_every_back_end(small_model, tmp_path):
    path = tmp_path / "model.keras"
    models.save(small_model, path)
    expected = small_model.predict_on_batch(photos())
    np.testing.assert_allclose(models.load(path).predict_on_batch(photos()), expected, atol=1e-6)
    program = (
        "import sys, numpy as np; sys.path.insert(0, sys.argv[1]); import model\n"
        "photos = np.random.default_rng(0).integers(0, 256, (4, 40, 40, 3), dtype=np.uint8)\n"
        "np.save(sys.argv[3], np.asarray(model.load(sys.argv[2]).predict_on_batch(photos)))"
    )
    for backend, package in (("jax", "jax"), ("torch", "torch")):
        if find_spec(package) is None:
            continue
        out = tmp_path / f"{backend}.npy"
        done = scripts.run("-c", program, ROOT, path, out, environment=scripts.on(backend))
        assert done.returncode == 0, done.stderr[-3000:]
        np.testing.assert_allclose(np.load(out), expected, atol=1e-5)


def test_weights_come_from_a_model_of_ours_or_a_weights_file(small_model, tmp_path):
    models.save(small_model, tmp_path / "model.keras")
    small_model.layers[BACKBONE].save_weights(tmp_path / "base.weights.h5")
    expected = small_model.layers[BACKBONE].get_weights()
    for name in ("model.keras", "base.weights.h5"):
        other = build_small(seed=1, weights=str(tmp_path / name))
        for ours, theirs in zip(expected, other.layers[BACKBONE].get_weights(), strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_frozen_batch_normalisation(small_model, tmp_path):
    models.save(small_model, tmp_path / "model.keras")
    model = build_small(weights=str(tmp_path / "model.keras"), freeze_batch_norm=True)
    norms = [layer for layer in model.layers[BACKBONE].layers if "BatchNorm" in type(layer).__name__]
    assert norms
    assert not any(layer.trainable for layer in norms)
    assert not any(weight.path.endswith("gamma") for weight in model.trainable_weights)
    fresh = build_small(freeze_batch_norm=True)  # random weights need it to learn at all
    assert any(weight.path.endswith("gamma") for weight in fresh.trainable_weights)


@pytest.mark.parametrize("precision", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision_ends_in_float32(precision):
    try:
        model = build_small(precision=precision)
    finally:
        keras.mixed_precision.set_global_policy("float32")
    assert model.layers[BACKBONE].compute_dtype == precision.removeprefix("mixed_")
    assert model.output.dtype == "float32"


def test_what_cannot_be_built_is_named(tmp_path):
    with pytest.raises(InputError, match="ResNet5.*did you mean ResNet50"):
        build_small(backbone="ResNet5")
    with pytest.raises(InputError, match="nowhere.h5.*neither imagenet, none, nor a file"):
        build_small(weights="nowhere.h5")
    (tmp_path / "x.h5").write_bytes(b"no weights")
    with pytest.raises(InputError, match="x.h5 does not hold weights"):
        build_small(weights=str(tmp_path / "x.h5"))
    (tmp_path / "model.keras").write_bytes(b"no model")
    with pytest.raises(InputError, match="model.keras is not a model"):
        models.load(tmp_path / "model.keras")
    (tmp_path / "labels.csv").write_text("class,landmark_id\n1,5\n")
    with pytest.raises(InputError, match="labels.csv .*bring back a copy, or delete model.keras"):
        models.load_labels(tmp_path / "labels.csv")


def test_a_model_with_code_inside_is_not_loaded(tmp_path):
    inputs = keras.Input((2,))
    keras.Model(inputs, keras.layers.Lambda(lambda x: x + 1)(inputs)).save(tmp_path / "model.keras")
    with pytest.raises(InputError, match="model.keras is not a model"):
        models.load(tmp_path / "model.keras")


def test_a_model_that_names_a_function_does_not_call_it(tmp_path):
    """Keras 3.8 called it in spite of safe_mode: CVE-2025-1550."""
    function = {"module": "os", "class_name": "function", "config": "mkdir", "registered_name": "function"}
    layer = {
        "module": "keras.layers", "class_name": "Lambda", "registered_name": None, "name": "x",
        "config": {"name": "x", "function": function}, "build_config": {"input_shape": [None, 1]},
        "inbound_nodes": [{"args": [], "kwargs": {"inputs": str(tmp_path / "made")}}],
    }  # fmt: skip
    model = {
        "module": "keras.src.models.functional", "class_name": "Functional", "registered_name": "Functional",
        "config": {"name": "model", "layers": [layer], "input_layers": [], "output_layers": [["x", 0, 0]]},
    }  # fmt: skip
    with zipfile.ZipFile(tmp_path / "model.keras", "w") as file:
        file.writestr("config.json", json.dumps(model))
        file.writestr("metadata.json", json.dumps({"keras_version": "3.8.0"}))
        file.writestr("model.weights.h5", b"")
    with pytest.raises(InputError, match="model.keras is not a model"):
        models.load(tmp_path / "model.keras")
    assert not (tmp_path / "made").exists()


@pytest.mark.filterwarnings("ignore")  # of what else Keras passes over before it comes to the file
def test_weights_are_not_read_from_another_file(tmp_path):
    """Keras 3.11 read them, whatever file it was: CVE-2026-1669."""
    (tmp_path / "secret").write_bytes(bytes(4 * 3 * 3 * 3 * 32))
    model = build_small(backbone="MobileNet")
    model.layers[BACKBONE].save_weights(tmp_path / "base.weights.h5")
    with h5py.File(tmp_path / "base.weights.h5", "r+") as file:
        kernel = file["layers/conv2d/vars/0"]
        shape = kernel.shape
        del file["layers/conv2d/vars/0"]
        file.create_dataset("layers/conv2d/vars/0", shape, "f4", external=[(str(tmp_path / "secret"), 0, 4 * 864)])
    with pytest.raises(InputError, match="(?s)does not hold weights.*Not allowed"):
        build_small(backbone="MobileNet", weights=str(tmp_path / "base.weights.h5"))


@pytest.mark.parametrize("scale_pooling", ["mean", "gem", "side_by_side"])
def test_several_scales_are_pooled(scale_pooling):
    model, large, small = build_small(), photos(2, 64), photos(2, 32)
    found = models.predict(models.predictor(model, False, [64, 32], scale_pooling), [large, small], 4)
    single = models.predictor(model)
    both = np.stack([models.predict(single, images, 4)["embedding"] for images in (large, small)])
    expected = {
        "mean": both.mean(0), "gem": np.cbrt((both**3).mean(0)), "side_by_side": np.concatenate(both, axis=1)
    }[scale_pooling]  # fmt: skip
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(found["embedding"], expected, atol=2e-3)
    heads = [softmax_of(model, images) for images in (large, small)]
    np.testing.assert_allclose(found["score"], np.mean(heads, axis=0).max(axis=1), rtol=1e-3)


@pytest.mark.parametrize("loss", ["softmax", "arcface", "none"])
def test_inner_layers_stand_beside_the_embedding(tmp_path, loss):
    models.save(build_small(loss=loss, embedding_size=0 if loss == "none" else 16), tmp_path / "model.keras")
    model, images = models.load(tmp_path / "model.keras"), photos(3)
    base = model.layers[BACKBONE]
    names = [base.layers[3].name, "conv"]  # after the activation and before it
    seen = model.get_layer("normalization")(images)
    maps = [ops.convert_to_numpy(keras.Model(base.input, base.get_layer(name).output)(seen)) for name in names]
    plain = models.predict(models.predictor(model), images, 4)
    found = models.predict(models.predictor(model, inner_layers=names), images, 4)
    parts = [plain.pop("embedding"), *(one.mean((1, 2)) for one in maps)]
    parts = [one / np.linalg.norm(one, axis=1, keepdims=True) for one in parts]
    np.testing.assert_allclose(found.pop("embedding"), np.concatenate(parts, axis=1) / np.sqrt(3), atol=1e-4)
    assert found.keys() == plain.keys()
    for name, expected in plain.items():
        np.testing.assert_allclose(found[name], expected, rtol=1e-4)


def test_inner_layers_at_several_scales_and_mirrored():
    model, large, small = build_small(), photos(2, 64), photos(2, 32)
    found = models.predict(models.predictor(model, True, [64, 32], "side_by_side", ["conv"]), [large, small], 4)
    single = models.predictor(model, inner_layers=["conv"])
    one_by_one = []
    for images in (large, small):
        views = [models.predict(single, view, 4)["embedding"] for view in (images, images[:, :, ::-1])]
        one_by_one.append(sum(views) / np.linalg.norm(sum(views), axis=1, keepdims=True))
    np.testing.assert_allclose(found["embedding"], np.concatenate(one_by_one, axis=1) / np.sqrt(2), atol=1e-4)


def test_inner_layers_that_are_not_there_are_named():
    with pytest.raises(InputError, match="has no layer conv5 with a map; did you mean conv"):
        models.predictor(build_small(), inner_layers=["conv5"])


def test_an_arcface_model_gives_cosines_and_its_embedding():
    model = build_small(loss="arcface", embedding_size=16)
    assert model.get_layer("embedding").output.shape == (None, 16)
    found = models.predict(models.predictor(model), photos(), 4)
    cosines = ops.convert_to_numpy(model(photos()))
    assert (np.abs(cosines) <= 1 + 1e-6).all()
    np.testing.assert_array_equal(found["landmark"], cosines.argmax(axis=1))
    np.testing.assert_allclose(found["score"], cosines.max(axis=1), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(found["embedding"], axis=1), 1, atol=1e-5)


def test_a_triplet_model_has_embeddings_alone(tmp_path):
    model = build_small(loss="triplet", embedding_size=16)
    models.save(model, tmp_path / "model.keras")
    found = models.predict(models.predictor(models.load(tmp_path / "model.keras")), photos(), 4)
    assert list(found) == ["embedding"]
    np.testing.assert_allclose(found["embedding"], ops.convert_to_numpy(model(photos())), atol=1e-5)
