from importlib.util import find_spec

import keras
import numpy as np
import pytest
import scripts
from keras import ops

from landmarks.networks.layers import CosineHead
from landmarks.networks.losses import ArcFace, BatchHardTriplet, SmoothedCrossentropy, class_margins

generator = np.random.default_rng(0)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_smoothed_crossentropy(smoothing):
    probabilities = generator.dirichlet(np.ones(5), 6).astype("float32")
    labels = np.array([0, 1, 2, 3, 4, 0])
    target = np.eye(5)[labels] * (1 - smoothing) + smoothing / 5
    expected = -(target * np.log(probabilities)).sum(axis=1).mean()
    assert float(SmoothedCrossentropy(smoothing)(labels, probabilities)) == pytest.approx(expected, rel=1e-4)
    logits = np.log(probabilities) + 3  # a softmax does not change with a shift
    assert float(SmoothedCrossentropy(smoothing, from_logits=True)(labels, logits)) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("backend", ["tensorflow", "jax", "torch"])
def test_the_hardest_photos_teach(backend):
    """At a probability of e-30 of its class, half of a logit's gradient of -1 and 1 reaches each of two photos."""
    if find_spec(backend) is None:  # .ci/run installs all three, and fails where this is skipped
        pytest.skip(f"pip install {backend}")
    program = """
import keras, numpy as np
from landmarks.networks.losses import SmoothedCrossentropy
layer = keras.layers.Dense(2, use_bias=False, kernel_initializer="zeros")
model = keras.Sequential([keras.Input((2,)), layer])
model.compile(keras.optimizers.SGD(1.0), SmoothedCrossentropy(from_logits=True))
layer.set_weights([np.array([[30.0, 0.0], [0.0, 30.0]], "float32")])
model.train_on_batch(np.eye(2, dtype="float32"), np.array([1, 0]))
print(*np.round(keras.ops.convert_to_numpy(layer.kernel), 3).ravel())
"""
    done = scripts.run("-c", program, environment=scripts.on(backend))
    assert done.stdout.split() == ["29.5", "0.5", "0.5", "29.5"], done.stderr


def arcface_by_angles(classes, margins, cosines, scale):
    total = 0.0
    for own, margin, row in zip(classes, margins, cosines.astype("float64"), strict=True):
        theta = np.arccos(row[own])
        logits = scale * row
        logits[own] = scale * (np.cos(theta + margin) if theta + margin < np.pi else row[own] - margin * np.sin(margin))
        total += np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[own]
    return total / len(classes)


@pytest.mark.parametrize("scale", [1.0, 16.0, 64.0])
def test_arcface_against_angles(scale):
    cosines = generator.uniform(-0.999, 0.999, (50, 7)).astype("float32")
    classes, margins = generator.integers(0, 7, 50), generator.uniform(0, 0.5, 50).astype("float32")
    cosines[0, classes[0]] = -0.999  # past pi - margin
    y_true = np.stack([classes, margins], axis=1).astype("float32")
    expected = arcface_by_angles(classes, margins, cosines, scale)
    assert float(ArcFace(scale)(y_true, cosines)) == pytest.approx(expected, rel=1e-4)


def test_arcface_without_margin_is_cross_entropy():
    cosines = np.array([[0.5, -0.5, 0.1]], "float32")
    expected = -np.log(np.exp(10 * 0.1) / np.exp(10 * cosines[0]).sum())
    assert float(ArcFace(10.0)(np.array([[2, 0.0]], "float32"), cosines)) == pytest.approx(expected, rel=1e-5)


def triplets_by_hand(classes, embeddings):
    total = 0.0
    for i, anchor in enumerate(embeddings.astype("float64")):
        distances = np.linalg.norm(embeddings - anchor, axis=1)
        positives = [distances[j] for j in range(len(classes)) if classes[j] == classes[i] and j != i]
        negatives = [distances[j] for j in range(len(classes)) if classes[j] != classes[i]]
        if positives and negatives:
            total += np.log1p(np.exp(max(positives) - min(negatives)))
    return total / len(classes)


@pytest.mark.parametrize("classes", [[0, 0, 1, 1, 2, 2], [0, 0, 0, 0, 1, 2], [3, 3, 3, 3, 3, 3], [0, 1, 2, 3, 4, 5]])
def test_batch_hard_triplets(classes):
    embeddings = generator.normal(size=(6, 4)).astype("float32")
    loss = float(BatchHardTriplet()(np.array(classes), embeddings))
    assert loss == pytest.approx(triplets_by_hand(classes, embeddings), rel=1e-4, abs=1e-6)


def test_triplets_of_equal_embeddings_have_a_finite_gradient():
    import tensorflow as tf

    embeddings = tf.Variable(np.ones((4, 3), "float32"))
    with tf.GradientTape() as tape:
        loss = BatchHardTriplet()(np.array([0, 0, 1, 1]), ops.convert_to_tensor(embeddings))
    assert float(loss) == pytest.approx(np.log(2), rel=1e-5)
    assert np.isfinite(tape.gradient(loss, embeddings).numpy()).all()


def test_margins():
    margins = class_margins(np.array([1, 16, 10_000]))
    # n^-1/4 is 1, 0.5, 0.1; to 0..1: 1, 4/9, 0
    np.testing.assert_allclose(margins, [0.5, 0.05 + 0.45 * 4 / 9, 0.05], rtol=1e-6)
    np.testing.assert_allclose(class_margins(np.array([5, 5])), 0.05)


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_every_back_end_gives_the_same(backend):
    if find_spec(backend) is None:
        pytest.skip(f"pip install {backend}")
    program = """
import numpy as np
from landmarks.networks import losses
g = np.random.default_rng(1)
cosines, embeddings = g.uniform(-1, 1, (8, 5)).astype("float32"), g.normal(size=(8, 4)).astype("float32")
classes = np.array([0, 0, 1, 1, 2, 2, 3, 4])
y = np.stack([classes, np.full(8, 0.3)], 1).astype("float32")
print(*(float(x) for x in (losses.ArcFace(16.0)(y, cosines), losses.BatchHardTriplet()(classes, embeddings))))

import keras
from landmarks.networks.layers import CosineHead
for sampled in (1.0, 0.999):  # of each part all: the same losses, before a step and after it
    photos = keras.Input((4,))
    head = CosineHead(5, centres=2, parts=3, sampled=sampled)
    model = keras.Model(photos, head(photos))
    head.kernel.assign(np.random.default_rng(2).normal(size=head.kernel.shape).astype("float32"))
    model.compile(keras.optimizers.SGD(0.5), losses.ArcFace(4.0, head if sampled < 1 else None))
    print(*(float(model.train_on_batch(embeddings, y)) for _ in range(3)))
"""
    printed = [scripts.run("-c", program, environment=scripts.on(name)) for name in ("tensorflow", backend)]
    assert not any(done.returncode for done in printed), [done.stderr[-3000:] for done in printed]
    (losses, whole, sampled), others = (
        [np.array(line.split(), float) for line in done.stdout.splitlines()[-3:]] for done in printed
    )
    np.testing.assert_allclose(sampled, whole, rtol=1e-5)
    assert whole[2] < whole[1] < whole[0]
    for found, other in zip((losses, whole, sampled), others, strict=True):
        np.testing.assert_allclose(found, other, rtol=1e-5)


@pytest.mark.parametrize("parts", [1, 4])
def test_sampled_classes_have_the_loss_and_gradient_of_a_head_of_them_alone(parts):
    import tensorflow as tf

    head = CosineHead(classes=50, centres=2, parts=parts, sampled=0.3)
    embeddings = keras.utils.normalize(generator.normal(size=(6, 8)).astype("float32"))
    np.testing.assert_allclose(ops.convert_to_numpy(head(embeddings)), embeddings, atol=1e-6)
    classes = np.array([49, 3, 3, 20, 21, 0], "int32")
    y_true = np.stack([classes, generator.uniform(0, 0.5, 6)], axis=1).astype("float32")
    state = head.generator.state.numpy()
    drawn = head.sample(embeddings, classes)[1].numpy()
    assert set(classes.tolist()) < set(drawn.tolist())
    assert len(set(drawn.tolist())) == len(drawn) == {1: 15, 4: 4 * 6}[parts]  # of a part as many as photos, or more
    assert set(head.sample(embeddings, classes)[1].numpy().tolist()) != set(drawn.tolist())  # anew in each step

    centres = head.kernel.numpy().reshape(8, 2, -1)
    known = drawn[drawn < 50]
    alone = CosineHead(classes=len(known), centres=2)
    alone.build((None, 8))
    alone.kernel.assign(centres[:, :, known].reshape(8, -1))
    place = np.array([known.tolist().index(one) for one in classes])
    expected_y = np.stack([place, y_true[:, 1]], axis=1).astype("float32")
    head.generator.state.assign(state)
    with tf.GradientTape() as tape:
        loss = ArcFace(16.0, head)(y_true, embeddings)
    found = tf.convert_to_tensor(tape.gradient(loss, head.kernel.value)).numpy().reshape(8, 2, -1)
    with tf.GradientTape() as tape:
        expected_loss = ArcFace(16.0)(expected_y, alone(embeddings))
    expected = tape.gradient(expected_loss, alone.kernel.value).numpy().reshape(8, 2, -1)
    assert float(loss) == pytest.approx(float(expected_loss), rel=1e-5)
    np.testing.assert_allclose(found[:, :, known], expected, atol=1e-5)
    assert not np.delete(found, known, axis=2).any()
