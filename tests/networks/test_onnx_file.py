import os

import numpy as np
import pytest

from landmarks.networks import onnx_file
from landmarks.running.command import InputError

onnx = pytest.importorskip("onnx", reason="pip install -r requirements-export.txt")
pytest.importorskip("onnxruntime", reason="pip install -r requirements-export.txt")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

PHOTOS = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3)).astype("float32")


def network(shape, kind=TensorProto.FLOAT, matrix=None, keep_map=False, more=()):
    """The mean of the colours of photos of this shape, by a matrix if one is given; or the photos themselves."""
    first = shape[-3] == 3
    photos = helper.make_tensor_value_info("photos", kind, shape)
    rank, channels = len(shape), shape[-3 if first else -1]
    if keep_map:
        nodes = [helper.make_node("Cast", ["photos"], ["out"], to=TensorProto.FLOAT)]
        out = helper.make_tensor_value_info("out", TensorProto.FLOAT, shape)
        return model(nodes, [photos], [out], [])
    axes = [rank - 2, rank - 1] if first else [rank - 3, rank - 2]
    constants = [numpy_helper.from_array(np.array(axes), "axes")]
    nodes = [
        helper.make_node("Cast", ["photos"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["numbers", "axes"], ["mean"], keepdims=0),
    ]
    if matrix is not None:
        constants.append(numpy_helper.from_array(matrix, "matrix"))
        nodes.append(helper.make_node("MatMul", ["mean", "matrix"], ["out"]))
        channels = matrix.shape[1]
    else:
        nodes.append(helper.make_node("Identity", ["mean"], ["out"]))
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, [*shape[: rank - 3], channels])
    return model(nodes, [photos], [*more, out], constants)


def model(nodes, inputs, outputs, constants):
    graph = helper.make_graph(nodes, "graph", inputs, outputs, constants)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    return made


def opened(tmp_path, made):
    onnx.save(made, tmp_path / "network.onnx")
    return onnx_file.opened(onnx_file.read(tmp_path / "network.onnx"))


@pytest.mark.parametrize("shape", [["n", "h", "w", 3], [None, 8, 8, 3], [2, 8, 8, 3], ["h", "w", 3]])
def test_channels_last_sees_the_photos_as_they_are(tmp_path, shape):
    for kind in (TensorProto.FLOAT, TensorProto.UINT8):
        found = opened(tmp_path, network(shape, kind))
        assert found.side == (8 if 8 in shape else None)
        np.testing.assert_allclose(found.run(PHOTOS), PHOTOS.mean(axis=(1, 2)), rtol=1e-5)


def test_channels_first_sees_them_as_torchvision_has_them(tmp_path):
    found = opened(tmp_path, network(["n", 3, "h", "w"]))
    expected = (PHOTOS.mean(axis=(1, 2)) / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(found.run(PHOTOS), expected, rtol=1e-4, atol=1e-5)
    maps = opened(tmp_path, network(["n", 3, "h", "w"], keep_map=True)).run(PHOTOS)
    assert maps.shape == (5, 8, 8, 3)
    np.testing.assert_allclose(maps.mean(axis=(1, 2)), expected, rtol=1e-4, atol=1e-5)


def test_of_several_outputs_a_vector_is_taken(tmp_path):
    more = [helper.make_tensor_value_info("numbers", TensorProto.FLOAT, ["n", "h", "w", 3])]
    found = opened(tmp_path, network(["n", "h", "w", 3], more=more))
    assert found.run(PHOTOS).shape == (5, 3)


def external(tmp_path, location, length=None):
    """A network whose matrix is in a file beside it, as its location says."""
    made = network(["n", "h", "w", 3], matrix=np.eye(3, 16, dtype="float32"))
    tensor = next(one for one in made.graph.initializer if one.name == "matrix")
    data = tensor.raw_data
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), *([("length", str(length))] if length else [])):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    folder = tmp_path / "folder"
    folder.mkdir(exist_ok=True)
    (folder / "network.onnx").write_bytes(made.SerializeToString())
    return folder, data


def test_weights_beside_it_are_taken_in(tmp_path):
    folder, data = external(tmp_path, "weights.bin")
    (folder / "weights.bin").write_bytes(data)
    whole = onnx_file.read(folder / "network.onnx")
    (folder / "weights.bin").unlink()
    found = onnx_file.opened(whole).run(PHOTOS)
    np.testing.assert_allclose(found[:, :3], PHOTOS.mean(axis=(1, 2)), rtol=1e-5)


def test_weights_elsewhere_are_not_read(tmp_path):
    secret = tmp_path / "secret.bin"
    for location in ("../secret.bin", str(secret), "link.bin"):
        folder, data = external(tmp_path, location)
        secret.write_bytes(data)
        if location == "link.bin":
            os.symlink(secret, folder / "link.bin")
        with pytest.raises(InputError, match="network.onnx is not an ONNX file that can be read") as told:
            onnx_file.read(folder / "network.onnx")
        assert "\n" not in str(told.value)
    made = onnx.load(folder / "network.onnx", load_external_data=False)
    with pytest.raises(InputError, match="some of its weights are elsewhere"):
        onnx_file.opened(made.SerializeToString())  # as within a .keras file


def test_sizes_are_bounded(tmp_path, monkeypatch):
    folder, data = external(tmp_path, "weights.bin", length=2**40)
    (folder / "weights.bin").write_bytes(data)
    with pytest.raises(InputError, match="with its weights it has more than"):
        onnx_file.read(folder / "network.onnx")
    monkeypatch.setattr(onnx_file, "MAX_BYTES", 10)
    with pytest.raises(InputError, match="it has more than"):
        onnx_file.read(folder / "network.onnx")


def test_what_is_no_network_of_photos_is_told(tmp_path, monkeypatch):
    (tmp_path / "broken.onnx").write_bytes(b"broken")
    with pytest.raises(InputError, match="broken.onnx is not an ONNX file"):
        onnx_file.read(tmp_path / "broken.onnx")
    with pytest.raises(InputError, match="gone.onnx is not an ONNX file"):
        onnx_file.read(tmp_path / "gone.onnx")
    text = helper.make_tensor_value_info("text", TensorProto.INT64, ["n", 77])
    rows = model([helper.make_node("Identity", ["text"], ["out"])], [text], [
        helper.make_tensor_value_info("out", TensorProto.INT64, ["n", 77])
    ], [])  # fmt: skip
    for made, match in (
        (rows, r"does not take photos .*: text tensor\(int64\)"),
        (network(["n", 8, 9, 3]), "no squares"),
    ):
        with pytest.raises(InputError, match=match) as told:
            opened(tmp_path, made)
        assert "\n" not in str(told.value)
    monkeypatch.setattr(onnx_file, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="needs onnx and onnxruntime: pip install -r requirements-export.txt"):
        onnx_file.read(tmp_path / "network.onnx")
