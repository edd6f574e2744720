"""Compiled predictors say what Keras' own `predict_on_batch` says."""

from importlib.util import find_spec

import keras
import numpy as np
import pytest
import scripts

import model as models
from landmarks.networks import engines
from landmarks.networks.engines import Compiled
from landmarks.running.command import InputError

PROGRAM = """
import keras
import numpy as np

import model as models
from landmarks.networks.engines import Compiled

photos = keras.Input((32, 32, 3), dtype="uint8")
x = keras.layers.Conv2D(8, 3)(keras.ops.cast(photos, "float32") / 255)
x = keras.layers.BatchNormalization()(x)
x = keras.layers.GlobalAveragePooling2D(name="embedding")(keras.ops.relu(x))
model = keras.Model(photos, keras.layers.Dense(12, name="landmark")(x))
generator = np.random.default_rng(0)
model.set_weights([generator.uniform(0.1, 1, one.shape) for one in model.get_weights()])
for sizes in ([32], [32, 32]):
    predictor = models.predictor(model, mirrored=True, sizes=sizes if len(sizes) > 1 else ())
    given = [generator.integers(0, 256, (4, size, size, 3), dtype="uint8") for size in sizes]
    expected = predictor.predict_on_batch(given if len(sizes) > 1 else given[0])
    compiled = Compiled(predictor)
    found = compiled.read([(3, compiled([keras.ops.convert_to_tensor(some) for some in given])), (1, compiled(given))])
    for name, values in expected.items():
        np.testing.assert_allclose(found[name][:3], values[:3], atol=1e-5, err_msg=name)
        np.testing.assert_allclose(found[name][3:], values[:1], atol=1e-5, err_msg=name)
        assert found[name].dtype == values.dtype or name.endswith("landmark"), name
    assert compiled.read([])["embedding"].shape == (0, 8)
"""


@pytest.mark.parametrize("backend", ["tensorflow", "jax", "torch"])
def test_every_back_end_compiles_a_predictor(backend):
    if find_spec(backend) is None:
        pytest.skip(f"pip install {backend}")
    done = scripts.run("-c", PROGRAM, environment=scripts.on(backend))
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def predictor():
    """A small network whose two batches of weights matter."""
    keras.utils.set_random_seed(0)
    photos = keras.Input((32, 32, 3), dtype="uint8")
    x = keras.layers.Conv2D(16, 3, strides=2, activation="relu")(keras.ops.cast(photos, "float32") / 255)
    x = keras.layers.Conv2D(16, 3, strides=2, activation="relu")(keras.layers.BatchNormalization()(x))
    x = keras.layers.GlobalAveragePooling2D(name="embedding")(x)
    return models.predictor(keras.Model(photos, keras.layers.Dense(11, name="landmark")(x)), mirrored=True)


@pytest.mark.parametrize(("engine", "tolerance"), [("openvino", 1e-5), ("openvino-bf16", 2e-2)])
def test_openvino_embeds_as_keras_does(predictor, engine, tolerance):
    pytest.importorskip("openvino")
    photos = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    expected = predictor.predict_on_batch(photos)
    compiled = Compiled(predictor, engine)
    found = compiled.read([(4, compiled([photos]))])
    assert set(found) == set(expected)
    np.testing.assert_allclose(found["embedding"], expected["embedding"], atol=tolerance)
    np.testing.assert_allclose(found["top_score"], expected["top_score"], atol=tolerance)
    assert (found["embedding"] * expected["embedding"]).sum(axis=1).min() > 0.999


def test_openvino_that_is_absent_is_named_with_its_extra(monkeypatch):
    monkeypatch.setattr(engines, "find_spec", lambda _: None)
    with pytest.raises(InputError, match="--engine openvino needs openvino: pip install -r requirements-export.txt"):
        engines.require("openvino")
