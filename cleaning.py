"""Which train photos to learn from: a file in the form of the data set's own train_clean.csv (landmark_id,images).

    python cleaning.py MIRROR OUT.csv [--classifier FILE --categories IO_places365.txt]

Two rules, in the order of the published triplet solution. Landmarks with fewer than 10 photos in train.csv are left
out. Of the others a photo stays if at least 3 of its top 5 scene categories are outdoor. Landmarks are not counted
again after that: one that had 10 photos and keeps 4 stays with 4, and goes only when none is left. Without a
classifier only the first rule holds.

The classifier is a .keras or an .onnx file (pip install onnxruntime) with one output for each line of the categories.
An ONNX input (batch, 3, height, width) is given RGB / 255 less ImageNet's mean over its standard deviation, as the
Places365 models of torchvision expect; an input (batch, height, width, 3), of Keras or ONNX, is given RGB in 0..255:
what else it needs has to be inside the model. Photos are squashed to a square.

The votes of each shard are kept in OUT.csv.parts/, so a stopped run goes on where it was, and another --votes needs no
new classification. Photos that could not be read are left out and named in OUT.csv.parts/skipped.csv.
"""

import argparse
import re
import shutil
import zipfile
from itertools import chain
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

import command
from command import InputError, check_stop
from files import md5, whole
from generators import Batches, record_skipped
from mirror import Mirror, open_mirror
from shards import PHOTO_ID

IMAGES_CELL = re.compile(rf"{PHOTO_ID.pattern}( {PHOTO_ID.pattern})*", re.ASCII)
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
    matches = [CATEGORY_LINE.fullmatch(line) for line in lines]
    if None in matches:
        raise InputError(f"{path}, line {matches.index(None) + 1}, is not like `/a/airfield 2` (1: indoor, 2: outdoor)")
    return np.array([match[1] == "2" for match in matches])


def outdoor_votes(scores: np.ndarray, outdoor: np.ndarray, top: int) -> np.ndarray:
    """How many of the `top` best of C categories are outdoor: scores (N, C) and outdoor (C,) bool to (N,) int64."""
    return outdoor[np.argsort(-scores, axis=1, kind="stable")[:, :top]].sum(axis=1)


def classify(
    classifier: Classifier, outdoor: np.ndarray, top: int, mirror: Mirror, wanted: set[str], parts: Path
) -> pd.DataFrame:
    """`id` and `votes` of the readable photos in `wanted`; a train shard with a whole file in `parts` is done."""
    files = {name: parts / f"{name}.npz" for name in mirror.shard_names("train")}
    todo = [name for name, path in files.items() if _load_votes(path) is None]
    for shard in tqdm(mirror.stream("train", todo), "scenes", len(todo), unit=" shards", disable=not todo):
        photo_ids = [identity for identity in shard.ids if identity in wanted]
        batches = Batches(shard, photo_ids, classifier.image_size, classifier.batch_size)
        ids, votes = [], []
        for some_ids, photos in tqdm(batches, shard.name, unit=" batches", leave=False):
            check_stop()
            ids += some_ids
            votes += outdoor_votes(classifier(photos), outdoor, top).tolist()
        record_skipped(parts, "train", shard, batches.unreadable)
        with whole(files[shard.name]) as part:
            np.savez(part, ids=np.array(ids, dtype=str), votes=np.array(votes, "int64"))
    return pd.concat(map(_load_votes, files.values())).drop_duplicates("id")


def _load_votes(path: Path) -> pd.DataFrame | None:
    """A shard's votes; None if they are not there or the file is damaged (its checksums are verified)."""
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            return pd.DataFrame({"id": arrays["ids"], "votes": arrays["votes"]})
    except (FileNotFoundError, ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def read_clean(path: Path) -> pd.DataFrame:
    """`id` (str) and `landmark_id` (int64) of the photos in a file `landmark_id,images`, the data set's or one of ours.

    Raises InputError unless each row is a landmark of its own with its ids between single spaces, every id there once.
    """
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)[["landmark_id", "images"]]
        landmarks = table["landmark_id"].astype("int64")
        faulty = [not IMAGES_CELL.fullmatch(cell) for cell in table["images"]]
    except (ValueError, TypeError, KeyError, OverflowError, OSError) as error:
        raise InputError(f"{path} is not a CSV with the columns landmark_id,images: {error}") from error
    if table.empty or any(faulty):
        where = f"landmark {landmarks[faulty.index(True)]} has others" if any(faulty) else "it has no row"
        raise InputError(f"{path} must list photo ids between single spaces for each landmark: {where}")
    images = [cell.split(" ") for cell in table["images"]]
    photos = pd.DataFrame({"id": list(chain(*images)), "landmark_id": np.repeat(landmarks, list(map(len, images)))})
    for twice, what in ((photos["id"], "photo"), (landmarks, "landmark")):
        if twice.duplicated().any():
            raise InputError(f"{path} lists {what} {twice[twice.duplicated()].iloc[0]} twice; it must be there once")
    return photos.reset_index(drop=True)


def clean(
    mirror: str,
    out: Path,
    min_photos: int = 10,
    classifier: Path | None = None,
    categories: Path | None = None,
    votes: int = 3,
    top: int = 5,
    image_size: int | None = None,
) -> None:
    """Write `out`; the arguments are those of the command. Raises InputError for what the user can mend."""
    if (classifier is None) != (categories is None):
        raise InputError("give --classifier and --categories together, or neither")
    if min(min_photos, votes, 1 if image_size is None else image_size) < 1 or votes > top:
        raise InputError("--min-photos, --votes and --image-size must be at least 1, and --votes at most --top")
    if out.is_dir():
        raise InputError(f"{out} is a folder; name a file to write")
    parts = out.with_name(f"{out.name}.parts")
    if classifier:
        outdoor = read_categories(categories)
        if top > len(outdoor):
            raise InputError(f"--top {top} is more than the {len(outdoor)} categories in {categories}")
        scenes = Classifier(classifier, len(outdoor), image_size)
        made_with = (
            f"mirror {Path(mirror).resolve() if Path(mirror).is_dir() else mirror}, classifier {md5(classifier)}, "
            f"categories {md5(categories)}, top {top}, image-size {scenes.image_size}, min-photos {min_photos}"
        )
        note = parts / "settings.txt"
        if not note.exists():
            shutil.rmtree(parts / "mirror", ignore_errors=True)  # of a run that found its mirror to be no good
        elif (before := note.read_text()) != made_with:
            raise InputError(f"{parts} was begun with {before}, now it is {made_with}; delete it or give another file")
    source = open_mirror(mirror, parts / "mirror" if classifier else None)
    source.require("train")
    train = source.train()
    photos = train[train.groupby("landmark_id")["id"].transform("size") >= min_photos]
    if photos.empty:
        raise InputError(f"no landmark of {mirror} has {min_photos} train photos; lower --min-photos")
    unread = ""
    if classifier:
        with whole(note) as part:
            part.write_text(made_with)
        voted = photos.merge(classify(scenes, outdoor, top, source, set(photos["id"]), parts), on="id")
        unread = f"; {len(photos) - len(voted):,} could not be read or are in no shard"
        photos = voted[voted["votes"] >= votes]
        if photos.empty:
            raise InputError(f"no photo has {votes} outdoor scenes among its top {top}{unread}; lower --votes")
        shutil.rmtree(parts / "mirror", ignore_errors=True)
    with whole(out) as part:
        photos.groupby("landmark_id")["id"].agg(" ".join).rename("images").to_csv(part)
    print(
        f"{out}: {len(photos):,} of {len(train):,} photos and {photos['landmark_id'].nunique():,} of "
        f"{train['landmark_id'].nunique():,} landmarks kept{unread}"
    )


def main() -> None:
    parser = command.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mirror", help="sample, a URL or a folder")
    parser.add_argument("out", type=Path, help="the file to write: landmark_id,images")
    parser.add_argument("--min-photos", type=int, default=10, help="of a landmark in train.csv (default 10)")
    parser.add_argument("--classifier", type=Path, metavar="FILE", help="scene classifier, .keras or .onnx")
    parser.add_argument("--categories", type=Path, metavar="FILE", help="lines `/a/airfield 2`; 1: indoor, 2: outdoor")
    parser.add_argument("--votes", type=int, default=3, help="outdoor scenes that a photo needs (default 3)")
    parser.add_argument("--top", type=int, default=5, help="best scenes of a photo that vote (default 5)")
    parser.add_argument("--image-size", type=int, help="side that photos are squashed to (default the model's, or 224)")
    clean(**vars(parser.parse_args()))


if __name__ == "__main__":
    command.run(main)
