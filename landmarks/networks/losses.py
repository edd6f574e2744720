"""What training minimises, on `keras.ops`: smoothed cross-entropy, ArcFace, batch-hard triplets."""

import keras
import numpy as np
from keras import ops

from landmarks.networks.layers import CosineHead

register = keras.saving.register_keras_serializable("landmarks")


@register
class SmoothedCrossentropy(keras.losses.Loss):
    """Sparse cross-entropy of logits (B, classes), with part of the target spread over all classes.

    Labels are integers, (B,): one-hot targets of 203,094 classes would not fit. Without `from_logits`, which is how
    earlier checkpoints have it, it takes probabilities: JAX clips these at 1e-7, below which a photo teaches nothing.

    Source: Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", CVPR 2016.
    """

    def __init__(
        self, smoothing: float = 0.0, from_logits: bool = False, name: str = "smoothed_crossentropy", **kwargs
    ):
        super().__init__(name=name, **kwargs)
        self.smoothing, self.from_logits = smoothing, from_logits

    def call(self, y_true, y_pred):
        sharp = keras.losses.sparse_categorical_crossentropy(y_true, y_pred, from_logits=self.from_logits)
        if not self.smoothing:
            return sharp
        logs = ops.log_softmax(y_pred) if self.from_logits else ops.log(ops.maximum(y_pred, 1e-7))
        return (1 - self.smoothing) * sharp - self.smoothing * ops.mean(logs, axis=-1)

    def get_config(self):
        return {**super().get_config(), "smoothing": self.smoothing, "from_logits": self.from_logits}


@register
class ArcFace(keras.losses.Loss):
    """Cross-entropy of scaled cosines (B, classes) with an angular margin on the photo's own class.

    `y_true` is (B, 2) float32: the class and its margin in radians, so that every class can have a margin of its own.
    The target's cosine becomes cos(theta + margin); past pi - margin, where that would rise again, it goes on falling
    as cos(theta) - margin sin(margin).

    Source: Deng et al., "ArcFace", CVPR 2019.

    Args:
        head: the head that samples its classes: `y_pred` is (B, D) then, the embeddings. It is not saved with the loss.
    """

    def __init__(self, scale: float, head: CosineHead | None = None, name: str = "arcface", **kwargs):
        super().__init__(name=name, **kwargs)
        self.scale, self.head = scale, head

    def call(self, y_true, y_pred):
        classes, margin = ops.cast(y_true[:, 0], "int32"), ops.cast(y_true[:, 1], "float32")
        cosines, labels = self.head.sample(y_pred, classes) if self.head else (y_pred, ops.arange(ops.shape(y_pred)[1]))
        own = labels[None] == classes[:, None]
        cosine = ops.sum(ops.where(own, cosines, 0.0), axis=1)
        cosine = ops.clip(cosine, -1 + 1e-7, 1 - 1e-7)  # the root below has no slope at -1 and 1
        sine = ops.sqrt(1 - cosine**2)
        moved = cosine * ops.cos(margin) - sine * ops.sin(margin)
        target = ops.where(cosine > -ops.cos(margin), moved, cosine - margin * ops.sin(margin))
        logits = self.scale * ops.where(own, target[:, None], cosines)
        return ops.logsumexp(logits, axis=1) - self.scale * target

    def get_config(self):
        return {**super().get_config(), "scale": self.scale}


@register
def arcface_accuracy(y_true, y_pred):
    """Whether the largest cosine is the photo's own class, (B,) bool; arguments as `ArcFace` takes them."""
    return ops.equal(ops.cast(y_true[:, 0], "int32"), ops.cast(ops.argmax(y_pred, axis=-1), "int32"))


@register
class BatchHardTriplet(keras.losses.Loss):
    """log(1 + exp(d_ap - d_an)) of each photo's farthest positive and nearest negative in the batch, Euclidean.

    `y_true` (B,) classes, `y_pred` (B, D) embeddings. A photo without a positive or a negative in the batch counts 0.

    Source: Hermans, Beyer, Leibe, "In Defense of the Triplet Loss for Person Re-Identification", arXiv 1703.07737.
    """

    def __init__(self, name: str = "batch_hard_triplet", **kwargs):
        super().__init__(name=name, **kwargs)

    def call(self, y_true, y_pred):
        classes = ops.reshape(ops.cast(y_true, "int32"), (-1,))
        squares = ops.sum(y_pred**2, axis=1)
        squared = squares[:, None] + squares[None] - 2 * ops.matmul(y_pred, ops.transpose(y_pred))
        distance = ops.sqrt(ops.maximum(squared, 1e-12))  # the root has no slope at 0, where a photo meets itself
        same = classes[:, None] == classes[None]
        other_photo = ops.logical_not(ops.cast(ops.eye(ops.shape(y_pred)[0]), "bool"))
        positive, negative = ops.logical_and(same, other_photo), ops.logical_not(same)
        farthest = ops.max(ops.where(positive, distance, -np.inf), axis=1)
        nearest = ops.min(ops.where(negative, distance, np.inf), axis=1)
        complete = ops.logical_and(ops.any(positive, axis=1), ops.any(negative, axis=1))
        difference = ops.where(complete, farthest - nearest, 0.0)
        return ops.where(complete, ops.softplus(difference), 0.0)


def class_margins(counts: np.ndarray, smallest: float = 0.05, largest: float = 0.5) -> np.ndarray:
    """ArcFace's margin of each class, (classes,) float32 in radians: rare classes get large ones.

    smallest + (largest - smallest) * norm(n^-1/4), where norm maps the classes' values to 0..1.

    Source: Ha et al., "Google Landmark Recognition 2020 Competition Third Place Solution", arXiv 2010.05350.
    """
    rarity = np.asarray(counts, "float64") ** -0.25
    span = rarity.max() - rarity.min()
    normed = (rarity - rarity.min()) / span if span else np.zeros_like(rarity)
    return (smallest + (largest - smallest) * normed).astype("float32")
