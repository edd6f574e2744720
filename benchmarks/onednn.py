"""TensorFlow on this CPU with oneDNN, as the scripts ask for it, beside TensorFlow without: training and embedding.

    python benchmarks/onednn.py [--backbones EfficientNetLite0 ResNet50]

A process of its own for each, in turns, since TensorFlow reads the setting as it is imported. Training is a compiled
step of softmax with batch normalisation frozen, embedding the project's compiled call, both on a ready batch.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np

from benchmarks import timing

WAYS = {"oneDNN": "1", "without": "0"}
SIZE, BATCH, CLASSES = 192, 32, 100
REPEATS = 3  # in a process, after a first one which compiles


def measure(backbone: str) -> None:
    """Print photos a second that are learnt from, and that are embedded."""
    from landmarks.running import command

    command.prepare_backend()
    import keras

    import model as models
    from landmarks.networks.engines import Compiled
    from landmarks.running.settings import ModelSettings

    settings = {"backbone": backbone, "weights": "none", "pooling": "average", "image_size": SIZE, "crop": 1.0}
    model = models.build_model(CLASSES, ModelSettings(loss="softmax", **settings))
    for layer in next(layer for layer in model.layers if isinstance(layer, keras.Model)).layers:
        layer.trainable = not isinstance(layer, keras.layers.BatchNormalization)
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    compiled = Compiled(models.predictor(model))
    photos = np.random.default_rng(0).integers(0, 256, (BATCH, SIZE, SIZE, 3), dtype=np.uint8)
    classes = np.arange(BATCH) % CLASSES
    rates = [
        _rate(lambda: model.train_on_batch(photos, classes)),
        _rate(lambda: compiled.read([(BATCH, compiled([photos]))])),
    ]
    print(json.dumps(rates))


def _rate(once: Callable[[], object]) -> float:
    once()
    began = time.perf_counter()
    for _ in range(REPEATS):
        once()
    return REPEATS * BATCH / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbones", nargs="+", default=["EfficientNetLite0", "ResNet50"])
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--busy", action="store_true", help="measure on a busy machine too")
    parser.add_argument("--json", type=Path, help="add lines to this file")
    parser.add_argument("--measure", metavar="BACKBONE", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        return measure(given.measure)
    timing.require_idle(given.busy)
    for backbone in given.backbones:
        training: dict[str, list[float]] = {way: [] for way in WAYS}
        embedding: dict[str, list[float]] = {way: [] for way in WAYS}
        for _ in range(given.turns):
            for way, value in WAYS.items():
                environment = os.environ | {"KERAS_BACKEND": "tensorflow", "TF_ENABLE_ONEDNN_OPTS": value}
                command = [sys.executable, __file__, f"--measure={backbone}"]
                said = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
                learnt, embedded = json.loads(said.splitlines()[-1])
                training[way].append(learnt)
                embedding[way].append(embedded)
        for what, rates in (("training", training), ("embedding", embedding)):
            question = f"{what} by TensorFlow on this CPU, {backbone} {SIZE} px, batches of {BATCH}"
            timing.report(question, rates, "photos/s", [("oneDNN", "without", 1.0)], given.json)


if __name__ == "__main__":
    main()
