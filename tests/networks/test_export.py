import keras
import numpy as np
import pytest
import tiny  # noqa: F401
from conftest import recipe_with

import model as models
from landmarks.networks import export
from landmarks.running.command import InputError


def test_a_net_of_mixed_precision_becomes_one_of_float32():
    settings = recipe_with(backbone="Tiny", weights="none", image_size=32, crop=1.0, precision="mixed_float16").model
    try:
        model = models.build_model(3, settings)
    finally:
        keras.mixed_precision.set_global_policy("float32")
    single = export.as_float32(model)
    assert {layer.compute_dtype for layer in single._flatten_layers() if layer.weights} == {"float32"}
    assert "float16" in {layer.compute_dtype for layer in model._flatten_layers() if layer.weights}
    photos = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    np.testing.assert_allclose(single(photos), model(photos), atol=2e-2)
    assert export.as_float32(single) is single


def test_what_is_missing_is_named(monkeypatch):
    export.require("litert")
    monkeypatch.setattr(export, "find_spec", lambda name: None if "onnx" in name else name)
    with pytest.raises(InputError, match="needs tf2onnx and onnx and onnxruntime: pip install -r requirements-export"):
        export.require("onnx")
    export.require("openvino")
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(InputError, match="KERAS_BACKEND is jax: exports are written with TensorFlow"):
        export.require("savedmodel")


def test_what_a_converter_cannot_take_is_one_line(tmp_path, capsys):
    class Odd:
        def export(self, *_arguments, **_options):
            print("step 1")
            raise NotImplementedError("no such operation")

    with pytest.raises(InputError, match="--format savedmodel cannot be written by these versions: no such operation"):
        export.write(Odd(), "savedmodel", tmp_path)
    assert capsys.readouterr() == ("", "")
