"""A TensorFlow SavedModel of a global descriptor, DELG's or our own export, run only if its graph is harmless.

A graph is a program: it may read and write files, or call Python. So all that it can run is looked at first.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from landmarks.running import command
from landmarks.running.command import InputError

MAX_BYTES = 2**31  # of all files; DELG on a ResNet101 has 0.2 GB
OUTPUTS = ("global_descriptor", "global_descriptors")  # of which DELG gives one a scale, not normalised
INPUTS = {  # what DELG takes beside `input_image`: one scale, as photos come at each; no local feature is asked for
    "input_scales": ([1.0], "float32"),
    "input_global_scales_ind": ([0], "int32"),
    "input_max_feature_num": (1, "int32"),
    "input_abs_thres": (1e9, "float32"),
}
FETCHED = {*OUTPUTS, "boxes", "features", "scores"}  # by name, from a graph of TensorFlow 1
STATEFUL = {  # operations that keep something, or call functions, and touch nothing else
    "Assert", "AssignVariableOp", "Case", "DisableCopyOnRead", "If", "RandomStandardNormal", "RandomUniform",
    "ReadVariableOp", "StackPopV2", "StackPushV2", "StackV2", "StatefulPartitionedCall", "TensorArrayCloseV3",
    "TensorArrayConcatV3", "TensorArrayGatherV3", "TensorArrayReadV3", "TensorArrayScatterV3", "TensorArraySizeV3",
    "TensorArraySplitV3", "TensorArrayV3", "TensorArrayWriteV3", "VarHandleOp", "VarIsInitializedOp", "Variable",
    "VariableV2", "While",
}  # fmt: skip
WORDS = {  # attributes whose free text names no file, function or address
    "allowed_devices", "config", "config_proto", "container", "debug_name", "equation", "executor_type", "message",
    "shared_name", "stack_name", "tensor_array_name",
}  # fmt: skip


def is_one(name: str | Path) -> bool:
    """Whether there is a folder of a SavedModel at this path."""
    return (Path(name) / "saved_model.pb").is_file()


def read(folder: Path) -> dict[str, bytes]:
    """The files of a SavedModel by their paths within it. Raises InputError if they are too large together."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    if sum(path.stat().st_size for path in paths) > MAX_BYTES:
        raise InputError(f"{folder} has more than {MAX_BYTES >> 30} GiB: no SavedModel of a descriptor")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def write(files: dict[str, bytes], folder: Path) -> None:
    """What `read` has read, in a folder."""
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def opened(files: dict[str, bytes]) -> Callable:
    """The model as a function of a tensor of photos, (B, H, W, 3) uint8 RGB, to one of descriptors, (B, D) float32.

    Raises InputError, in one line, if it is no such model, or its graph could touch files or run other code.
    """
    import keras

    if keras.backend.backend() != "tensorflow":
        raise InputError(f"KERAS_BACKEND is {keras.backend.backend()}: a SavedModel runs in TensorFlow alone; unset it")
    import tensorflow as tf

    with TemporaryDirectory() as folder:
        write(files, Path(folder))
        loaded, run, output = _loaded(Path(folder))
    given = {name: tf.constant(value, dtype) for name, (value, dtype) in INPUTS.items()}

    def of_photo(photo):
        _ = loaded  # holds the weights for the function
        return tf.reshape(run(input_image=photo, **given)[output], [-1])

    return lambda photos: tf.map_fn(of_photo, photos, fn_output_signature=tf.float32)


def _loaded(folder: Path) -> tuple[Any, Callable[..., dict], str]:
    """What is loaded, a function of named tensors, which takes some too many, and the output that is wanted."""
    import tensorflow as tf

    require_harmless(folder)
    try:
        loaded = tf.saved_model.load(str(folder))
        if "serving_default" in loaded.signatures:
            signature = loaded.signatures["serving_default"]
            names, there = set(signature.structured_input_signature[1]), set(signature.structured_outputs)
        else:
            names = there = set()
        if "input_image" not in names or not there & set(OUTPUTS):  # of TensorFlow 1, whose tensors have these names
            graph = getattr(loaded, "graph", tf.Graph())
            operations = {operation.name for operation in graph.get_operations()}
            names, there = {"input_image", *INPUTS} & operations, set(OUTPUTS) & operations
            if "input_image" not in names or not there:
                raise ValueError(f"it has no signature of input_image to {' or '.join(OUTPUTS)}")
            order, output = sorted(names), min(there)
            pruned = loaded.prune([f"{name}:0" for name in order], {output: f"{output}:0"})
            signature = lambda **given: pruned(*(given[name] for name in order))  # noqa: E731
    except Exception as error:  # whatever TensorFlow makes of a wrong folder
        raise InputError(f"it is no SavedModel of a global descriptor: {str(error)[:300]}") from error
    return loaded, lambda **given: signature(**{name: given[name] for name in names}), min(there & set(OUTPUTS))


def require_harmless(folder: Path) -> None:
    """Raise InputError if the graph of a SavedModel has operations that may touch files or run other code.

    Harmless is what computes on numbers: an operation that TensorFlow knows, with neither strings as arguments nor free
    text as attributes, and without a state but in variables. The part that saves variables, which nothing calls, is
    passed over; the one that restores them, where loading calls it, may read them.
    """
    command.prepare_backend()  # TensorFlow's greetings are muted there
    from tensorflow.core.protobuf import saved_model_pb2

    model = saved_model_pb2.SavedModel()
    try:
        model.ParseFromString((folder / "saved_model.pb").read_bytes())
    except Exception as error:  # protobuf's own, and OSError
        raise InputError(f"{folder / 'saved_model.pb'} is not the graph of a SavedModel: {error}") from error
    for graph in model.meta_graphs:
        nodes = {node.name: node for node in graph.graph_def.node}
        fields = {field.name: value for field, value in graph.graph_def.ListFields()}  # those that are there
        functions = {one.signature.name: one.node_def for one in getattr(fields.get("library"), "function", ())}
        called = {output.name for one in graph.signature_def.values() for output in one.outputs.values()}
        called |= {name for one in graph.collection_def.values() for name in one.node_list.value} | FETCHED
        saving = _reached([graph.saver_def.save_tensor_name], [], nodes, functions)[0]
        loading = _reached(set(nodes) - saving, [], nodes, functions)[1] - {"RestoreV2"}
        ran = _reached(called, graph.object_graph_def.concrete_functions, nodes, functions)[1] | loading
        if bad := sorted(op for op in ran - set(functions) if not _is_harmless(op)):
            raise InputError(
                f"a SavedModel with the operations {', '.join(bad[:5])} is not run: they may touch files or run other "
                "code; give one that computes alone"
            )


def _reached(
    fetched: Iterable[str], called: Iterable[str], nodes: dict[str, Any], functions: dict[str, Any]
) -> tuple[set[str], set[str]]:
    """The nodes, by name, that it takes to compute these tensors, and all operations there and in what is called."""
    left = [name.lstrip("^").partition(":")[0] for name in fetched]
    calls, reached, entered, operations = list(called), set[str](), set[str](), set[str]()
    while left or calls:
        bodies = []
        if left and (name := left.pop()) not in reached and name in nodes:
            reached.add(name)
            bodies.append(nodes[name])
            left += [one.lstrip("^").partition(":")[0] for one in nodes[name].input]
        if calls and (name := calls.pop()) not in entered and name in functions:
            entered.add(name)
            bodies += functions[name]
        for node in bodies:
            operations.add(node.op)
            calls.append(node.op)  # which may be a function's name
            for attribute in node.attr.values():
                calls += [attribute.func.name, *(one.name for one in attribute.list.func)]
    return reached, operations


def _is_harmless(operation: str) -> bool:
    from tensorflow.python.framework import op_def_registry

    known = op_def_registry.get(operation)
    if known is None or (known.is_stateful and operation not in STATEFUL):
        return False
    texts = {one.name for one in known.attr if one.type in ("string", "list(string)") and not one.allowed_values.list.s}
    strings = [one for one in (*known.input_arg, *known.output_arg) if one.type == 7]  # DT_STRING
    return texts <= WORDS and not strings
