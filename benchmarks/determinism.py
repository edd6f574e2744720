"""How far apart are embeddings that should be the same, where the threads or the instructions of the CPU are others?

    python benchmarks/determinism.py [--landmarks 12] [--steps 10]

Five photos of each landmark of the sample, embedded by EfficientNet-Lite0 with its ImageNet weights, and again after so
many training steps on 20 of them at a time with the settings of the recipe `small`. Each way is a process of its own;
printed is the largest difference of any of their 1,280 values, L2-normalised, from those of the first way, which runs
twice. Only TensorFlow hears of these settings.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # that there is no GPU
ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)  # the project

VIEWS, BATCH = 5, 20
TWO = {"TF_NUM_INTRAOP_THREADS": "2"}
WAYS = {
    "2 threads": TWO,
    "the same again": TWO,
    "1 thread": {"TF_NUM_INTRAOP_THREADS": "1"},
    "4 threads": {"TF_NUM_INTRAOP_THREADS": "4"},
    "without oneDNN": TWO | {"TF_ENABLE_ONEDNN_OPTS": "0"},
    "as on a CPU without AVX": TWO | {"ONEDNN_MAX_CPU_ISA": "SSE41"},
}


def embed(photos: np.ndarray, steps: int) -> dict[str, np.ndarray]:
    """The embeddings of the photos before and after training, (N, 1280) float32 each."""
    from landmarks.running import command

    command.prepare_backend()
    import model as models
    from generators import shuffled
    from landmarks.networks.losses import SmoothedCrossentropy
    from landmarks.running.settings import ModelSettings, TrainingSettings
    from landmarks.training.schedule import optimizer

    settings = TrainingSettings()
    classes = np.arange(len(photos)) // VIEWS
    model = models.build_model(len(photos) // VIEWS, ModelSettings())
    predictor = models.predictor(model)
    before = models.predict(predictor, photos, len(photos))["embedding"]
    model.compile(optimizer(settings, []), SmoothedCrossentropy(settings.label_smoothing, from_logits=True))
    for step in range(steps):
        rows = shuffled(len(photos), seed=0, mini_epoch=step)[:BATCH]
        model.train_on_batch(photos[rows], classes[rows])
    return {"before": before, "after": models.predict(predictor, photos, len(photos))["embedding"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--landmarks", type=int, default=12)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--embed", nargs=2, metavar=("PHOTOS", "OUT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.embed:
        photos, out = arguments.embed
        return np.savez(out, allow_pickle=False, **embed(np.load(photos), arguments.steps))

    from landmarks.mirrors.images import decode
    from landmarks.running.settings import ModelSettings
    from landmarks.sample.photos import photo

    urls = [f"sample:0/{landmark}/{view}" for landmark in range(arguments.landmarks) for view in range(VIEWS)]
    with tempfile.TemporaryDirectory() as folder:
        photos, out, first = Path(folder) / "photos.npy", Path(folder) / "embeddings.npz", None
        np.save(photos, np.stack([decode(photo(url), ModelSettings().image_size) for url in urls]))
        for way, environment in WAYS.items():
            command = [sys.executable, __file__, "--embed", str(photos), str(out), "--steps", str(arguments.steps)]
            subprocess.run(command, env=os.environ | environment, check=True)
            found = dict(np.load(out))
            first = first or found
            apart = {when: np.abs(found[when] - first[when]).max() for when in found}
            print(f"{way:30} {apart['before']:.1e} before training, {apart['after']:.1e} after", flush=True)


if __name__ == "__main__":
    main()
