"""Layers that Keras lacks, on `keras.ops`: resizing, augmentation, normalisation, GeM pooling, the cosine head."""

import keras
import numpy as np
from keras import layers, ops

register = keras.saving.register_keras_serializable("landmarks")


@register
class Squash(layers.Layer):
    """A photo of any size, (H, W, 3) uint8, squashed to a square, (1, size, size, 3) uint8.

    It is Pillow's bicubic, by which photos are decoded: Keys' cubic with a = -0.5, as wide as the photo shrinks, along
    rows first, rounded, then along columns, which Pillow from 13 on does in the other order where that is less work.
    Two products of matrices do it, which every runtime has; of the resizing that ONNX, OpenVINO and LiteRT bring along
    none is the same.
    """

    def __init__(self, size: int, **kwargs):
        super().__init__(**{**kwargs, "dtype": "float32"})
        self.size = size

    def call(self, photo):
        height, width = ops.shape(photo)[:2]
        rows = _rounded(ops.matmul(self._weights(width), ops.cast(photo, "float32")))
        square = _rounded(ops.matmul(self._weights(height), ops.reshape(rows, (-1, 3 * self.size))))
        return ops.cast(ops.reshape(square, (1, self.size, self.size, 3)), "uint8")

    def _weights(self, old):
        """(size, old) float32: what each pixel of a row of `old` gives to each one that it becomes."""
        step = ops.cast(old, "float32") / self.size
        centres = (ops.arange(self.size, dtype="float32") + 0.5) * step
        distance = ops.abs(ops.arange(old, dtype="float32") + 0.5 - centres[:, None]) / ops.maximum(step, 1.0)
        near = 1.5 * distance**3 - 2.5 * distance**2 + 1
        far = -0.5 * distance**3 + 2.5 * distance**2 - 4 * distance + 2
        weights = ops.where(distance < 1, near, ops.where(distance < 2, far, 0.0))
        return weights / ops.sum(weights, axis=1, keepdims=True)

    def get_config(self):
        return {**super().get_config(), "size": self.size}


def _rounded(x):
    """Halves go up, as in Pillow, and what falls short of one by a rounding error too, else runtimes would differ."""
    return ops.clip(ops.floor(x + 0.5 + 2**-10), 0, 255)


@register
class RandomCropFlip(layers.Layer):
    """While training, a random square of each photo, mirrored in half of them; else the whole photo.

    (B, H, W, 3) uint8 to (B, crop, crop, 3) uint8, or unchanged. Every photo has a crop of its own, where
    keras.layers.RandomCrop takes one for the batch.

    Args:
        crop: side of the square in pixels; 0 for no crop.
        flip: whether to mirror.
    """

    def __init__(self, crop: int, flip: bool, seed: int = 0, **kwargs):
        super().__init__(**kwargs)
        self.crop, self.flip, self.seed = crop, flip, seed
        self.generator = keras.random.SeedGenerator(seed)

    def call(self, photos, training=False):
        if not training:
            return photos
        batch, height, width = ops.shape(photos)[0], photos.shape[1] or ops.shape(photos)[1], ops.shape(photos)[2]
        side_y, side_x = (self.crop, self.crop) if self.crop else (height, width)
        top, left, mirror = (self._uniform(batch) for _ in range(3))
        rows = ops.arange(side_y)[None] + ops.cast(top * ops.cast(height - side_y + 1, "float32"), "int32")
        columns = ops.tile(ops.arange(side_x)[None], (batch, 1))
        if self.flip:
            columns = ops.where(mirror < 0.5, side_x - 1 - columns, columns)
        columns = columns + ops.cast(left * ops.cast(width - side_x + 1, "float32"), "int32")
        pixels = ops.reshape(rows[:, :, None] * width + columns[:, None, :], (batch, -1, 1))
        flat = ops.reshape(photos, (batch, -1, photos.shape[-1]))
        return ops.reshape(ops.take_along_axis(flat, pixels, axis=1), (batch, side_y, side_x, photos.shape[-1]))

    def _uniform(self, batch):
        return keras.random.uniform((batch, 1), seed=self.generator)

    def get_config(self):
        return {**super().get_config(), "crop": self.crop, "flip": self.flip, "seed": self.seed}


@register
class RandomShear(layers.RandomShear):
    """Keras' own, which cannot load the settings that it saves (https://github.com/keras-team/keras/issues/21110)."""

    def get_config(self):
        return {**super().get_config(), "x_factor": self.x_factor[1], "y_factor": self.y_factor[1]}


@register
class Normalization(layers.Layer):
    """The input that a backbone was pretrained on: `scale` * RGB (or BGR) in 0..255 + `offset`, per channel."""

    def __init__(self, scale: list[float], offset: list[float], bgr: bool = False, **kwargs):
        super().__init__(**kwargs)
        self.scale, self.offset, self.bgr = scale, offset, bgr

    @classmethod
    def like(cls, preprocess_input, **kwargs) -> "Normalization":
        """The layer that does what a `preprocess_input` of keras.applications does; they are all affine."""
        black, white, red = (preprocess_input(np.array([[[color]]], "float32"))[0, 0, 0] for color in (
            [0, 0, 0], [255, 255, 255], [255, 0, 0],
        ))  # fmt: skip
        scale = (white - black) / 255
        return cls(scale.tolist(), black.tolist(), bgr=bool(red[0] == black[0]), **kwargs)

    def call(self, photos):
        photos = ops.cast(photos, "float32")
        if self.bgr:
            photos = ops.flip(photos, axis=-1)
        photos = photos * ops.array(self.scale, "float32") + ops.array(self.offset, "float32")
        return ops.cast(photos, self.compute_dtype)

    def get_config(self):
        return {**super().get_config(), "scale": self.scale, "offset": self.offset, "bgr": self.bgr}


@register
class GeM(layers.Layer):
    """Generalized-mean pooling with a learned power: (B, H, W, C) to (B, C) float32.

    p = 1 is the average, p to infinity the maximum. Computed in float32, since a cube overflows float16.

    Source: Radenovic, Tolias, Chum, "Fine-tuning CNN Image Retrieval with No Human Annotation", TPAMI 2018.

    Args:
        signed: let negative features count as such, as in the tokens of a transformer, half of which are negative: the
            power and the root keep the sign, and features above 0 have the mean that they have without. Source: Keetha
            et al., "AnyLoc", RA-L 2024, whose GeM of DINOv2's tokens is the real cube root of the mean of their cubes.
    """

    def __init__(self, p: float = 3.0, signed: bool = False, **kwargs):
        super().__init__(**{**kwargs, "dtype": "float32"})
        self.initial_p, self.signed = p, signed

    def build(self, _shape):
        self.p = self.add_weight(name="p", shape=(), initializer=keras.initializers.Constant(self.initial_p))

    def call(self, features):
        features = ops.cast(features, "float32")
        if self.signed:
            return self._power(ops.mean(self._power(features, self.p), axis=(1, 2)), 1.0 / self.p)
        return ops.mean(ops.maximum(features, 1e-6) ** self.p, axis=(1, 2)) ** (1.0 / self.p)

    def _power(self, x, p):
        return ops.sign(x) * ops.maximum(ops.abs(x), 1e-6) ** p

    def get_config(self):
        return {**super().get_config(), "p": self.initial_p, "signed": self.signed}


@register
class CosineHead(layers.Layer):
    """Cosines between embeddings and the centres of each class: (B, D) to (B, classes) float32, the nearest centre's.

    Several centres leave room for the different sides of a landmark, and for wrong labels. Memory while training, with
    D = 512, 3 centres, Adam, batches of 64: 40 KB a class, 6.5 times its weights, since the normalised centres and both
    gradients come beside Adam's moments: 3.2 GB for 81,313 classes, 8.1 GB for 203,094 (benchmarks/head_memory.py).

    Source: Deng et al., "Sub-center ArcFace", ECCV 2020.
    """

    def __init__(self, classes: int, centres: int, **kwargs):
        super().__init__(**{**kwargs, "dtype": "float32"})
        self.classes, self.centres = classes, centres

    def build(self, shape):
        self.kernel = self.add_weight(
            name="kernel", shape=(shape[-1], self.centres * self.classes), initializer="lecun_normal"
        )

    def call(self, embedding):
        cosines = ops.matmul(unit(embedding), ops.normalize(self.kernel, axis=0, epsilon=1e-20))
        return ops.max(ops.reshape(cosines, (-1, self.centres, self.classes)), axis=1)

    def get_config(self):
        return {**super().get_config(), "classes": self.classes, "centres": self.centres}


def unit(embedding):
    """L2-normalised float32 embeddings, (B, D)."""
    # Keras' own epsilon of 1e-7 would leave the small activations of a poorly trained net short.
    return ops.normalize(ops.cast(embedding, "float32"), axis=-1, epsilon=1e-20)
