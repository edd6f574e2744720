"""A run that was stopped and goes on in another process ends with the weights of one that was not."""

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import scripts

from landmarks.running.features_file import load_features

# Stops within a mini-epoch, between the two steps of an accumulated one, and goes on in a process whose Keras has never
# heard of the run's precision; stops once more, since a checkpoint of a resumed run is saved from a loaded model.
PROGRAM = """
import itertools, json, sys
from pathlib import Path
from landmarks.running import command
command.prepare_backend()
import keras, numpy as np
import features, model
from landmarks.mirrors.open import open_mirror
from landmarks.running.recipe import load
from landmarks.training import run as training
from landmarks.training.step import Steps

mirror, folder, cases, parts, plain = sys.argv[1], Path(sys.argv[2]), *map(json.loads, sys.argv[3:])
step, classes = Steps.__call__, np.array([10, 20, 30])

for (precision, loss), (part, stops) in itertools.product(cases, parts):
    keras.mixed_precision.set_global_policy("float32")
    work = folder / part / precision / loss
    recipe = load([
        f"--mirror={mirror}", f"--work={work}", f"--precision={precision}", f"--loss={loss}", "--recognizer=neighbours",
        *plain, "--backbone=Tiny", "--weights=none", "--image-size=32", "--crop=1", "--batch-size=3",
        "--epochs=2", "--validation-shards=0", "--optimizer=sgd",
        "--accumulate=2", "--learning-rate=0.05", "--warm-up=0", "--classes-per-batch=2", "--photos-per-class=2",
        "--subspaces=1", "--embedding-size=8", "--layer-decay=0.5",
    ])
    counter = itertools.count(1)

    def train(steps, *arguments):
        if next(counter) == stops:
            command.stop_event.set()
        return step(steps, *arguments)

    Steps.__call__ = train
    source = open_mirror(mirror)
    try:
        trained = training.train(recipe.run, recipe.model, recipe.training, source, source.train(), classes)
        np.savez(work / "weights.npz", *trained.get_weights())
        predictor = model.predictor(trained, recipe.embedding.mirrored)
        features.embed(predictor, classes, source, "test", work, recipe.embedding, image_size=32, batch_size=3)
    except command.Stopped:
        command.stop_event.clear()
"""


# Each loss and each precision, which do not know of each other; Keras' other back ends scale no loss of float16.
CASES = [("float32", "softmax"), ("mixed_float16", "arcface"), ("mixed_bfloat16", "triplet")]


def train(mirror: Path, folder: Path, *parts: tuple[str, int], backend="tensorflow"):
    """In a process of its own train each part, to its end or to the given step; then embed the test photos."""
    cases = CASES if backend == "tensorflow" else [("float32", "arcface"), *CASES[::2]]
    arguments = ["-c", PROGRAM, mirror, folder, *map(json.dumps, (cases, parts, scripts.PLAIN))]
    done = scripts.run(*arguments, environment=scripts.on(backend))
    assert done.returncode == 0, done.stderr[-3000:]


def require_the_same_weights(folder: Path) -> None:
    weights = sorted((folder / "whole").rglob("weights.npz"))
    assert len(weights) == 3
    for path in weights:
        case = path.relative_to(folder / "whole")
        whole, resumed = np.load(path), np.load(folder / "stopped" / case)
        for name in whole:
            np.testing.assert_array_equal(resumed[name], whole[name], err_msg=f"{case} {name}")


def test_a_run_goes_on_in_another_process(tiny_mirror, tmp_path):
    train(tiny_mirror, tmp_path, ("whole", 0), ("stopped", 3))
    train(tiny_mirror, tmp_path, ("stopped", 4))
    train(tiny_mirror, tmp_path, ("stopped", 0))
    require_the_same_weights(tmp_path)


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_every_back_end_trains_goes_on_and_embeds(tiny_mirror, tmp_path, backend):
    if find_spec(backend) is None:
        pytest.skip(f"pip install {backend}")
    train(tiny_mirror, tmp_path, ("whole", 0), ("stopped", 3), backend=backend)
    train(tiny_mirror, tmp_path, ("stopped", 0), backend=backend)
    require_the_same_weights(tmp_path)
    files = list(tmp_path.rglob("features/test/*.npz"))
    assert len(files) == 2 * 3 * 2  # whole and stopped; cases; shards
    for path in files:
        embeddings = load_features(path).embeddings.astype("float32")
        np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-3)
