"""A run that was stopped and goes on in another process ends with the weights of one that was not."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent

# Stops within a mini-epoch, between the two steps of an accumulated one, and goes on in a process whose Keras has never
# heard of the run's precision; stops once more, since a checkpoint of a resumed run is saved from a loaded model.
PROGRAM = """
import itertools, json, sys
from pathlib import Path
import command
command.prepare_backend()
import keras, numpy as np
import model, training
from mirror import open_mirror
from recipe import load

mirror, folder, parts = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
step = training.Run._train

def backbone(*_):
    photos = keras.Input((None, None, 3))
    x = keras.layers.Conv2D(4, 3, strides=4)(photos)
    x = keras.layers.ReLU()(keras.layers.BatchNormalization()(x))
    return keras.Model(photos, x, name="tiny"), lambda x: x / 255

model._build_backbone = backbone
for precision, loss, (part, stops) in itertools.product(
    ("float32", "mixed_float16", "mixed_bfloat16"), ("softmax", "arcface", "triplet"), parts
):
    keras.mixed_precision.set_global_policy("float32")
    work = folder / part / precision / loss
    recipe = load([
        f"--mirror={mirror}", f"--work={work}", f"--precision={precision}", f"--loss={loss}", "--recognizer=neighbours",
        "--image-size=32", "--crop=1", "--batch-size=3", "--epochs=2", "--validation-shards=0", "--optimizer=sgd",
        "--accumulate=2", "--learning-rate=0.05", "--warm-up=0", "--classes-per-batch=2", "--photos-per-class=2",
        "--subspaces=1", "--embedding-size=8",
    ])
    counter = itertools.count(1)

    def train(run, *arguments):
        if next(counter) == stops:
            command.stop_event.set()
        return step(run, *arguments)

    training.Run._train = train
    source = open_mirror(recipe.mirror)
    try:
        trained = training.train(recipe, source, source.train(), np.array([10, 20, 30]))
        np.savez(work / "weights.npz", *trained.get_weights())
    except command.Stopped:
        command.stop_event.clear()
"""


def train(mirror: Path, folder: Path, *parts: tuple[str, int]) -> None:
    """In a process of its own train each part, to its end or to the given step."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, mirror, folder, json.dumps(parts)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_a_run_goes_on_in_another_process(tiny_mirror, tmp_path):
    train(tiny_mirror, tmp_path, ("whole", 0), ("stopped", 3))
    train(tiny_mirror, tmp_path, ("stopped", 4))
    train(tiny_mirror, tmp_path, ("stopped", 0))
    weights = sorted((tmp_path / "whole").rglob("weights.npz"))
    assert len(weights) == 9
    for path in weights:
        case = path.relative_to(tmp_path / "whole")
        whole, resumed = np.load(path), np.load(tmp_path / "stopped" / case)
        for name in whole:
            np.testing.assert_array_equal(resumed[name], whole[name], err_msg=f"{case} {name}")
