import numpy as np
import pytest
from delg import LOCAL, MATRIX, save_delg, save_tensorflow_1

from landmarks.networks import savedmodel
from landmarks.running.command import InputError

tf = pytest.importorskip("tensorflow")
pytestmark = pytest.mark.filterwarnings("ignore")  # TensorFlow's own, as it saves


@pytest.mark.parametrize("kind", ["global", "local too", "tensorflow 1"])
def test_a_descriptor_of_each_photo(tmp_path, kind):
    if kind == "tensorflow 1":
        save_tensorflow_1(tmp_path / "delg")
    else:
        save_delg(tmp_path / "delg", LOCAL if kind == "local too" else None)
    photos = np.random.default_rng(1).integers(0, 256, (4, 20, 30, 3), dtype=np.uint8)
    found = savedmodel.opened(savedmodel.read(tmp_path / "delg"))(tf.constant(photos))
    np.testing.assert_allclose(found, photos.mean(axis=(1, 2)) @ MATRIX, rtol=1e-4)


HARM = {
    "WriteFile": lambda path: lambda _: tf.io.write_file(path, "caught"),
    "ReadFile": lambda path: lambda _: tf.io.read_file("/etc/hostname"),
    "MatchingFiles": lambda path: lambda _: tf.io.matching_files("/*"),
    "SaveV2": lambda path: (
        lambda x: tf.raw_ops.SaveV2(prefix=path, tensor_names=["x"], shape_and_slices=[""], tensors=[x])
    ),
    "RestoreV2": lambda path: (
        lambda _: tf.raw_ops.RestoreV2(prefix=path, tensor_names=["x"], shape_and_slices=[""], dtypes=[tf.float32])[0]
    ),
    "PrintV2": lambda path: lambda x: tf.print(x, output_stream=f"file://{path}"),
    "PyFunc": lambda path: lambda x: tf.numpy_function(lambda y: y, [x], tf.float32),
    "PyFuncStateless": lambda path: lambda x: tf.numpy_function(lambda y: y, [x], tf.float32, stateful=False),
    "ImmutableConst": lambda path: (
        lambda _: tf.raw_ops.ImmutableConst(dtype=tf.uint8, shape=[4], memory_region_name="/etc/hostname")
    ),
    "TextLineDataset": lambda path: (
        lambda _: tf.raw_ops.TextLineDataset(filenames=["/etc/hostname"], compression_type="", buffer_size=0)
    ),
}


@pytest.mark.parametrize("operation", HARM)
def test_a_graph_that_could_do_harm_is_not_run(tmp_path, operation):
    path = tmp_path / "written"
    harm = HARM[operation](str(path))
    for save in (save_delg, save_tensorflow_1):
        folder = save(tmp_path / save.__name__, harm=harm)
        with pytest.raises(InputError, match=f"operations .*{operation}.* is not run") as told:
            savedmodel.opened(savedmodel.read(folder))
        assert "\n" not in str(told.value)
    assert not list(tmp_path.glob("written*"))


def test_harm_may_hide(tmp_path):
    """In a function within a loop, in what loading calls, in what saving calls too."""
    path = str(tmp_path / "written")

    def in_a_loop(x):
        return tf.while_loop(lambda i: i < 2, lambda i: (tf.io.write_file(path, "caught"), i + 1)[1], [tf.constant(0)])[
            0
        ]

    def in_a_branch(x):
        return tf.cond(tf.reduce_sum(x) > 1e9, lambda: tf.strings.length(tf.io.read_file("/etc/hostname")), lambda: 0)

    for name, harm in (("loop", in_a_loop), ("branch", in_a_branch)):
        with pytest.raises(InputError, match="is not run"):
            savedmodel.opened(savedmodel.read(save_delg(tmp_path / name, harm=harm)))
    loading = save_tensorflow_1(tmp_path / "init", init=lambda _: tf.io.write_file(path, "caught"))
    with pytest.raises(InputError, match="WriteFile"):
        savedmodel.opened(savedmodel.read(loading))

    # What saving takes is passed over; here it takes the descriptor.
    from tensorflow.core.protobuf import saved_model_pb2

    folder = save_tensorflow_1(tmp_path / "saver", harm=HARM["WriteFile"](path), init=tf.identity)
    proto = saved_model_pb2.SavedModel()
    proto.ParseFromString((folder / "saved_model.pb").read_bytes())
    graph = proto.meta_graphs[0]
    saves = graph.saver_def.save_tensor_name.partition(":")[0]
    next(node for node in graph.graph_def.node if node.name == saves).input.append("^global_descriptors")
    (folder / "saved_model.pb").write_bytes(proto.SerializeToString())
    with pytest.raises(InputError, match="WriteFile"):
        savedmodel.opened(savedmodel.read(folder))
    assert not list(tmp_path.glob("written*"))


def test_what_is_no_such_model_is_told(tmp_path, monkeypatch):
    module = tf.Module()
    module.double = tf.function(lambda x: 2 * x, input_signature=[tf.TensorSpec([None], tf.float32)])
    tf.saved_model.save(module, str(tmp_path / "other"))
    with pytest.raises(InputError, match="no SavedModel of a global descriptor: .*no signature of input_image"):
        savedmodel.opened(savedmodel.read(tmp_path / "other"))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/saved_model.pb").write_bytes(b"\x0a\xff\xff")
    assert savedmodel.is_one(tmp_path / "broken")
    with pytest.raises(InputError, match="is not the graph of a SavedModel"):
        savedmodel.opened(savedmodel.read(tmp_path / "broken"))
    monkeypatch.setattr(savedmodel, "MAX_BYTES", 2)
    with pytest.raises(InputError, match="broken has more than"):
        savedmodel.read(tmp_path / "broken")
