"""How long a first run will take, and how much disk: by a step of its network and the counts of the mirror."""

import math
import time
from typing import NamedTuple

import keras
import numpy as np

import model as models
from landmarks.networks.backbones import resolved
from landmarks.running.settings import EmbeddingSettings, ModelSettings, TrainingSettings

TRAINED = 3  # a step of training takes as long as this many forward passes: going back takes two
ADAM = 3  # a checkpoint holds each weight and its two moments
BYTES = 4  # a weight's; an embedding's number takes half of it


class Forecast(NamedTuple):
    """What a run needs."""

    training: float  # seconds
    embedding: float  # seconds
    disk: float  # bytes


def forecast(
    model: ModelSettings, training: TrainingSettings, embedding: EmbeddingSettings, learnt: int, classes: int, seen: int
) -> Forecast:
    """Of one model, on this machine, which takes some seconds to find out.

    What takes no network is not in it: downloads, searches, local features; nor what is compiled first.

    Args:
        learnt, classes: train photos and landmarks that are learnt from.
        seen: photos that are embedded.
    """
    bare = resolved(model).model_copy(update={"loss": "none", "embedding_size": 0, "weights": "none"})
    network = models.build_model(0, bare, training.seed)
    predictor, batch = models.predictor(network), training.batch_size
    photos = np.zeros((batch, model.image_size, model.image_size, 3), np.uint8)
    models.predict(predictor, photos, batch)
    began = time.perf_counter()
    models.predict(predictor, photos, batch)
    forward = (time.perf_counter() - began) / batch

    width = network.get_layer("embedding").output.shape[-1]
    dimensions = model.embedding_size or width
    heads = {"softmax": 1, "arcface": model.subcentres}
    weights = network.count_params() + classes * dimensions * heads.get(model.loss, 0)
    if embedding.scale_pooling == "side_by_side":
        dimensions *= len(embedding.scales)
    numbers = seen * (embedding.dimensions or dimensions) + learnt * dimensions * (embedding.whitening != "none")
    if training.bottleneck_epochs:
        backbone = next(layer for layer in network.layers if isinstance(layer, keras.Model))
        numbers += learnt * math.prod(backbone.compute_output_shape((1, model.image_size, model.image_size, 3)))
    views = sum(scale**2 for scale in embedding.scales) * (2 if embedding.mirrored else 1)
    passes = training.epochs * TRAINED * model.crop**2 + bool(training.bottleneck_epochs)
    is_trained = model.loss != "none"
    return Forecast(
        learnt * passes * forward * is_trained,
        seen * views * forward,
        BYTES * weights * (1 + 2 * ADAM * is_trained) + BYTES / 2 * numbers,
    )
