import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from landmarks.running.command import InputError
from landmarks.training.scenes import Classifier, outdoor_votes, read_categories

# The landmarks of the tiny mirror are green (10), blue (20) and red (30): one channel is near 210, the others near 30.
# Each row is a channel's weights for the six categories, so that its three best are plain: red 0, 1, 2; green 2, 3, 0;
# blue 0, 5, 4. Even where all others help the runner-up with 3 x 30, 210 a step is not made up.
WEIGHTS = np.array([[3, 2, 1, 0, 0, 0], [1, 0, 3, 2, 0, 0], [3, 0, 0, 0, 1, 2]], "float32")


# Outdoor are 0, 1 and 5: of the top 3 that is two votes for red, one for green, two for blue.
CATEGORIES = "/a/airfield 2\n/a/alley 2\n/a/attic 1\n/b/bank_vault 1\n/b/bar 1\n/b/beach 2\n"


def make_classifier(path: Path, weights=WEIGHTS, size=16) -> Path:
    head = keras.layers.Dense(weights.shape[1], use_bias=False)
    model = keras.Sequential([keras.Input((size, size, 3)), keras.layers.GlobalAveragePooling2D(), head])
    head.set_weights([weights])
    model.save(path)
    return path


@pytest.fixture(scope="session")
def scenes(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("scenes")
    (folder / "io.txt").write_text(CATEGORIES)
    return {"classifier": make_classifier(folder / "scenes.keras"), "categories": folder / "io.txt"}


def test_votes_by_hand():
    outdoor = np.array([True, False, False, True])
    scores = np.array([[4, 3, 2, 1], [1, 2, 3, 4], [0.5, 0.5, 0.5, 0.5], [-1, -2, -3, -0.5]])
    assert outdoor_votes(scores, outdoor, 2).tolist() == [1, 1, 1, 2]  # of equal scores the first categories count
    assert outdoor_votes(scores, outdoor, 1).tolist() == [1, 1, 1, 1]
    assert outdoor_votes(scores, outdoor, 3).tolist() == [1, 1, 1, 2]
    assert outdoor_votes(scores, ~outdoor, 2).tolist() == [1, 1, 1, 0]


def test_a_keras_classifier_is_given_rgb_as_it_is(tmp_path):
    classifier = Classifier(make_classifier(tmp_path / "x.keras", np.eye(3, dtype="float32"), size=8), 3)
    assert classifier.image_size == 8
    photos = np.array([[0, 128, 255], [1, 2, 3]], "uint8")[:, None, None].repeat(8, 1).repeat(8, 2)
    np.testing.assert_allclose(classifier(photos), [[0, 128, 255], [1, 2, 3]], rtol=1e-6)


def test_the_image_size_is_the_files_own_or_the_one_given(tmp_path):
    free = make_classifier(tmp_path / "free.keras", size=None)
    assert Classifier(free, 6).image_size == 224
    assert Classifier(free, 6, 32).image_size == 32
    fixed = make_classifier(tmp_path / "fixed.keras", size=16)
    assert Classifier(fixed, 6).image_size == Classifier(fixed, 6, 16).image_size == 16
    with pytest.raises(InputError, match=r"its input is \[None, 16, 16, 3\], photos are \[32, 32, 32, 3\]"):
        Classifier(fixed, 6, 32)


def make_onnx(path: Path, shape: list, axes: list[int], weights=WEIGHTS) -> Path:
    """The mean over `axes` times `weights`."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    helper, numpy_helper, floats = onnx.helper, onnx.numpy_helper, onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMean", ["photos"], ["mean"], axes=axes, keepdims=0),
            helper.make_node("MatMul", ["mean", "weights"], ["scores"]),
        ],
        "scenes",
        [helper.make_tensor_value_info("photos", floats, shape)],
        [helper.make_tensor_value_info("scores", floats, [shape[0], weights.shape[1]])],
        [numpy_helper.from_array(weights, "weights")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize("shape", [["batch", 3, 16, 16], [2, 3, 16, 16], ["batch", 3, "height", "width"]])
def test_an_onnx_classifier_with_channels_first_is_given_imagenet_input(tmp_path, shape):
    classifier = Classifier(make_onnx(tmp_path / "x.onnx", shape, [2, 3], np.eye(3, dtype="float32")), 3)
    assert classifier.image_size == (16 if 16 in shape else 224)
    photos = np.zeros((2, classifier.image_size, classifier.image_size, 3), "uint8")
    photos[0] = [255, 0, 51]
    expected = [
        [(1 - 0.485) / 0.229, -0.456 / 0.224, (0.2 - 0.406) / 0.225],
        [-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225],
    ]
    np.testing.assert_allclose(classifier(photos), expected, rtol=1e-4)
    photos[0, 5, 9] = [255, 255, 102]
    classifier._run = lambda given: given
    expected = [(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (0.4 - 0.406) / 0.225]
    np.testing.assert_allclose(classifier(photos)[0, :, 5, 9], expected, rtol=1e-4)


def test_an_onnx_classifier_with_channels_last_is_given_rgb_as_it_is(tmp_path):
    classifier = Classifier(make_onnx(tmp_path / "x.onnx", ["batch", 4, 4, 3], [1, 2], np.eye(3, dtype="float32")), 3)
    photos = np.full((1, 4, 4, 3), [255, 0, 51], "uint8")
    np.testing.assert_allclose(classifier(photos), [[255, 0, 51]], rtol=1e-6)


def test_onnxruntime_is_asked_for_by_name(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    (tmp_path / "x.onnx").write_bytes(b"x")
    with pytest.raises(InputError, match="pip install onnxruntime"):
        Classifier(tmp_path / "x.onnx", 6)


def test_files_that_are_no_classifier(tmp_path, scenes):
    (tmp_path / "broken.keras").write_bytes(b"broken")
    (tmp_path / "x.h5").write_bytes(b"")
    code = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Lambda(lambda x: x[:, 0, 0])])
    code.save(tmp_path / "code.keras")
    vector = keras.Sequential([keras.Input((3,)), keras.layers.Dense(6)])
    vector.save(tmp_path / "vector.keras")
    spoilt = make_classifier(tmp_path / "nan.keras", WEIGHTS * np.nan)
    for name, match in {
        "broken.keras": "broken.keras does not work as a scene classifier",
        "code.keras": "code.keras does not work as a scene classifier.*safe",
        "vector.keras": r"\[None, 3\] is not \(batch, height, width, 3\)",
        "x.h5": "x.h5 is no .keras or .onnx file",
        "missing.keras": "missing.keras is no .keras or .onnx file",
    }.items():
        with pytest.raises(InputError, match=f"(?s){match}"):
            Classifier(tmp_path / name, 6)
    with pytest.raises(InputError, match=r"scores \(6,\) for a photo, but there are 365 categories"):
        Classifier(scenes["classifier"], 365)
    with pytest.raises(InputError, match="gives NaN"):
        Classifier(spoilt, 6)(np.ones((1, 16, 16, 3), "uint8"))


def test_broken_onnx(tmp_path):
    pytest.importorskip("onnxruntime")
    (tmp_path / "x.onnx").write_bytes(b"x")
    with pytest.raises(InputError, match="x.onnx does not work as a scene classifier"):
        Classifier(tmp_path / "x.onnx", 6)


def test_categories(tmp_path):
    path = tmp_path / "io.txt"
    path.write_text(CATEGORIES)
    assert read_categories(path).tolist() == [True, True, False, False, False, True]
    for text, match in {
        "": "line 1,",
        "/a/airfield 2\n/a/alley 3\n": "line 2,",
        "/a/airfield 2\n\n/a/alley 1\n": "line 2,",
        "airfield 2\n": "line 1,",
    }.items():
        path.write_text(text)
        with pytest.raises(InputError, match=f"io.txt, {match} is not like `/a/airfield 2`"):
            read_categories(path)
    path.write_bytes(b"/a/airfield\xff 2\n")
    with pytest.raises(InputError, match="io.txt cannot be read"):
        read_categories(path)
    with pytest.raises(InputError, match="nowhere.txt cannot be read"):
        read_categories(tmp_path / "nowhere.txt")
