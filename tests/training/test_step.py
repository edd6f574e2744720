"""Steps that are not waited for do what Keras' own do, on every back end."""

from importlib.util import find_spec

import pytest
import scripts

PROGRAM = """
import keras
import numpy as np

from landmarks.training.step import Steps

generator = np.random.default_rng(0)
batches = [(generator.normal(size=(8, 6)).astype("float32"), generator.integers(0, 3, 8)) for _ in range(5)]
rates = [0.1, 0.05, 0.2, 0.01, 0.1]


def model():
    keras.utils.set_random_seed(1)
    layers = [keras.Input((6,)), keras.layers.Dense(7), keras.layers.BatchNormalization(), keras.layers.Dense(3)]
    model = keras.Sequential(layers)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.1), loss, metrics=["accuracy"])
    return model


theirs, found = model(), []
for (x, y), rate in zip(batches, rates):
    theirs.optimizer.learning_rate.assign(rate)
    theirs.reset_metrics()
    found.append(theirs.train_on_batch(x, y, return_dict=True))
ours = model()
steps = Steps(ours)
for number, ((x, y), rate) in enumerate(zip(batches, rates)):
    steps(keras.ops.convert_to_tensor(x), keras.ops.convert_to_tensor(y), None, rate)
    if number == 2:
        steps.finish()  # as before a checkpoint
        middle = ours.get_weights()
for name in ("loss", "accuracy"):
    np.testing.assert_allclose(steps.read()[name], np.mean([one[name] for one in found]), rtol=1e-5)
steps.finish()
assert steps.count == 5 and int(ours.optimizer.iterations) == 5
assert any((one != other).any() for one, other in zip(middle, ours.get_weights()))
for one, other in zip(ours.variables + ours.optimizer.variables, theirs.variables + theirs.optimizer.variables):
    one, other = (keras.ops.convert_to_numpy(keras.ops.cast(value, "float32")) for value in (one, other))
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)
"""


@pytest.mark.parametrize("backend", ["tensorflow", "jax", "torch"])
def test_steps_are_those_of_keras(backend):
    if find_spec(backend) is None:
        pytest.skip(f"pip install {backend}")
    done = scripts.run("-c", PROGRAM, environment=scripts.on(backend))
    assert done.returncode == 0, done.stderr[-3000:]
