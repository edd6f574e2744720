"""A training step that is handed to the device and not waited for: what it found is read when somebody asks."""

from typing import Any

import keras
from keras import ops

from landmarks.networks.devices import own_rows


class Steps:
    """Consecutive training steps of a compiled model; the figures are means since the first of them.

    `train_on_batch` of Keras ends each step by reading the loss back, and the device idles until the next one is sent.
    Here a model's first step is Keras' own, which builds and compiles what there is to build, and those after it call
    the same compiled function without reading. On JAX, where that function takes the variables and returns new ones,
    the model has none while steps are under way: `finish` gives them back.
    """

    def __init__(self, model: keras.Model):
        self.model = model
        self.count = 0
        self._logs: dict[str, Any] = {}
        self._state: tuple[list, ...] | None = None  # on JAX: the values of `_variables`

    def __call__(self, photos: Any, targets: Any, weights: Any, learning_rate: float) -> None:
        """Hand over a step on a batch: arrays, or better tensors that are on the device already."""
        if not self.count:
            self.model.reset_metrics()
        if self.model.train_function is None:
            self.model.optimizer.learning_rate.assign(learning_rate)
            given = map(own_rows, (photos, targets, weights))
            self._logs = self.model.train_on_batch(*given, return_dict=True)
        elif keras.backend.backend() == "jax":
            if self._state is None:
                self._state = tuple([variable.value for variable in group] for group in self._variables())
            optimizer = self.model.optimizer
            place = next(n for n, one in enumerate(optimizer.variables) if one is optimizer.learning_rate)
            optimizer.learning_rate.assign(learning_rate)  # which lays it where the state is
            self._state[2][place] = optimizer.learning_rate.value
            self._logs, self._state = self.model.train_function(self._state, iter([(photos, targets, weights)]))
        else:
            self.model.optimizer.learning_rate.assign(learning_rate)
            self._logs = self.model.train_function([(photos, targets, weights)])
        self.count += 1

    def read(self) -> dict[str, float]:
        """The mean loss and metrics since the first step; waits until the last one is done."""
        return {name: float(ops.convert_to_numpy(value)) for name, value in self._logs.items()}

    def finish(self) -> None:
        """Give the model its variables back, to be saved or used; more steps may follow."""
        if self._state is not None:
            for group, values in zip(self._variables(), self._state, strict=True):
                for variable, value in zip(group, values, strict=True):
                    variable.assign(value)
            self._state = None

    def _variables(self) -> tuple[list[keras.Variable], ...]:
        """In the order of Keras' JAX trainer."""
        model = self.model
        return (
            model.trainable_variables,
            model.non_trainable_variables,
            model.optimizer.variables,
            model.metrics_variables,
        )
