"""Photos of noise, of 63 landmarks, and a shard of them, for programs that train in a process of their own, on JAX."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

ids = [str(number) for number in range(64)]
photos = dict(zip(ids, np.random.default_rng(0).integers(0, 256, (64, 32, 32, 3), dtype="uint8"), strict=True))
classes = pd.Series(dict(zip(ids, [*range(63), 0], strict=True)))


class Batches:
    """As `generators.Batches`, of these photos."""

    def __init__(self, shard, ids, size, batch_size, first):
        self.parts = [ids[i : i + batch_size] for i in range(0, len(ids), batch_size)][first:]
        self.unreadable: list = []

    def __len__(self):
        return len(self.parts)

    def __iter__(self):
        for part in self.parts:
            yield part, np.stack([photos[one] for one in part])


class Shard:
    name, refused = "images_000", ()


def weights(trainer) -> dict[str, np.ndarray]:
    """Of the model and the optimizer, by their number; none where another host has them all."""
    from landmarks.networks import hosts

    variables = [*trainer.model.variables, *trainer.model.optimizer.variables]
    with hosts.gathered(variables) as has_all:
        return {str(number): np.asarray(one.value) for number, one in enumerate(variables)} if has_all else {}


def save(path: Path, trainer, first: dict[str, np.ndarray]) -> None:
    """Leave what came of the training that began with the weights `first`, and what a device holds of each."""
    import model as models

    found = models.predict(models.predictor(trainer.model), np.stack([photos[one] for one in ids[:16]]), 16)
    held = {
        f"held {one.path}": one.value.sharding.shard_shape(one.shape)
        for one in [*trainer.model.variables, *trainer.model.optimizer.variables]
    }
    kept: dict[str, Any] = {
        "losses": [row["loss"] for row in trainer.history], "embedding": found["embedding"], **held,
        **{f"first {name}": value for name, value in first.items()},
        **{f"last {name}": value for name, value in weights(trainer).items()},
    }  # fmt: skip
    np.savez(path, **kept)


def require_equal(one: np.lib.npyio.NpzFile, other: np.lib.npyio.NpzFile) -> None:
    """That two trainings, as `save` has left them, came to the same end."""
    np.testing.assert_allclose(one["losses"], other["losses"], rtol=1e-5)
    np.testing.assert_allclose(one["embedding"], other["embedding"], atol=1e-4)
    names = [name for name in one if name.startswith("last ")]
    assert len(names) > 10
    for name in names:
        np.testing.assert_allclose(one[name], other[name], atol=1e-4, err_msg=name)
