"""Models: each would leave a file `owned` if code in it ran."""

import json
import tempfile
import time
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strangers import hostile, mutated, npz

from landmarks.running.command import InputError

MARKER = "import os; os.mkdir('owned')"
FUNCTIONS = [
    {"module": "os", "class_name": "function", "config": "system", "registered_name": "function"},
    {"module": "builtins", "class_name": "function", "config": "eval", "registered_name": "function"},
    {"module": "builtins", "class_name": "function", "config": "exec", "registered_name": "exec"},
    {"module": "subprocess", "class_name": "Popen", "config": {"args": ["mkdir", "owned"]}, "registered_name": None},
    {"module": "os", "class_name": "mkdir", "config": {"path": "owned"}, "registered_name": None},
    {"module": "os", "class_name": "mkdir", "config": {"path": "owned"}, "registered_name": "landmarks>GeM"},
    {"module": "os", "class_name": "system", "config": "mkdir owned", "registered_name": "builtins>eval"},
    {"module": "keras.src.utils.python_utils", "class_name": "function", "config": "func_load"},
    {"module": "keras.config", "class_name": "function", "config": "enable_unsafe_deserialization"},
    {"module": "keras.utils", "class_name": "get_file", "config": {"fname": "owned", "origin": "file:///etc/passwd"}},
    {"module": "keras.saving", "class_name": "load_model", "config": {"filepath": "owned", "safe_mode": False}},
    {"module": "builtins", "class_name": "__lambda__", "config": {"value": MARKER}},
    {"class_name": "__lambda__", "config": {"value": "4wAAAAA=\n"}},
    {"module": "keras.layers", "class_name": "Lambda", "config": {"function": MARKER}},
    {"module": "keras.layers", "class_name": "TFSMLayer", "config": {"filepath": "../owned"}},
    {"module": "tensorflow", "class_name": "function", "config": "io.write_file"},
    {"module": "../owned", "class_name": "x\u202e", "config": {}},
    {"module": "keras.layers", "class_name": "Dense", "config": {"units": 10**12}},
]


def put_into(config: dict, place: str, thing: dict) -> dict:
    layer = config["config"]["layers"][1]
    if place == "layer":
        config["config"]["layers"][1] = {**thing, "name": layer["name"], "inbound_nodes": layer["inbound_nodes"]}
    elif place == "loss":
        config["compile_config"] = {"loss": thing, "optimizer": thing, "metrics": [thing]}
    elif place == "whole":
        return thing
    else:
        layer["config"][place] = thing
    return config


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> dict[str, bytes]:
    """What is in a .keras file that loads."""
    keras = pytest.importorskip("keras")
    photos = keras.Input((4, 4, 3))
    path = tmp_path_factory.mktemp("model") / "model.keras"
    keras.Model(photos, keras.layers.Dense(2)(keras.layers.Flatten()(photos))).save(path)
    with zipfile.ZipFile(path) as file:
        return {name: file.read(name) for name in file.namelist()}


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Load a model file as both readers do: True where one took it."""
    import model as models
    from landmarks.training.scenes import Classifier

    monkeypatch.chdir(tmp_path)
    (tmp_path / "work").mkdir()

    def try_both(data: bytes) -> list[bool]:
        folder = Path(tempfile.mkdtemp(dir=tmp_path / "work"))
        (folder / "model.keras").write_bytes(data)
        took = []
        for reader in (models.load, lambda path: Classifier(path, 2)):
            begun = time.process_time()
            try:
                reader(folder / "model.keras")
                took.append(True)
            except InputError as error:
                assert len(str(error)) < 1000
                took.append(False)
            assert time.process_time() - begun < 20
        assert [path.name for path in tmp_path.iterdir()] == ["work"]
        assert [path.name for path in folder.iterdir()] == ["model.keras"]
        return took

    return try_both


def test_a_whole_model_loads(load, parts):
    assert load(npz(parts.items())) == [True, True]


@pytest.mark.parametrize("place", ["layer", "activation", "kernel_initializer", "dtype", "loss", "whole"])
def test_no_code_of_a_model_runs(load, parts, place):
    for thing in FUNCTIONS:
        config = put_into(json.loads(parts["config.json"]), place, thing)
        took = load(npz({**parts, "config.json": json.dumps(config).encode()}.items()))
        assert place == "loss" or not any(took), thing


def test_damaged_models(load, parts):
    weights = parts["model.weights.h5"]
    whole = npz(parts.items())
    for changed in (
        {"model.weights.h5": weights[: len(weights) // 2]},
        {"model.weights.h5": b""},
        {"config.json": b"[" * 100_000},
        {"config.json": b"\xff\xfe"},
        {"config.json": b'{"a": 1, "a": NaN}'},
    ):
        assert not any(load(npz({**parts, **changed}.items())))
    for data in (b"", whole[:-30], weights, whole[: len(whole) // 2]):
        assert not any(load(data))
    for name in ("../../owned", str(Path.cwd() / "owned"), "assets/../../../owned", "a\0b", "config.json/owned"):
        load(npz([*parts.items(), (name, b"owned")]))  # what is not asked for stays in the file


def test_a_model_is_not_unpacked(load, parts):
    bomb = parts["config.json"] + b" " * 50_000_000
    assert load(npz({**parts, "config.json": bomb}.items(), zipfile.ZIP_DEFLATED)) == [False, False]


@settings(hostile, max_examples=10)
@given(st.data())
def test_models(load, parts, data):
    load(data.draw(mutated([npz(parts.items())])))


@pytest.mark.parametrize("content", [b"", b"x" * 1000, b"\x0a\xff\xff\xff\xff\x0f", b"\x08\x01" * 1000])
def test_a_damaged_savedmodel_is_one_line(tmp_path, content):
    pytest.importorskip("tensorflow")
    from landmarks.local_features.extractors import open_extractor

    for name in ("saved_model.pb", "saved_model.pbtxt"):
        (tmp_path / name).mkdir(parents=True) if not content else (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match="is no SavedModel"):
            open_extractor("savedmodel", tmp_path)


@settings(hostile, max_examples=30)
@given(mutated([b"\x08\x08\x3a\x10\x0a\x00\x12\x01g\x5a\x03\x0a\x01x\x62\x03\x0a\x01y", b"\x08\x08"]))
def test_onnx(read_within_bounds, data):
    pytest.importorskip("onnxruntime")
    from landmarks.training.scenes import Classifier

    read_within_bounds(lambda path: Classifier(path, 2), data, "x.onnx", InputError)
