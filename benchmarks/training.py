"""Whether training keeps its device busy: the project's loop beside a bare compiled step on one ready batch.

    python benchmarks/training.py [--backbone EfficientNetLite0 --image-size 192 --batch-size 32 --steps 10]

`bare` calls Keras' compiled step on a batch that is on the device, and reads nothing before the end; `from memory` is
`Trainer.mini_epoch` on photos that are decoded already, `from a shard` on JPEGs of 640 x 480 in a tar; `train_on_batch`
is how it was done before, with the loss read after each step; `eager` is Keras without compilation, in float32.
"""

import argparse
import io
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TQDM_DISABLE", "1")
sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import pandas as pd
from PIL import Image, ImageFilter

from benchmarks import rivals, timing
from generators import Batches
from landmarks.mirrors.shards import TarShard, write_tar
from landmarks.running import command
from landmarks.running import recipe as recipes

WIDTH, HEIGHT = 640, 480


def photo(seed: int, width: int = WIDTH, height: int = HEIGHT) -> bytes:
    """A JPEG with detail at several sizes, as photos have: some 100 KB."""
    generator = np.random.default_rng(seed)
    image = Image.fromarray(generator.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8))
    fine = Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))
    mixed = Image.blend(image.resize((width, height)), fine.filter(ImageFilter.GaussianBlur(2)), 0.5)
    encoded = io.BytesIO()
    mixed.save(encoded, "JPEG", quality=90)
    return encoded.getvalue()


def write_shard(path: Path, photos: int, width: int = WIDTH, height: int = HEIGHT) -> TarShard:
    """A shard of so many photos, of which 64 differ."""
    encoded = [photo(seed, width, height) for seed in range(min(photos, 64))]
    write_tar(path, ((f"{number:016x}", encoded[number % len(encoded)]) for number in range(photos)))
    return TarShard(path)


class FromMemory(Batches):
    """Batches of photos that are decoded already."""

    def __init__(self, shard: "TarShard", ids: list[str], size: int, batch_size: int, first: int = 0):
        super().__init__(shard, ids, size, batch_size, first)
        self.photos = np.random.default_rng(0).integers(0, 256, (batch_size, size, size, 3), dtype=np.uint8)

    def __iter__(self):
        for ids in self.slices:
            yield ids, self.photos[: len(ids)].copy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="EfficientNetLite0")
    parser.add_argument("--image-size", type=int, default=192)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=10, help="in a turn")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--rival", choices=rivals.NAMES, help="timm's network beside it, of this name")
    parser.add_argument("--eager", action="store_true", help="also Keras without compilation, in float32")
    parser.add_argument("--busy", action="store_true", help="measure on a busy machine too")
    parser.add_argument("--json", type=Path, help="add a line to this file")
    given = parser.parse_args()
    timing.require_idle(given.busy)
    command.prepare_backend()
    # Not above, as processes that decode import this file too.
    import keras

    from landmarks.networks.devices import accelerated
    from landmarks.training.trainer import Trainer

    with tempfile.TemporaryDirectory() as folder:
        count = given.steps * given.batch_size
        shard = write_shard(Path(folder, "images_000.tar"), count)
        classes = pd.Series(np.arange(count) % given.classes, index=shard.ids)
        recipe = recipes.load(
            [
                f"--work={folder}/work", "--recipe=softmax", f"--backbone={given.backbone}", "--weights=none",
                f"--image-size={given.image_size}", f"--batch-size={given.batch_size}",
                f"--precision={given.precision}", "--crop=1",
            ]
        )  # fmt: skip
        counted = pd.concat([classes, pd.Series(range(given.classes), index=map(str, range(given.classes)))])

        def trainer(batches=None) -> Trainer:
            return Trainer(recipe.run, recipe.model, recipe.training, counted, 10**9, None, batches)

        ours, memory = trainer(), trainer(FromMemory)
        bare = _bare(trainer().model, given)
        before = trainer().model
        photos = np.random.default_rng(0).integers(
            0, 256, (given.batch_size, given.image_size, given.image_size, 3), dtype=np.uint8
        )
        labels = np.arange(given.batch_size) % given.classes

        def mini_epoch(one: Trainer) -> float:
            one.mini_epoch(shard, shard.ids)
            one.step = 0
            return count

        def train_on_batch() -> float:
            for _ in range(given.steps):
                before.train_on_batch(photos, labels, return_dict=True)
            return count

        ways = {
            "bare": bare, "from memory": lambda: mini_epoch(memory), "from a shard": lambda: mini_epoch(ours),
            "train_on_batch": train_on_batch,
        }  # fmt: skip
        if given.eager:
            ways["eager"] = _eager(given)
        if given.rival:
            sizes = given.image_size, given.batch_size, given.classes, given.steps
            ways["timm"] = rivals.training(given.rival, *sizes)
        rates = timing.in_turns(ways, given.turns)
    least = 0.95 if accelerated() else 0.97
    pairs = [("from memory", "bare", least), ("from a shard", "bare", 0.9)]
    pairs += [(name, "timm", 0.9) for name in ("bare", "from a shard") if given.rival]
    question = (
        f"training, {given.backbone} {given.image_size} px, batches of {given.batch_size}, {given.precision}, "
        f"{keras.backend.backend()}"
    )
    timing.report(question, rates, "photos/s", pairs, given.json)


def _batch(given: argparse.Namespace) -> tuple:
    from keras import ops

    generator = np.random.default_rng(0)
    shape = (given.batch_size, given.image_size, given.image_size, 3)
    photos = ops.convert_to_tensor(generator.integers(0, 256, shape, dtype=np.uint8))
    return photos, ops.convert_to_tensor(np.arange(given.batch_size) % given.classes)


def _bare(model: Any, given: argparse.Namespace) -> Callable[[], float]:
    """Keras' own compiled step, one after another on one batch; the loss is read at the end."""
    import keras
    from keras import ops

    photos, labels = _batch(given)
    model.train_on_batch(photos, labels)
    groups = (
        model.trainable_variables,
        model.non_trainable_variables,
        model.optimizer.variables,
        model.metrics_variables,
    )

    def run() -> float:
        state = tuple([variable.value for variable in group] for group in groups)
        for _ in range(given.steps):
            if keras.backend.backend() == "jax":
                logs, state = model.train_function(state, iter([(photos, labels, None)]))
            else:
                logs = model.train_function([(photos, labels, None)])
        float(ops.convert_to_numpy(logs["loss"]))
        if keras.backend.backend() == "jax":
            for group, values in zip(groups, state, strict=True):
                for variable, value in zip(group, values, strict=True):
                    variable.assign(value)
        return given.steps * given.batch_size

    return run


def _eager(given: argparse.Namespace) -> Callable[[], float]:
    import keras
    from keras import ops

    keras.mixed_precision.set_global_policy("float32")
    model = keras.Sequential(
        [
            keras.Input((given.image_size, given.image_size, 3)),
            getattr(keras.applications, given.backbone)(include_top=False, weights=None, pooling="max"),
            keras.layers.Dense(given.classes),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, run_eagerly=keras.backend.backend() == "tensorflow", jit_compile=False)
    photos, labels = _batch(given)
    photos = ops.cast(photos, "float32")

    def run() -> float:
        steps = max(1, given.steps // 5)
        for _ in range(steps):
            model.train_on_batch(photos, labels)
        return steps * given.batch_size

    return run


if __name__ == "__main__":
    main()
