import os
import pickle
from collections import OrderedDict

import numpy as np
import pytest

from landmarks.networks import torch_file
from landmarks.networks.torch_file import read_tensors
from landmarks.running.command import InputError


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
