"""Layers that Keras lacks, on `keras.ops`: resizing, augmentation, normalisation, GeM pooling, the cosine head."""

import math

import keras
import numpy as np
from keras import layers, ops

from landmarks.networks.devices import PARTS

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
        return _cubic((ops.arange(self.size, dtype="float32") + 0.5) * step, step, old)

    def get_config(self):
        return {**super().get_config(), "size": self.size}


def _cubic(centres, step, old):
    """(..., size, old) float32: what each of `old` pixels in a row gives to new ones around `centres` (..., size).

    Args:
        step: pixels from one of them to the next, which broadcasts against what is returned.
    """
    distance = ops.abs(ops.arange(old, dtype="float32") + 0.5 - centres[..., None]) / ops.maximum(step, 1.0)
    near = 1.5 * distance**3 - 2.5 * distance**2 + 1
    far = -0.5 * distance**3 + 2.5 * distance**2 - 4 * distance + 2
    weights = ops.where(distance < 1, near, ops.where(distance < 2, far, 0.0))
    return weights / ops.sum(weights, axis=-1, keepdims=True)


def _enlarged(places, start, part, old, new):
    """(B, new, old) float32: what each of `old` pixels in a row gives to `new` ones, which are a part of the row.

    Args:
        places: (B, new), where in it they lie, from 0 to 1.
        start: (B, 1), where it begins, as a part of what the row is longer.
        part: (B, 1), how long it is, as a part of the row.
    """
    pixels = ops.cast(old, "float32")
    return _cubic((start * (1 - part) + places * part) * pixels, part[..., None] * pixels / new, old)


def _rounded(x):
    """Halves go up, as in Pillow, and what falls short of one by a rounding error too, else runtimes would differ."""
    return ops.clip(ops.floor(x + 0.5 + 2**-10), 0, 255)


@register
class RandomCropFlip(layers.Layer):
    """While training, a random square of each photo, mirrored in half of them; else the whole photo.

    (B, H, W, 3) uint8 to (B, crop, crop, 3) uint8, or unchanged. Every photo has a crop of its own, where
    keras.layers.RandomCrop takes one for the batch.

    Args:
        crop: side of the square in pixels; 0 for that of the photo.
        flip: whether to mirror.
        area: above 0 a rectangle becomes that square, of this part of the photo or more, and of sides from 3:4 to 4:3:
            the random resized crop of Szegedy et al., "Going Deeper with Convolutions", CVPR 2015.
    """

    def __init__(self, crop: int, flip: bool, seed: int = 0, area: float = 0.0, **kwargs):
        super().__init__(**kwargs)
        self.crop, self.flip, self.seed, self.area = crop, flip, seed, area
        self.generator = keras.random.SeedGenerator(seed)

    def call(self, photos, training=False):
        if not training:
            return photos
        batch, height, width = ops.shape(photos)[0], photos.shape[1] or ops.shape(photos)[1], ops.shape(photos)[2]
        side_y, side_x = (self.crop, self.crop) if self.crop else (height, width)
        if self.area:
            return self._resized(photos, batch, height, width, side_y, side_x)
        top, left, mirror = (self._uniform(batch) for _ in range(3))
        rows = ops.arange(side_y)[None] + ops.cast(top * ops.cast(height - side_y + 1, "float32"), "int32")
        columns = ops.tile(ops.arange(side_x)[None], (batch, 1))
        if self.flip:
            columns = ops.where(mirror < 0.5, side_x - 1 - columns, columns)
        columns = columns + ops.cast(left * ops.cast(width - side_x + 1, "float32"), "int32")
        # Of all photos' pixels in a row: take_along_axis, photo by photo, takes TensorFlow six times as long.
        rows = rows + ops.arange(batch)[:, None] * height
        pixels = rows[:, :, None] * width + columns[:, None, :]
        return ops.take(ops.reshape(photos, (-1, 3)), pixels, axis=0)

    def _resized(self, photos, batch, height, width, side_y, side_x):
        area, ratio, top, left, mirror = (self._uniform(batch) for _ in range(5))
        side, root = ops.sqrt(self.area + (1 - self.area) * area), ops.exp((ratio - 0.5) * math.log(4 / 3))
        rows = ops.tile((ops.arange(side_y, dtype="float32")[None] + 0.5) / side_y, (batch, 1))
        columns = ops.tile((ops.arange(side_x, dtype="float32")[None] + 0.5) / side_x, (batch, 1))
        if self.flip:
            columns = ops.where(mirror < 0.5, 1 - columns, columns)
        rows = _enlarged(rows, top, ops.minimum(side / root, 1.0), height, side_y)
        columns = _enlarged(columns, left, ops.minimum(side * root, 1.0), width, side_x)
        cut = ops.matmul(rows, ops.reshape(ops.cast(photos, "float32"), (batch, height, width * 3)))
        turned = ops.transpose(ops.reshape(cut, (batch, side_y, width, 3)), (0, 2, 1, 3))
        cut = ops.matmul(columns, ops.reshape(turned, (batch, width, side_y * 3)))
        turned = ops.reshape(ops.cast(_rounded(cut), "uint8"), (batch, side_x, side_y, 3))
        return ops.transpose(turned, (0, 2, 1, 3))

    def _uniform(self, batch):
        return keras.random.uniform((batch, 1), seed=self.generator)

    def get_config(self):
        return {**super().get_config(), "crop": self.crop, "flip": self.flip, "seed": self.seed, "area": self.area}


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

    Args:
        parts: equal parts that devices may share, each with its classes; the weight is (D, centres, classes) then, of
            as many classes as fill them up.
        sampled: the share of the classes that a step trains, by `sample`; below 1 the layer hands the L2-normalised
            embeddings (B, D) on, unless all cosines are asked for.
    """

    def __init__(self, classes: int, centres: int, parts: int = 1, sampled: float = 1.0, **kwargs):
        super().__init__(**{**kwargs, "dtype": "float32"})
        self.classes, self.centres, self.parts, self.sampled = classes, centres, parts, sampled
        self.each = -(-classes // parts)  # classes of a part
        if sampled < 1:
            self.generator = keras.random.SeedGenerator(0)

    def build(self, shape):
        name, shape = "kernel", (shape[-1], self.centres * self.classes)
        initializer = keras.initializers.LecunNormal()
        if self.parts > 1:
            name, shape = PARTS, (shape[0], self.centres, self.parts * self.each)
            initializer = keras.initializers.VarianceScaling(self.centres)  # the same: it takes them for inputs
        self.kernel = self.add_weight(name=name, shape=shape, initializer=initializer)

    def call(self, embedding, whole=False):
        if self.sampled < 1 and not whole:
            return unit(embedding)
        kernel = ops.normalize(self.kernel, axis=0, epsilon=1e-20)
        cosines = ops.reshape(ops.tensordot(unit(embedding), kernel, 1), (-1, self.centres, self.parts * self.each))
        return ops.max(cosines, axis=1)[:, : self.classes]

    def sample(self, embedding, classes):
        """Cosines (B, S) to a random share of the classes, and which ones these are, (S,) int32, anew at each call.

        Those of the photos are among them; of each part as many are drawn, B at least, as all may be in one. For them
        alone the gradient is not 0. What fills up the parts has cosines of -inf.

        Source: An et al., "Killing Two Birds with One Stone: Efficient and Robust Training of Face Recognition CNNs by
        Partial FC", CVPR 2022.

        Args:
            embedding: (B, D), L2-normalised.
            classes: (B,) int32, the photos' own.
        """
        count = min(max(round(self.sampled * self.each), classes.shape[0]), self.each)
        total = self.parts * self.each
        order = keras.random.uniform((total,), seed=self.generator)
        order = ops.scatter_update(order, classes[:, None], ops.full_like(classes, 2, dtype="float32"))
        chosen = ops.top_k(ops.reshape(order, (self.parts, self.each)), count)[1]  # (parts, count)
        kernel = ops.reshape(self.kernel, (-1, self.parts, self.each))  # (D * centres, parts, classes of each)
        kernel = ops.take_along_axis(kernel, chosen[None], axis=2)
        kernel = ops.reshape(kernel, (embedding.shape[-1], self.centres, self.parts * count))
        cosines = ops.max(ops.tensordot(embedding, ops.normalize(kernel, axis=0, epsilon=1e-20), 1), axis=1)
        chosen = ops.reshape(chosen + self.each * ops.arange(self.parts)[:, None], (-1,))
        return ops.where(chosen < self.classes, cosines, -np.inf), chosen

    def get_config(self):
        shares = {"parts": self.parts, "sampled": self.sampled}
        return {**super().get_config(), "classes": self.classes, "centres": self.centres, **shares}


def unit(embedding):
    """L2-normalised float32 embeddings, (B, D)."""
    # Keras' own epsilon of 1e-7 would leave the small activations of a poorly trained net short.
    return ops.normalize(ops.cast(embedding, "float32"), axis=-1, epsilon=1e-20)
