"""A finished run as one file for other programs: a photo to its global descriptor; compared with Keras, and timed.

    python model.py export WORK [--format savedmodel|onnx|openvino|litert ...] [--out FOLDER] [--photos PHOTO...]

What identify.py does to a photo before it compares it is in the file: the scales, the mirrored view, the whitening, the
model beside. It takes a decoded photo, `input_image` (H, W, 3) uint8 of any size, and gives `global_descriptor` (D,)
float32, L2-normalised: the signature of the Landmark Retrieval challenge of 2020. Each format is a folder below
WORK/export, or below FOLDER; it is there only if it differs from Keras by no more than 1e-4 on any photo.
"""

import argparse
import json
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np

from landmarks.mirrors.images import UnreadablePhoto, open_photo
from landmarks.mirrors.shards import read_photo
from landmarks.networks import export
from landmarks.running import command
from landmarks.running import recipe as recipes
from landmarks.running.command import InputError, check_stop
from landmarks.running.files import require_ours, whole_folder
from landmarks.running.locks import held
from landmarks.running.settings import MirrorSettings
from landmarks.running.version import version as ours

if TYPE_CHECKING:
    import keras

NOTE = "export.json"  # beside what is exported: what it is, and of what; what has one may be replaced
TOLERANCE = 1e-4  # between any number of a descriptor and that of Keras
PHOTOS = 16  # of the mirror, that both are compared on
SIDE = 1024  # pixels of their longer side, at most


def main() -> None:
    parser = command.Parser(prog="model.py", description="A trained model for other programs.")
    exporting = parser.add_subparsers(dest="command", required=True).add_parser(
        "export", help="write a finished run's model in a format of others", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    exporting.add_argument("work", help="of a finished run; A,B for several models")
    exporting.add_argument("--format", nargs="+", choices=export.FORMATS, default=["savedmodel"], dest="formats")
    exporting.add_argument("--out", type=Path, help="each format is a folder in it (default WORK/export)")
    exporting.add_argument("--photos", nargs="+", type=Path, metavar="PHOTO", help="default 16 of the mirror")
    arguments = parser.parse_args()
    recipe = recipes.load([f"--work={arguments.work}"])
    run, out = recipe.run, arguments.out or recipe.run.work / "export"
    for folder in run.folders:
        recipes.of(folder)  # there is a trained model
    for name in arguments.formats:
        require_ours(out / name, NOTE)
    encoded = (
        given(arguments.photos) if arguments.photos else of_mirror(recipe.source, run.folders[0], recipe.training.seed)
    )
    photos = [decoded(name, data) for name, data in encoded.items()]
    command.prepare_backend()
    for name in arguments.formats:
        export.require(name)
    from landmarks.neighbours.ensemble import Embedder, as_one

    with held(*run.folders):
        embedder = Embedder(run, recipe.embedding)
        seen = [embedder(data).embeddings[0] for data in encoded.values()]
        model = as_one(run, recipe.embedding)
        made_from = [one.made_by() for one in embedder.members]
    expected, seconds = timed(export.in_keras(model), photos)
    cosines = [float(ours @ theirs.astype(np.float32)) for ours, theirs in zip(expected, seen, strict=True)]
    print(f"{len(photos)} photos; with the embeddings of identify.py their cosine is {min(cosines):.4f} or more")
    print(f"{'format':<12}{'MB':>8}{'ms a photo':>12}{'difference':>12}")
    print(f"{'keras':<12}{'':>8}{1000 * seconds:>12.1f}", flush=True)
    for name in dict.fromkeys(arguments.formats):
        check_stop()
        about = {"made_from": made_from, "photos": len(photos), "least_cosine": min(cosines)}
        write(model, name, out / name, photos, expected, about)
    print(f"{out}: {', '.join(dict.fromkeys(arguments.formats))}")


def given(paths: list[Path]) -> dict[str, bytes]:
    """Encoded photos by name. Raises InputError if one cannot be read."""
    try:
        return {str(path): read_photo(path) for path in paths}
    except OSError as error:
        raise InputError(f"photo {error.filename or paths[0]} cannot be read: {error.strerror or error}") from error


def of_mirror(source: MirrorSettings, work: Path, seed: int) -> dict[str, bytes]:
    """Some encoded test photos by id, of the first shard. Raises InputError where that would cost a download."""
    cache = work / "mirror"
    if source.mirror == "sample" and not (cache / f"sample-{seed}").exists() or source.mirror.startswith("http"):
        raise InputError(f"the mirror {source.mirror} is not at hand: give photos to compare on by --photos")
    from landmarks.mirrors.open import open_mirror  # pandas, which --help need not wait for

    mirror = open_mirror(source.mirror, cache, seed, source)
    mirror.require("test")
    for shard in mirror.stream("test", mirror.shard_names("test")):
        photos = shard.ids[:: max(1, len(shard.ids) // PHOTOS)][:PHOTOS]
        if photos:
            return {identity: shard.read(identity) for identity in photos}
    raise InputError(f"{mirror.name} has no test photo: give photos to compare on by --photos")


def decoded(name: str, data: bytes) -> np.ndarray:
    """(H, W, 3) uint8. Raises InputError if it is no photo."""
    try:
        image = open_photo(data, SIDE)
    except UnreadablePhoto as error:
        raise InputError(f"photo {name} cannot be read: {error}; give others by --photos") from error
    image.thumbnail((SIDE, SIDE))
    return np.asarray(image)


def timed(run: export.Run, photos: list[np.ndarray]) -> tuple[list[np.ndarray], float]:
    """The descriptors of photos, one by one, and the median of the seconds that each took once all had been seen."""
    descriptors = [run(photo) for photo in photos]
    seconds = []
    for photo in photos:
        begin = perf_counter()
        run(photo)
        seconds.append(perf_counter() - begin)
    return descriptors, float(np.median(seconds))


def write(
    model: "keras.Model", name: str, folder: Path, photos: list[np.ndarray], expected: list[np.ndarray], about: dict
) -> None:
    """Write the model in a format, unless it differs from Keras, and print a row of the table.

    Raises InputError if it differs by more than `TOLERANCE`, or cannot be written; a file of before stays then.
    """
    with whole_folder(folder, NOTE) as part:
        export.write(model, name, part)
        size = sum(path.stat().st_size for path in part.rglob("*") if path.is_file())
        found, seconds = timed(export.opened(name, part), photos)
        difference = max(float(np.abs(one - other).max()) for one, other in zip(found, expected, strict=True))
        print(f"{name:<12}{size / 1e6:>8.1f}{1000 * seconds:>12.1f}{difference:>12.1e}", flush=True)
        if not difference <= TOLERANCE:
            raise InputError(f"{name} differs from Keras by {difference:.1e}, more than {TOLERANCE:g}: it is not kept")
        packages = ("keras", "tensorflow", *export.FORMATS[name].packages)
        about |= {
            "format": name,
            "input": {"name": export.INPUT, "shape": ["height", "width", 3], "type": "uint8"},
            "output": {"name": export.OUTPUT, "shape": list(expected[0].shape), "type": "float32"},
            "largest_difference": difference,
            "versions": {"landmarks": ours(), **{package: version(package) for package in packages}},
        }
        (part / NOTE).write_text(json.dumps(about, indent=2), encoding="utf-8")
