"""A run that was stopped and goes on in another process ends with the weights of one that was not."""

import json
import os
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import scripts

from features import load_features

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

mirror, folder, precisions, parts = sys.argv[1], Path(sys.argv[2]), sys.argv[3].split(","), json.loads(sys.argv[4])
step, classes = training.Trainer._train, np.array([10, 20, 30])

for precision, loss, (part, stops) in itertools.product(precisions, ("softmax", "arcface", "triplet"), parts):
    keras.mixed_precision.set_global_policy("float32")
    work = folder / part / precision / loss
    recipe = load([
        f"--mirror={mirror}", f"--work={work}", f"--precision={precision}", f"--loss={loss}", "--recognizer=neighbours",
        "--backbone=Tiny", "--weights=none", "--image-size=32", "--crop=1", "--batch-size=3", "--epochs=2",
        "--validation-shards=0", "--optimizer=sgd",
        "--accumulate=2", "--learning-rate=0.05", "--warm-up=0", "--classes-per-batch=2", "--photos-per-class=2",
        "--subspaces=1", "--embedding-size=8",
    ])
    counter = itertools.count(1)

    def train(run, *arguments):
        if next(counter) == stops:
            command.stop_event.set()
        return step(run, *arguments)

    training.Trainer._train = train
    source = open_mirror(mirror)
    try:
        trained = training.train(recipe.run, recipe.model, recipe.training, source, source.train(), classes)
        np.savez(work / "weights.npz", *trained.get_weights())
        predictor = model.predictor(trained, recipe.embedding.mirrored)
        features.embed(predictor, classes, source, "test", work, recipe.embedding, image_size=32, batch_size=3)
    except command.Stopped:
        command.stop_event.clear()
"""


def train(
    mirror: Path, folder: Path, precisions: tuple[str, ...], *parts: tuple[str, int], backend="tensorflow", fork=True
):
    """In a process of its own train each part, to its end or to the given step; then embed the test photos."""
    arguments = ["-c", PROGRAM, mirror, folder, ",".join(precisions), json.dumps(parts)]
    done = scripts.run(*arguments, environment=os.environ | {"KERAS_BACKEND": backend}, fork=fork)
    assert done.returncode == 0, done.stderr[-3000:]


def require_the_same_weights(folder: Path, cases: int) -> None:
    weights = sorted((folder / "whole").rglob("weights.npz"))
    assert len(weights) == cases
    for path in weights:
        case = path.relative_to(folder / "whole")
        whole, resumed = np.load(path), np.load(folder / "stopped" / case)
        for name in whole:
            np.testing.assert_array_equal(resumed[name], whole[name], err_msg=f"{case} {name}")


def test_a_run_goes_on_in_another_process(tiny_mirror, tmp_path):
    precisions = ("float32", "mixed_float16", "mixed_bfloat16")
    train(tiny_mirror, tmp_path, precisions, ("whole", 0), ("stopped", 3), fork=False)
    train(tiny_mirror, tmp_path, precisions, ("stopped", 4))
    train(tiny_mirror, tmp_path, precisions, ("stopped", 0))
    require_the_same_weights(tmp_path, cases=9)


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_every_back_end_trains_goes_on_and_embeds(tiny_mirror, tmp_path, backend):
    if find_spec(backend) is None:
        pytest.skip(f"pip install {backend}")
    train(tiny_mirror, tmp_path, ("float32", "mixed_bfloat16"), ("whole", 0), ("stopped", 3), backend=backend)
    train(tiny_mirror, tmp_path, ("float32", "mixed_bfloat16"), ("stopped", 0), backend=backend)
    require_the_same_weights(tmp_path, cases=6)
    files = list(tmp_path.rglob("features/test/*.npz"))
    assert len(files) == 2 * 6 * 2  # whole and stopped; cases; shards
    for path in files:
        embeddings = load_features(path).embeddings.astype("float32")
        np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-3)
