"""What comes when in a run: shards and their photos in order, the learning rate, the optimizer that it is given to."""

import math
from collections.abc import Iterator
from typing import Any, Protocol

import keras
import numpy as np
import pandas as pd

from generators import shuffled
from landmarks.mirrors.shards import Shard
from landmarks.networks import hosts
from landmarks.networks.layers import register
from landmarks.running.settings import TrainingSettings


class Source(Protocol):
    """A mirror, or what stands in its place."""

    def stream(self, split: str, names: list[str]) -> Iterator[Shard]: ...


class NoShard:
    """What a host has in a round of fewer shards than hosts."""

    name = "no shard"

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.refused: list[tuple[str, str]] = []

    def read(self, identity: str) -> bytes:
        raise KeyError(identity)

    def close(self) -> None:
        pass


def stream(
    settings: TrainingSettings, source: Source, names: list[str], classes: pd.Series, done: int
) -> Iterator[tuple[Shard, list[str]]]:
    """Shard after shard and, in the order of training, its photos that have a class; the first `done` are left out.

    Of several hosts each takes every so many-th shard: a round is of as many shards as there are hosts.
    """
    order = [names[i] for epoch in range(settings.epochs) for i in shuffled(len(names), settings.seed, epoch)]
    first, each = done + hosts.number, settings.batch_size // hosts.count
    for turn, shard in enumerate(source.stream("train", order[first :: hosts.count])):
        ids = [identity for identity in shard.ids if identity in classes.index]
        ids = [ids[i] for i in shuffled(len(ids), settings.seed, first + turn * hosts.count)]
        # Filled up with the first photos, so that every batch has one shape: JAX compiles anew for each.
        steps = -(-len(ids) // each)
        yield shard, np.resize(ids, steps * each).tolist() if ids else []
    if 0 < (len(order) - done) % hosts.count <= hosts.number:
        yield NoShard(), []


def learning_rate(settings: TrainingSettings, mini_epochs: float, total: int) -> float:
    """The learning rate after so many mini-epochs of `total`; a fraction counts the steps of the one in hand.

    After the linear warm-up, cosine: Loshchilov and Hutter, "SGDR", ICLR 2017, without restarts.
    """
    if mini_epochs < settings.warm_up:
        return settings.learning_rate * mini_epochs / settings.warm_up
    if settings.schedule == "cosine":
        part = (mini_epochs - settings.warm_up) / (total - settings.warm_up)
        return settings.learning_rate * (1 + math.cos(math.pi * part)) / 2
    steps = {round(step * total) if step < 1 else step: rate for step, rate in settings.learning_rate_steps.items()}
    reached = [step for step in steps if step <= mini_epochs]
    return steps[max(reached)] if reached else settings.learning_rate


def optimizer(settings: TrainingSettings, rates: list[float]) -> keras.optimizers.Optimizer:
    """A new optimizer; its gradients are averaged over `accumulate` steps.

    Args:
        rates: what the learning rate of each trained variable is multiplied by; all alike where there are none.
    """
    options: dict[str, Any] = {"gradient_accumulation_steps": settings.accumulate if settings.accumulate > 1 else None}
    if settings.optimizer == "sgd":
        options["momentum"] = 0.9
    if rates:
        kind = LayerwiseSGD if settings.optimizer == "sgd" else LayerwiseAdam
        return kind(settings.learning_rate, rates=rates, **options)
    kind = keras.optimizers.SGD if settings.optimizer == "sgd" else keras.optimizers.Adam
    return kind(settings.learning_rate, **options)


class Layerwise(keras.optimizers.Optimizer):
    """An optimizer whose variables learn at rates of their own: the learning rate times `rates`, one for each.

    A factor on gradients would not do, as Adam divides it out again. On PyTorch the variables are updated one
    by one then, not together.
    """

    def __init__(self, learning_rate: float, rates: list[float], **options: Any):
        super().__init__(learning_rate, **options)
        self.rates = rates

    def update_step(self, gradient, variable, learning_rate):
        super().update_step(gradient, variable, learning_rate * self.rates[self._get_variable_index(variable)])

    def get_config(self):
        return {**super().get_config(), "rates": list(self.rates)}


@register
class LayerwiseAdam(Layerwise, keras.optimizers.Adam):
    """Adam at such rates."""


@register
class LayerwiseSGD(Layerwise, keras.optimizers.SGD):
    """SGD at such rates."""
