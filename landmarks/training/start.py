"""Did training pay? The net as it began, whitened, and the trained one find each held-out photo's landmark."""

import keras
import numpy as np
import pandas as pd

import model as models
from generators import Batches
from landmarks.mirrors.base import Mirror
from landmarks.networks import whitening as whitenings
from landmarks.running.command import check_stop
from landmarks.running.progress import Progress
from landmarks.running.settings import ModelSettings, TrainingSettings
from landmarks.training.validation import Validation

PHOTOS = 5000  # the whitening is found from the first shards that have so many; more of 1,280 numbers change little
FEWEST = 20  # held-out photos that another of their landmark is to be found for; a standard error of 0.1 at best
LARGEST = 4096  # dimensions: the eigenvectors of more take minutes


def whitened(
    settings: ModelSettings, training: TrainingSettings, mirror: Mirror, names: list[str], classes: pd.Series
) -> keras.Model | None:
    """The model before training, its embedding whitened by LDA from train photos; None if these or its size forbid it.

    The whitening is a dense layer of it. It has no head.

    Args:
        names: train shards to find the whitening from.
        classes: by photo id, of the photos to find it from.
    """
    plain = settings.model_copy(update={"loss": "none", "embedding_size": 0})
    found = whitening("lda", models.build_model(0, plain, training.seed), settings, training, mirror, names, classes)
    if found is None:
        return None
    after = {"embedding_layer": "affine", "embedding_size": found.projection.shape[1]}
    model = models.build_model(0, plain.model_copy(update=after), training.seed)
    model.get_layer("embedding").set_weights([found.projection, -found.mean @ found.projection])
    return model


def whitening(
    method: whitenings.Method,
    model: keras.Model,
    settings: ModelSettings,
    training: TrainingSettings,
    mirror: Mirror,
    names: list[str],
    classes: pd.Series,
) -> whitenings.Whitening | None:
    """What whitens a model's embeddings, found from those of train photos; None where these or their size forbid it.

    Args:
        names, classes: as for `whitened`.
    """
    predictor = models.predictor(model)
    if predictor.output["embedding"].shape[-1] > LARGEST:
        return None
    found: list[np.ndarray] = []
    ids: list[str] = []
    for shard in Progress(mirror.stream("train", names), "embed to compare", len(names), unit=" shards"):
        there = [identity for identity in shard.ids if identity in classes.index]
        for some, photos in Batches(shard, there, settings.image_size, training.batch_size):
            check_stop()
            ids += some
            found.append(models.predict(predictor, photos, training.batch_size)["embedding"])
        if len(ids) >= PHOTOS:
            break
    if len(ids) < 2:
        return None
    embeddings, landmark = np.concatenate(found), classes[ids].to_numpy()
    shrinkage = whitenings.choose_shrinkage(method, embeddings, landmark, 0)
    return next(whitenings.fit(method, embeddings, landmark, [shrinkage], 0))


def can_tell(classes: np.ndarray) -> bool:
    """Whether so many held-out photos, of these classes, have another one of theirs that two models can be compared."""
    counts = np.bincount(classes, minlength=1)
    return bool(counts[counts > 1].sum() >= FEWEST)


def better(
    trained: keras.Model,
    start: keras.Model,
    validation: Validation,
    may_keep_start: bool,
    after: whitenings.Whitening | None = None,
) -> keras.Model:
    """The one of two models by which held-out photos find each other; a line says how much better which is.

    Each held-out photo that is not its landmark's only one is looked for among the others; average precisions are
    compared in pairs. `start` is kept where training has gained nothing, if it may be: it has no head.

    Args:
        after: the whitening of `trained`, where it is to have one.
    """
    of_trained = validation.embeddings(trained)
    if after is not None:
        of_trained = after(of_trained)
    precisions = [
        np.array(whitenings.average_precisions(embeddings, validation.classes))
        for embeddings in (of_trained, validation.embeddings(start))
    ]
    gain = precisions[0] - precisions[1]
    error = gain.std(ddof=1) / np.sqrt(len(gain))
    pays = bool(gain.mean() > 0)
    if pays:
        verdict = "training paid" if gain.mean() > 2 * error else "no more than chance may give"
    elif may_keep_start:
        verdict = "training did not pay: the first weights, whitened, are kept"
    else:
        verdict = "training did not pay; --loss none --whitening lda --recognizer neighbours takes the first weights"
    print(
        f"{len(gain)} held-out photos find each other with a mean average precision of {precisions[0].mean():.3f}, by "
        f"the first weights, whitened, {precisions[1].mean():.3f}: {gain.mean():+.3f} ± {error:.3f}, {verdict}"
    )
    return trained if pays or not may_keep_start else start
