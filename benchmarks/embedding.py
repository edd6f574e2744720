"""Photos embedded a second: shards end to end beside the bare compiled network, and that beside Keras' `predict`.

    python benchmarks/embedding.py [--recipe small-frozen --image-size 256 --batch-size 32 --batches 10]

`predict` and `predict_on_batch` are Keras', `bare` is the project's compiled call on batches that are on the device,
and `shards` goes from two tars of JPEGs of 640 x 480 to features files. `decoding` only makes batches of these, and
`bare, then decoding` is what both take where one processor does both. `openvino` and `openvino-bf16` are the same calls
by that engine, where it is installed. Both views of each photo are embedded where the recipe has `mirrored`.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path

os.environ.setdefault("TQDM_DISABLE", "1")
sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np

from benchmarks import rivals, timing
from benchmarks.training import write_shard
from features import embed_shards
from generators import Batches
from landmarks.running import command
from landmarks.running import recipe as recipes
from landmarks.running.features_file import save_features


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="small-frozen")
    parser.add_argument("--backbone", help="instead of the recipe's, with random weights")
    parser.add_argument("--preset", action="store_true", help="--backbone is a preset, with its own weights")
    parser.add_argument("--image-size", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--batches", type=int, default=8, help="in a turn")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--rival", choices=rivals.NAMES, help="timm's network beside it, of this name")
    parser.add_argument("--busy", action="store_true", help="measure on a busy machine too")
    parser.add_argument("--json", type=Path, help="add a line to this file")
    given = parser.parse_args()
    timing.require_idle(given.busy)
    command.prepare_backend()
    # Not above, as processes that decode import this file too.
    import keras
    from keras import ops

    import model as models
    from landmarks.networks.devices import accelerated
    from landmarks.networks.engines import Compiled

    with tempfile.TemporaryDirectory() as folder:
        options = [f"--backbone={given.backbone}"] if given.backbone else []
        options += ["--weights=none"] if given.backbone and not given.preset else []
        recipe = recipes.load(
            [
                f"--work={folder}/work", f"--recipe={given.recipe}", f"--image-size={given.image_size}",
                f"--precision={given.precision}", *options,
            ]
        )  # fmt: skip
        recipe.run.work.mkdir()
        predictor = models.predictor(models.build_model(3, recipe.model), recipe.embedding.mirrored)
        size, batch = given.image_size, given.batch_size
        count = given.batches * batch
        shards = [write_shard(Path(folder, f"images_{n:03}.tar"), count // 2) for n in range(2)]
        listed = set(shards[0].ids)
        generator = np.random.default_rng(0)
        photos = generator.integers(0, 256, (count, size, size, 3), dtype=np.uint8)
        batches = np.split(photos, given.batches)
        ready = [ops.convert_to_tensor(some) for some in batches]

        def end_to_end(compiled: Compiled) -> float:
            taken = embed_shards(compiled, np.arange(3), "test", shards, listed, recipe.run.work, [size], batch)
            for name, features in taken:
                save_features(recipe.run.work / f"{name}.npz", features)
            return count

        def bare(compiled: Compiled) -> float:
            compiled.read([(batch, compiled([some])) for some in ready])
            return count

        def predict() -> float:
            predictor.predict(photos, batch_size=batch, verbose=0)
            return count

        def predict_on_batch() -> float:
            for some in batches:
                predictor.predict_on_batch(some)
            return count

        def decoding() -> float:
            return sum(len(ids) for shard in shards for ids, _ in Batches(shard, shard.ids, size, batch))

        keras_engine = Compiled(predictor)
        ways: dict[str, Callable[[], float]] = {
            "predict": predict, "predict_on_batch": predict_on_batch, "bare": lambda: bare(keras_engine),
            "decoding": decoding, "shards": lambda: end_to_end(keras_engine),
        }  # fmt: skip
        pairs = [("shards", "bare", 0.97 if not accelerated() else 0.9), ("shards", "predict", 1.2)]
        if find_spec("openvino") and keras.backend.backend() == "tensorflow" and not accelerated():
            for name in ("openvino", "openvino-bf16"):
                engine = Compiled(predictor, name)
                ways |= {name: partial(bare, engine), f"shards, {name}": partial(end_to_end, engine)}
            pairs.append(("shards, openvino-bf16", "predict", 2.5))
        if given.rival:
            ways["timm"] = rivals.embedding(given.rival, size, batch, given.batches)
            pairs += [("bare", "timm", 0.9), ("shards", "timm", 0.9)]
        rates = timing.in_turns(ways, given.turns)
    if not accelerated():
        both, turns = "bare, then decoding", zip(rates["bare"], rates["decoding"], strict=True)
        rates[both] = [1 / (1 / one + 1 / other) for one, other in turns]
        pairs.append(("shards", both, 0.97))
    views = "both views, " * recipe.embedding.mirrored
    question = (
        f"embedding, {given.rival or recipe.model.backbone} {size} px, {views}batches of {batch}, {given.precision}, "
        f"{keras.backend.backend()}"
    )
    timing.report(question, rates, "photos/s", pairs, given.json)


if __name__ == "__main__":
    main()
