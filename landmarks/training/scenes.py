"""Which scenes a classifier sees in train photos: how many of the best ones are outdoor."""

import re
import zipfile
from collections.abc import Callable, Container
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd

from generators import Batches
from landmarks.mirrors.base import Mirror
from landmarks.mirrors.shards import Shard, valid_id
from landmarks.running import command
from landmarks.running.arrays import SortedIds
from landmarks.running.command import InputError, check_stop
from landmarks.running.files import require_stored, whole
from landmarks.running.progress import Progress
from landmarks.running.skipped import record_skipped

CATEGORY_LINE = re.compile(r"/\S+\s+([12])\s*")  # `/a/airfield 2`; 1: indoor, 2: outdoor
MAX_CATEGORIES = 2**20  # characters; the published list has 7,000
BATCH_SIZE = 32  # where the classifier fixes none
IMAGENET_MEAN = np.array([0.485, 0.456, 0.406], "float32")  # of RGB in 0..1: what torchvision's models, and so
IMAGENET_STD = np.array([0.229, 0.224, 0.225], "float32")  # the published Places365 ones, were trained on


class Classifier:
    """A scene classifier from a .keras or .onnx file: (B, image_size, image_size, 3) uint8 photos to (B, C) scores.

    B is at most `batch_size`, C the number of categories; the top of this file says what the file's input is given.
    `image_size` None takes the file's own, or 224 where it fixes none.

    Raises:
        InputError: the file does not load or run, takes another image size, has other than `categories` outputs, or
            needs onnxruntime and it is not installed; when called, a score is NaN.
    """

    def __init__(self, path: Path, categories: int, image_size: int | None = None):
        openers = {".keras": _open_keras, ".onnx": _open_onnx}
        if path.suffix not in openers or not path.is_file():
            raise InputError(f"classifier {path} is no .keras or .onnx file")
        self.path = path
        try:
            self._run, shape = openers[path.suffix](path)
            shape = [side if isinstance(side, int) else None for side in shape]  # ONNX names the sides that are free
            if len(shape) != 4:
                raise ValueError(f"its input {shape} is not (batch, height, width, 3) or (batch, 3, height, width)")
            self._channels_first = path.suffix == ".onnx" and shape[1] == 3
            self.batch_size = shape[0] or BATCH_SIZE
            self.image_size = side = image_size or shape[2] or 224
            given = (self.batch_size, *((3, side, side) if self._channels_first else (side, side, 3)))
            if any(fixed not in (None, ours) for fixed, ours in zip(shape, given, strict=True)):
                raise ValueError(f"its input is {shape}, photos are {list(given)}")
            found = self._scores(np.zeros((self.batch_size, side, side, 3), "uint8")).shape
        except InputError:
            raise
        except Exception as error:  # zip, JSON, HDF5, Keras, ONNX errors: whatever a wrong file brings about
            raise InputError(f"{path} does not work as a scene classifier: {str(error)[:300]}") from error
        if found != (self.batch_size, categories):
            raise InputError(f"{path} gives scores {found[1:]} for a photo, but there are {categories} categories")

    def __call__(self, photos: np.ndarray) -> np.ndarray:
        filled = np.zeros((self.batch_size, *photos.shape[1:]), "uint8")  # always one shape: compiled once
        filled[: len(photos)] = photos
        scores = self._scores(filled)[: len(photos)]
        if np.isnan(scores).any():
            raise InputError(f"{self.path} gives NaN for a photo: it is spoilt, give another classifier")
        return scores

    def _scores(self, photos: np.ndarray) -> np.ndarray:
        photos = photos.astype("float32")
        if self._channels_first:
            photos = ((photos / 255 - IMAGENET_MEAN) / IMAGENET_STD).transpose(0, 3, 1, 2)
        return np.asarray(self._run(photos))


def _open_keras(path: Path):
    command.prepare_backend()
    import keras

    with zipfile.ZipFile(path) as archive:
        require_stored(archive)
    model = keras.saving.load_model(path, compile=False, safe_mode=True)
    return model.predict_on_batch, model.input_shape


def _open_onnx(path: Path):
    try:
        import onnxruntime
    except ImportError as error:
        raise InputError(f"{path} needs a package that is not installed: pip install onnxruntime") from error
    providers = [p for p in onnxruntime.get_available_providers() if p.startswith(("CUDA", "CPU"))]
    session = onnxruntime.InferenceSession(str(path), providers=providers)
    given = session.get_inputs()[0]
    return lambda photos: session.run(None, {given.name: photos})[0], given.shape


def read_categories(path: Path) -> np.ndarray:
    """Which scene categories are outdoor, (C,) bool, from IO_places365.txt. Raises InputError if it is malformed."""
    try:
        with open(path, encoding="utf-8") as file:
            lines = file.read(MAX_CATEGORIES).splitlines() or [""]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"categories {path} cannot be read: {error}") from error
    kinds = [match[1] if (match := CATEGORY_LINE.fullmatch(line)) else None for line in lines]
    if None in kinds:
        raise InputError(f"{path}, line {kinds.index(None) + 1}, is not like `/a/airfield 2` (1: indoor, 2: outdoor)")
    return np.array([kind == "2" for kind in kinds])


def outdoor_votes(scores: np.ndarray, outdoor: np.ndarray, top: int) -> np.ndarray:
    """How many of the `top` best of C categories are outdoor: scores (N, C) and outdoor (C,) bool to (N,) int64."""
    return outdoor[np.argsort(-scores, axis=1, kind="stable")[:, :top]].sum(axis=1)


def classify(
    classifier: Classifier, outdoor: np.ndarray, top: int, mirror: Mirror, wanted: set[str], parts: Path,
    cluster: str = "",
) -> pd.DataFrame:  # fmt: skip
    """`id` and `votes` of the readable photos in `wanted`; a train shard with a whole file in `parts` is done."""
    files = {name: parts / f"{name}.npz" for name in mirror.shard_names("train")}
    todo = [name for name, path in files.items() if _load_votes(path) is None]
    if cluster:
        from landmarks.cluster import tasks

        file, among = np.fromfile(classifier.path, np.uint8), SortedIds(filter(valid_id, wanted))
        opener = partial(_open_job, file, classifier.path.suffix, classifier.image_size, outdoor, top, among)
        tasks.share(cluster, opener, mirror, "train", {name: files[name] for name in todo}, parts, "scenes")
        todo = []
    for shard in Progress(mirror.stream("train", todo), "scenes", len(todo), unit=" shards", disable=not todo):
        _classify_shard(classifier, outdoor, top, wanted, mirror, shard, files[shard.name], parts)
    return pd.concat(map(_load_votes, files.values())).drop_duplicates("id")


def _classify_shard(
    classifier: Classifier, outdoor: np.ndarray, top: int, wanted: Container[str], _: Mirror, shard: Shard, path: Path,
    parts: Path,
) -> None:  # fmt: skip
    photo_ids = [identity for identity in shard.ids if identity in wanted]
    batches = Batches(shard, photo_ids, classifier.image_size, classifier.batch_size)
    ids, votes = [], []
    for some_ids, photos in Progress(batches, shard.name, unit=" batches", leave=False):
        check_stop()
        ids += some_ids
        votes += outdoor_votes(classifier(photos), outdoor, top).tolist()
    record_skipped(parts, "train", shard.name, [*shard.refused, *batches.unreadable])
    with whole(path) as part:
        np.savez(part, ids=np.array(ids, dtype=str), votes=np.array(votes, "int64"))


def _open_job(
    file: np.ndarray, suffix: str, size: int, outdoor: np.ndarray, top: int, wanted: SortedIds
) -> Callable[[Mirror, Shard, Path, Path], None]:
    """On a node: what classifies a shard, by the bytes of the classifier's file."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / f"classifier{suffix}"
        file.tofile(path)
        return partial(_classify_shard, Classifier(path, len(outdoor), size), outdoor, top, wanted)


def _load_votes(path: Path) -> pd.DataFrame | None:
    """A shard's votes; None if they are not there or the file is damaged (its checksums are verified)."""
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            return pd.DataFrame({"id": arrays["ids"], "votes": arrays["votes"]})
    except Exception:  # numpy and zipfile raise almost anything on a damaged file
        return None
