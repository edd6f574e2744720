"""How long a first run will take, and how much disk: by a step of its network and the counts of the mirror."""

import math
import time
from typing import NamedTuple

import keras
import numpy as np

import model as models
from landmarks.networks import engines
from landmarks.networks.backbones import inner_maps, resolved
from landmarks.running.settings import EmbeddingSettings, ModelSettings, TrainingSettings
from landmarks.training import start

# How many passes as they embed a step of training takes for a photo, and looking at a held-out one: on an accelerator
# going back takes two; on a processor (ResNet50 and EfficientNetLite0) only embedding has its normalisations folded.
TRAINED, VALIDATED = {True: 3.0, False: 4.2}, {True: 1.0, False: 1.4}
HELD_OUT = 1 / 5  # of the photos, where there are too few shards to hold one out
ADAM = 3  # a checkpoint holds each weight and its two moments
BATCHES = 3  # that a pass is timed by, and products of matrices of this side
SIDE = 2048
BYTES = 4  # a weight's; an embedding's number takes half of it


class Forecast(NamedTuple):
    """What a run needs."""

    training: float  # seconds
    embedding: float  # seconds
    disk: float  # bytes


class Needs(NamedTuple):
    """What a run of one model needs on any machine; a pass is one of its backbone over a photo of its image size."""

    network: keras.Model  # without head, as it is timed
    trained: float  # passes to learn in all
    mini_epochs: int  # after each of which there may be a checkpoint
    validated: float  # and to look at held-out photos meanwhile, and at its end
    embedded: float  # passes for each photo that is embedded
    dimensions: int  # of an embedding
    unwhitened: int  # those before any whitening
    weights: int  # numbers, the head's too
    disk: float  # bytes


def needs(
    model: ModelSettings,
    training: TrainingSettings,
    embedding: EmbeddingSettings,
    chosen: int,
    classes: int,
    seen: int,
    shards: int,
    beside: bool,
    has_accelerator: bool,
) -> Needs:
    """Of one model; what takes no network is not in it: downloads, searches, local features.

    Args:
        chosen, classes: train photos and landmarks to learn from; of the photos some are held out.
        seen: photos that are embedded.
        shards: of the train photos.
        beside: whether another model stands beside it, so that it is not compared with its first weights.
    """
    bare = resolved(model).model_copy(update={"loss": "none", "embedding_size": 0, "weights": "none"})
    network = models.build_model(0, bare, training.seed)
    dimensions = model.embedding_size or network.get_layer("embedding").output.shape[-1]
    heads = {"softmax": 1, "arcface": model.subcentres}
    weights = network.count_params() + classes * dimensions * heads.get(model.loss, 0)
    dimensions += sum(one.shape[-1] for one in inner_maps(backbone(network), embedding.inner_layers))
    if embedding.scale_pooling == "side_by_side":
        dimensions *= len(embedding.scales)
    kept = embedding.dimensions or dimensions
    numbers = seen * kept + chosen * dimensions * (embedding.whitening != "none")
    if training.bottleneck_epochs:
        numbers += chosen * math.prod(backbone(network).compute_output_shape((1, *[model.image_size] * 2, 3)))
    views = sum(scale**2 for scale in embedding.scales) * (2 if embedding.mirrored else 1)
    held_shards = training.validation_shards if training.validation_shards < shards else 0
    held = chosen * (held_shards / shards if held_shards or not training.validation_shards else HELD_OUT)
    learnt, looked_at = chosen - held, min(held, training.validation_images)
    mini_epochs = training.epochs * (1 if model.loss == "triplet" else shards - held_shards)
    a_mini_epoch = learnt * training.epochs / mini_epochs
    steps = mini_epochs * math.ceil(a_mini_epoch / training.batch_size)  # the last one's batch is filled up
    compared = 0.0
    if held and training.compare_start and not beside and model.weights != "none":
        compared = min(start.PHOTOS, learnt) * (1 + (embedding.whitening != "none")) + 2 * looked_at
    trained = steps * training.batch_size * TRAINED[has_accelerator] * model.crop**2
    trained += learnt * bool(training.bottleneck_epochs)
    validated = (looked_at * mini_epochs + compared) * VALIDATED[has_accelerator]
    is_trained = model.loss != "none"
    disk = BYTES * weights * (1 + 2 * ADAM * is_trained) + BYTES / 2 * numbers
    return Needs(
        network, trained * is_trained, mini_epochs, validated * is_trained, views, kept, dimensions, weights, disk
    )  # fmt: skip


def seconds_of_a_pass(
    network: keras.Model, image_size: int, batch_size: int, engine: engines.Engine = "keras"
) -> float:
    """On this machine, now, which takes some seconds to find out; what is compiled first does not count."""
    compiled = engines.Compiled(models.predictor(network), engine)
    photos = np.zeros((batch_size, image_size, image_size, 3), np.uint8)
    compiled.read([(batch_size, compiled([photos]))])
    began = time.perf_counter()
    compiled.read([(batch_size, compiled([photos])) for _ in range(BATCHES)])
    return (time.perf_counter() - began) / batch_size / BATCHES


def products_a_second() -> float:
    """Multiply-adds of this machine's cores in products of matrices, now."""
    matrix = np.ones((SIDE, SIDE), np.float32)
    matrix @ matrix
    began = time.perf_counter()
    for _ in range(BATCHES):
        matrix @ matrix
    return BATCHES * SIDE**3 / (time.perf_counter() - began)


def eigenvectors_of_a_cube(products: float) -> float:
    """What the eigenvectors of a matrix take here, now, in such products as `products_a_second`, by its side's cube.

    LAPACK's threads wait for each other at each step: on a busy machine that is many times what it is on an idle one.
    """
    matrix = np.random.default_rng(0).standard_normal((SIDE // 2, SIDE // 2), np.float32)
    scatter = matrix @ matrix.T
    began = time.perf_counter()
    np.linalg.eigh(scatter)
    return (time.perf_counter() - began) * products / (SIDE // 2) ** 3


def forecast(found: Needs, seen: int, image_size: int, batch_size: int, engine: engines.Engine) -> Forecast:
    """What `needs` has found, on this machine, which takes some seconds to find out."""
    forward = seconds_of_a_pass(found.network, image_size, batch_size, engine)
    return Forecast((found.trained + found.validated) * forward, seen * found.embedded * forward, found.disk)


def backbone(network: keras.Model) -> keras.Model:
    return next(layer for layer in network.layers if isinstance(layer, keras.Model))


def multiplications(network: keras.Model, image_size: int) -> float:
    """Multiply-adds of a pass of its backbone: each weight counts once for each place that it is used in.

    What attention does between tokens is not counted: it has no weights.
    """
    sized = keras.models.clone_model(backbone(network), input_tensors=keras.Input((image_size, image_size, 3)))
    return sum(layer.count_params() * math.prod(layer.output.shape[1:-1]) for layer in sized.layers)
