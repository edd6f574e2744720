"""Images to embeddings on disk, one file a shard; shards that are done are skipped."""

if __name__ == "__main__":  # `python features.py to`: a door, gone through before pandas is imported
    from landmarks.neighbours import arrow
    from landmarks.running import command

    command.run(arrow.main)

import math
from collections.abc import Callable, Container, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from functools import cache, partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from generators import of_shards
from landmarks.mirrors.base import Mirror
from landmarks.mirrors.shards import Shard
from landmarks.networks.whitening import Whitening
from landmarks.running.command import check_stop, warn
from landmarks.running.digest import digest
from landmarks.running.features_file import (
    Features,
    is_whole,
    load_features,
    made_from,
    outline,
    require_finite,
    save_features,
    stamp,
    take,
)  # fmt: skip
from landmarks.running.files import md5, require_space
from landmarks.running.progress import Progress
from landmarks.running.recipe import selected
from landmarks.running.settings import EmbeddingSettings
from landmarks.running.skipped import record_skipped, skipped_photos

if TYPE_CHECKING:
    import keras

    from landmarks.networks.engines import Compiled

UNWHITENED = "unwhitened"  # the folder of the embeddings that whitening is found from
BATCHES_A_READING = 16  # each one waits for the device, which then waits for its next batch
LESS = " less"  # ends the note of a file without the photos that another one has too


def note(mirror: Mirror, split: str, name: str, made_by: str) -> str:
    """What the features of a shard are made from now: `made_by`, the digest of all else, and the photos."""
    return f"{made_by} {mirror.fingerprint(split, name)}"


def outdated(files: dict[str, Path], mirror: Mirror, split: str, made_by: str) -> list[str]:
    """The shards whose features file is absent, damaged, or made from other photos or by something else."""

    def is_current(name: str) -> bool:
        by, _, photos = made_from(files[name]).removesuffix(LESS).partition(" ")
        return by == made_by and mirror.fingerprint(split, name, photos) == photos

    with ThreadPoolExecutor(16) as pool:  # a network's file system takes its time to tell a photo's size
        current = [name for name, fits in zip(files, pool.map(is_current, files), strict=True) if fits]
    whole = set()
    for name in Progress(current, f"check features of {split}", unit=" shards", leave=False):
        check_stop()
        if is_whole(files[name]):
            whole.add(name)
    return [name for name in files if name not in whole]


def embed(
    predictor: "keras.Model",
    landmarks: np.ndarray,
    mirror: Mirror,
    split: str,
    work: Path,
    settings: EmbeddingSettings,
    image_size: int,
    batch_size: int,
    shards: str = "",
    whitening: Whitening | None = None,
    folder: str = "features",
    first: int | None = None,
    elsewhere: Callable[[Mirror, str, dict[str, Path], Path, tuple], None] | None = None,
) -> list[Path] | None:
    """Write the features of a split's shards to `work/features/SPLIT/`, those that are not there yet.

    A file notes what it was made from: the photos of its shard (`Mirror.fingerprint`), the split's listing, the model
    file, its landmarks, and the settings that change what the model sees. One that was made from anything else is made
    anew. A photo that is in two shards has features in the first of them alone.

    Args:
        predictor: as `model.predictor` makes it with these settings, of a model with or without a head.
        landmarks: (classes,) the landmark id of each class.
        shards: those to embed, like 0:17; all where it is empty.
        whitening: what embeddings go through; those that it was found from, in `work/unwhitened`, are not made again.
        folder: where in `work` the files go.
        first: so many shards of the split alone; None: all.
        elsewhere: makes the files of shards in place of this machine, given the mirror, the split, its files by shard,
            the work folder, and what `embed_file` takes between the predictor and the mirror.

    Returns:
        One file a shard, in the mirror's order; None while some are missing that `shards` leaves to other runs.

    Raises:
        InputError: an embedding is not finite; nothing is written of that shard.
    """
    all_names = mirror.shard_names(split)
    names = all_names[:first]
    files = {name: work / folder / split / f"{name}.npz" for name in names}
    ids = mirror.ids(split)
    listed = set(ids)
    unwhitened_by = digest(*seen_by(work, landmarks, settings, image_size), "\n".join(ids).encode())
    made_by = digest(unwhitened_by, *whitening) if whitening else unwhitened_by
    absent = outdated(files, mirror, split, made_by)
    if folder == "features" and settings == EmbeddingSettings(mirrored=settings.mirrored):
        absent = [name for name in absent if not _adopt(files[name], mirror, split, listed, work, made_by)]
    if absent:  # what was left out of a file as another had it may be there no more
        absent = [name for name in names if name in absent or made_from(files[name]).endswith(LESS)]
    todo = [name for name in absent if name in selected(names, shards)]
    size = len(ids) * len(todo) / max(len(all_names), 1) * _size_of_a_photo(predictor, whitening)
    require_space(work, size, f"the features of {split} take")
    there = []
    for name in todo:
        path, photos = work / UNWHITENED / split / f"{name}.npz", note(mirror, split, name, unwhitened_by)
        if whitening and made_from(path) == photos and is_whole(path):
            _write(files[name], load_features(path), whitening, note(mirror, split, name, made_by))
            there.append(name)
    rest = [name for name in todo if name not in there]
    if rest and elsewhere:
        how = landmarks, split, listed, settings.sizes(image_size), batch_size, whitening, made_by
        elsewhere(mirror, split, {name: files[name] for name in rest}, work, how)
    elif rest:
        from landmarks.networks.engines import Compiled

        shards_left = Progress(mirror.stream(split, rest), f"embed {split}", len(rest), unit=" shards")
        embedded = embed_shards(
            Compiled(predictor, settings.engine), landmarks, split, shards_left, listed, work,
            settings.sizes(image_size), batch_size,
        )  # fmt: skip
        with ThreadPoolExecutor(1) as writer:
            written: list[Future] = []
            for name, features in embedded:
                for one in written:
                    one.result()
                made = note(mirror, split, name, made_by)
                written = [writer.submit(_write, files[name], features, whitening, made)]
            for one in written:
                one.result()
    missing = [name for name in absent if name not in todo]
    print(f"{split}: {len(names) - len(missing)} of {len(names)} shards embedded, {len(todo)} of them now")
    if missing:
        print(f"{split}: run again without --shards when the other shards' files are in {files[missing[0]].parent}")
        return None
    found = [outline(path).ids for path in files.values()]
    _leave_out_repeated(list(files.values()), found, split, work)
    if first is None:
        _warn_of_absent(listed.difference(chain.from_iterable(map(np.ndarray.tolist, found))), len(ids), split, work)
    return list(files.values())


def seen_by(work: Path, landmarks: np.ndarray, settings: EmbeddingSettings, image_size: int) -> list[object]:
    """What embeddings before any whitening follow from, beside the photos; as ever, where there is one scale."""
    model_file = work / "model.keras"
    trained = _md5(*stamp(model_file)) if model_file.exists() else None
    scales = [] if settings.scales == [1.0] else [settings.scales, settings.scale_pooling]
    engine = [] if settings.engine == "keras" else [settings.engine]
    inner = [settings.inner_layers] if settings.inner_layers else []
    return [trained, landmarks, image_size, settings.mirrored, *scales, *engine, *inner]


def _write(path: Path, features: Features, whitening: Whitening | None, made_by: str) -> None:
    save_features(path, whitened(features, whitening) if whitening else features, made_by)


def embed_file(
    compiled: "Compiled", landmarks: np.ndarray, split: str, listed: Container[str], sizes: list[int], batch_size: int,
    whitening: Whitening | None, made_by: str, mirror: Mirror, shard: Shard, path: Path, work: Path,
) -> None:  # fmt: skip
    """Embed one shard to its features file."""
    ((_, features),) = embed_shards(compiled, landmarks, split, [shard], listed, work, sizes, batch_size)
    _write(path, features, whitening, note(mirror, split, shard.name, made_by))


def whitened(features: Features, whitening: Whitening) -> Features:
    return features._replace(embeddings=whitening(features.embeddings).astype("float16"))


@cache
def _md5(path: Path, _size: int, _time: int) -> str:
    return md5(path)


def _adopt(path: Path, mirror: Mirror, split: str, listed: set[str], work: Path, made_by: str) -> bool:
    """Take over a file that has no note, as older versions wrote it, if it has the photos that are there now.

    These are all photos of its shard but those that `work/skipped.csv` names. Of a mirror at a URL they are not known,
    and the file is believed.
    """
    if not path.exists() or made_from(path) or not is_whole(path):
        return False
    there = mirror.shard_ids(split, path.stem)
    if there is not None:
        ids, here = set(outline(path).ids.tolist()), listed.intersection(there)
        skipped = skipped_photos(work, split, path.stem)
        if not (ids <= here and here - ids <= skipped):
            return False
    save_features(path, load_features(path), note(mirror, split, path.stem, made_by))
    return True


def _leave_out_repeated(files: list[Path], found: list[np.ndarray], split: str, work: Path) -> None:
    """Keep of each photo the features in the first file that has them, so that an id finds one row.

    Args:
        found: the ids in each file.
    """
    ids = np.concatenate(found)
    hashes = np.sort(np.fromiter(map(hash, ids.tolist()), np.int64))
    if (hashes[1:] != hashes[:-1]).all():
        return
    repeated = pd.Series(ids).duplicated().to_numpy()
    ends = np.cumsum([len(some) for some in found])
    for path, those in zip(files, np.split(repeated, ends[:-1]), strict=True):
        if those.any():
            features = load_features(path)
            save_features(path, take(features, ~those), made_from(path).removesuffix(LESS) + LESS)
            reason = "id is in a shard before this one"
            record_skipped(work, split, path.stem, [(identity, reason) for identity in features.ids[those].tolist()])


def _warn_of_absent(absent: set[str], listed: int, split: str, work: Path) -> None:
    """Have it said how many photos no shard had, as where one is gone from a folder; those passed over are named."""
    if absent and (absent := absent - skipped_photos(work, split)):
        warn(
            f"{len(absent):,} of {listed:,} photos that metadata/{split}.csv lists, like {min(absent)}, have no "
            "features, as no shard that could be read has them; `python mirror.py check` names what a mirror lacks"
        )


def _size_of_a_photo(predictor: "keras.Model", whitening: Whitening | None) -> int:
    """Bytes in its features file: an id of 16 characters, a float16 embedding, and no more than 8 for other values."""
    values = {name: math.prod(output.shape[1:]) for name, output in predictor.output.items()}
    dimensions = values.pop("embedding")
    return 16 * 4 + 2 * (whitening.projection.shape[1] if whitening else dimensions) + 8 * sum(values.values())


def embed_shards(
    compiled: "Compiled", landmarks: np.ndarray, split: str, shards: Iterable[Shard], listed: Container[str],
    work: Path, sizes: list[int], batch_size: int,
) -> Iterator[tuple[str, Features]]:  # fmt: skip
    """Each shard's name and features, in order; photos of the next one are decoded while this one's are embedded.

    Raises InputError if an embedding is not finite.
    """
    with closing(of_shards(shards, listed, sizes, batch_size)) as ready:
        for shard, photos in ready:
            ids: list[str] = []
            waiting: list[tuple[int, dict]] = []  # an accelerator goes on while nobody reads
            found = [compiled.read(waiting)]
            batches = iter(partial(next, ready), None)
            for some, images in Progress(batches, shard.name, len(photos), unit=" batches", leave=False):
                check_stop()
                ids += some
                waiting.append((len(some), compiled(images)))
                if len(waiting) == BATCHES_A_READING:
                    found.append(compiled.read(waiting))
                    waiting.clear()
            found.append(compiled.read(waiting))
            unlisted = [(photo, f"not in metadata/{split}.csv") for photo in shard.ids if photo not in listed]
            record_skipped(work, split, shard.name, [*shard.refused, *unlisted, *photos.unreadable])
            outputs = {name: np.concatenate([part[name] for part in found]) for name in found[0]}
            features = predicted(ids, outputs, landmarks)
            remedy = partial(_what_is_spoilt, compiled.predictor, work)
            require_finite(features, f"embeddings of {split}/{shard.name}", remedy)
            yield shard.name, features


def predicted(ids: list[str], outputs: dict[str, np.ndarray], landmarks: np.ndarray) -> Features:
    """What `model.predictor` says of these photos, with landmark ids in place of classes."""
    labels = {
        name: landmarks[array.astype("int64")] if name.endswith("landmark") else array.astype("float32")
        for name, array in outputs.items()
        if name != "embedding"
    }
    return Features(np.array(ids, dtype=str), outputs["embedding"].astype("float16"), **labels)


def _what_is_spoilt(predictor: "keras.Model", work: Path) -> str:
    from keras import ops

    path = work / "model.keras"
    if not all(np.isfinite(ops.convert_to_numpy(ops.cast(weight, "float32"))).all() for weight in predictor.weights):
        return f"weights of {path} are not finite either: delete it and train again with a lower --learning-rate"
    return "the layers overflow in their --precision: train in another --work with --precision float32"
