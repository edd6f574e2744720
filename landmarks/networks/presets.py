"""A KerasHub backbone as one layer: photos of any size to the map of its patches, or to its class token."""

import math
from typing import Any

import keras
from keras import layers, ops

from landmarks.networks.layers import register

# Their layers form one chain of tokens after the embedding of the patches, which only adds positions and tokens: so
# many tokens come first, beside the registers; the first of them is the class token.
CHAINS = {
    "ViTBackbone": 1, "DeiTBackbone": 2, "DINOV2Backbone": 1, "DINOV3Backbone": 1, "SigLIPVisionEncoder": 0,
    "CLIPVisionEncoder": 1,
}  # fmt: skip


@register
class PresetBackbone(layers.Layer):
    """Photos (B, H, W, 3), normalised, to the map of a KerasHub backbone, (B, h, w, C).

    Of a vision transformer that is the grid of its patch tokens, without class token and registers; a rest of less than
    a patch at the right and lower edge is not seen. Where its positions are learnt, they are interpolated at every
    call, so that photos, crops and scales may differ in size. Of other backbones it is the deepest feature map.

    KerasHub keeps neither what is frozen within a backbone nor, at times, DINOv2's trained positions; this layer does.

    Args:
        backbone: as `Backbone.from_preset` gives it, a transformer at the size of its positions.
        token: give the class token, as a map of one place, (B, 1, 1, C).
        frozen: which of the layers that it consists of are not trained, by number.
    """

    def __init__(self, backbone: keras.Model, token: bool = False, frozen: tuple[int, ...] = (), **kwargs: Any):
        super().__init__(**kwargs)
        self.backbone, self.token = backbone, token
        every = [layer for layer in backbone.layers if not isinstance(layer, layers.InputLayer)]
        unused = []
        self.is_transformer = type(backbone).__name__ in CHAINS
        if self.is_transformer:
            self.embedding, *rest = every
            self.rope = getattr(backbone, "rope_embedding", None)  # DINOv3's positions suit any size as they are
            is_chained = [len(_first(layer.output).shape) == 3 and layer is not self.rope for layer in rest]
            self.chain = [layer for layer, chained in zip(rest, is_chained, strict=True) if chained]
            # SigLIP's pooling, and what masked patches had in training
            unused = [layer for layer in rest if layer is not self.rope and layer not in self.chain]
            if getattr(self.embedding, "use_mask_token", False):
                self.embedding.mask_token.trainable = False
            self.projection = next(one for one in _within(self.embedding) if isinstance(one, layers.Conv2D))
            self.grid = tuple(side // self.patch for side in backbone.image_shape[:2])
            self.extra = CHAINS[type(backbone).__name__] + getattr(backbone, "num_register_tokens", 0)
        for layer in (*unused, *(_within(backbone)[number] for number in frozen)):
            layer.trainable = False

    @property
    def patch(self) -> int:
        """The side of a transformer's patch in pixels."""
        size = self.backbone.patch_size
        return size if isinstance(size, int) else size[0]

    def blocks(self) -> list[keras.Layer]:
        """What holds the weights, from the photos on: of a transformer the patch embedding and each block."""
        parts = [self.embedding, *self.chain] if self.is_transformer else self.backbone.layers
        blocks: list[keras.Layer] = []
        for part in parts:
            is_encoder = hasattr(part, "num_layers") and part is not self.backbone
            blocks += part._flatten_layers(include_self=False, recursive=False) if is_encoder else [part]
        return [block for block in blocks if block.weights]

    def compute_output_spec(self, photos):
        """Said here, since JAX cannot tell that both ways to count the patches of an open size are one."""
        if not self.is_transformer:
            return super().compute_output_spec(photos)
        grid = (1, 1) if self.token else (side and side // self.patch for side in photos.shape[1:3])
        return keras.KerasTensor((photos.shape[0], *grid, self.backbone.hidden_dim), dtype=self.compute_dtype)

    def call(self, photos):
        if not self.is_transformer:
            inputs = self.backbone.input
            maps = self.backbone(dict.fromkeys(inputs, photos) if isinstance(inputs, dict) else photos)
            return max(keras.tree.flatten(maps), key=lambda one: one.shape[-1])  # of a pyramid the deepest
        height, width = (side // self.patch for side in ops.shape(photos)[1:3])
        if self.rope:
            tokens = self.embedding(photos)
            turned = {"position_embeddings": self._turns(self.rope, height, width), "num_prefix_tokens": self.extra}
        else:
            tokens, turned = self._embed(photos, height, width), {}
        for layer in self.chain:
            tokens = _first(layer(tokens, **turned) if hasattr(layer, "num_layers") else layer(tokens))
        if self.token:
            return tokens[:, None, :1]
        return ops.reshape(tokens[:, self.extra :], (-1, height, width, tokens.shape[-1]))

    def _embed(self, photos, height: int, width: int):
        """What `self.embedding` would give, were its positions for a grid of this height and width."""
        black = ops.zeros((1, *self.backbone.image_shape), self.compute_dtype)
        at_black = self.embedding(black)  # positions, the other tokens with theirs, and the convolution's bias
        patches = self.projection(photos)
        if self.projection.use_bias:
            patches = patches - ops.cast(self.projection.bias, patches.dtype)
        positions = ops.cast(ops.reshape(at_black[0, self.extra :], (*self.grid, -1)), "float32")
        antialias = getattr(self.backbone, "antialias_in_interpolation", True)  # as timm resamples ViT's positions
        rows, columns = (
            bicubic(old, new, antialias) for old, new in zip(self.grid, (height, width), strict=True)
        )  # fmt: skip
        positions = ops.einsum("yi,xj,ijc->yxc", rows, columns, positions)
        patches = ops.reshape(patches + ops.cast(positions, patches.dtype), (-1, height * width, patches.shape[-1]))
        extra = ops.tile(at_black[:, : self.extra], (ops.shape(photos)[0], 1, 1))
        return ops.concatenate([extra, patches], axis=1)

    def _turns(self, rope: Any, height: int, width: int):
        """DINOv3's rotary positions, cosines and sines (h * w, D); TensorFlow lets its own layer know no open size."""
        y, x = ((ops.arange(side, dtype="float32") + 0.5) / ops.cast(side, "float32") for side in (height, width))
        places = 2 * ops.stack(ops.meshgrid(y, x, indexing="ij"), axis=-1) - 1
        angles = 2 * math.pi * places[..., None] * rope.inv_freq
        angles = ops.tile(ops.reshape(angles, (height * width, rope.head_dim // 2)), (1, 2))
        return tuple(ops.cast(turn(angles), self.compute_dtype) for turn in (ops.cos, ops.sin))

    def save_own_variables(self, store):
        """KerasHub writes positions that were trained only where their sum has grown."""
        if hasattr(self.backbone, "position_embedding_shape"):
            positions = self.embedding.position_embeddings
            positions.assign(self.embedding.interpolated_position_embeddings)
        super().save_own_variables(store)

    def get_config(self):
        frozen = [number for number, layer in enumerate(_within(self.backbone)) if not layer.trainable]
        backbone = keras.saving.serialize_keras_object(self.backbone)
        return {**super().get_config(), "backbone": backbone, "token": self.token, "frozen": frozen}

    @classmethod
    def from_config(cls, config):
        return cls(**{**config, "backbone": keras.saving.deserialize_keras_object(config["backbone"])})


def bicubic(old: int, new: int, antialias: bool):
    """The matrix (new, old) float32 that resamples a row; `new` may be a tensor.

    Keys' cubic with a = -0.75, which PyTorch uses and DINOv2 was evaluated with; with `antialias` it is as wide as the
    row shrinks. Beyond the ends the row goes on as it ends. The back ends' own resizing differ in `a`.
    """
    step = old / ops.cast(new, "float32")
    centres = (ops.arange(new, dtype="float32") + 0.5) * step - 0.5
    wide = ops.maximum(step, 1.0) if antialias else 1.0
    taps = ops.arange(-2 * old, 3 * old)
    distance = ops.abs(centres[:, None] - ops.cast(taps, "float32")[None]) / wide
    near = 1.25 * distance**3 - 2.25 * distance**2 + 1
    far = -0.75 * (distance**3 - 5 * distance**2 + 8 * distance - 4)
    weights = ops.where(distance < 1, near, ops.where(distance < 2, far, 0.0))
    weights = weights / ops.sum(weights, axis=1, keepdims=True)
    return ops.matmul(weights, ops.one_hot(ops.clip(taps, 0, old - 1), old, dtype="float32"))


def _within(layer: keras.Layer) -> list[keras.Layer]:
    return list(layer._flatten_layers())


def _first(outputs):
    return keras.tree.flatten(outputs)[0]
