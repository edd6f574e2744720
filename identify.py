"""Which landmark do these photos show? By what a finished run of recognition.py left in its work folder.

    python identify.py PHOTO... [--work WORK|A,B] [--json] [--top 5] [--threshold 0.5] [--picture out.png]

PHOTO is a file, or a folder of them. For each: the landmark and how sure that is, or "none" below the threshold, the
landmarks that come next, and the train photos that are most like it. Nothing is embedded or searched again, and nothing
in the work folder changes; it needs no mirror, but for `--picture`, which shows one photo beside those train photos.

How sure is the probability of being right, where the work folder has a `calibration.json` that is meant for it; else it
is the score, and said to be. Those of the other landmarks are scores.

A photo that cannot be read is named, the others go on, and the command ends with 2. From Python:
`landmarks.neighbours.identification.Identifier`.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from landmarks.mirrors.shards import read_photo
from landmarks.running import command
from landmarks.running.command import InputError, check_stop
from landmarks.running.files import whole
from landmarks.running.recipe import Recipe

if TYPE_CHECKING:
    from landmarks.neighbours.identification import Answer


def main() -> int:
    parser = command.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", nargs="+", metavar="PHOTO", type=Path, help="a file, or a folder of photos")
    parser.add_argument("--work", default="work", help="of a finished run; A,B for several models (default work)")
    parser.add_argument("--json", action="store_true", help="print a list with an object for each photo")
    parser.add_argument("--top", type=command.at_least(1), default=5, help="landmarks and train photos (default 5)")
    parser.add_argument("--threshold", type=float, default=0.5, help="below it is no landmark (default 0.5)")
    parser.add_argument("--picture", type=Path, metavar="out.png", help="draw a photo beside the nearest train photos")
    arguments = parser.parse_args()
    paths = files_of(arguments.photos)
    if arguments.picture and len(paths) > 1:
        raise InputError(f"--picture draws one photo, {len(paths):,} are given")
    command.prepare_backend()
    from landmarks.mirrors.images import UnreadablePhoto
    from landmarks.neighbours.identification import Identifier  # Keras takes seconds, which --help need not wait for

    identifier = Identifier(arguments.work)
    answers: list[dict] = []
    unreadable = 0
    for path in paths:
        check_stop()
        try:
            answer = identifier.identify(path, arguments.top, arguments.threshold)
        except (OSError, UnreadablePhoto) as error:
            reason = getattr(error, "strerror", None) or str(error)
            print(f"error: photo {path} cannot be read: {reason}", file=sys.stderr)
            answers.append({"photo": str(path), "error": reason})
            unreadable += 1
            continue
        answers.append({"photo": str(path), **as_dict(answer)})
        if not arguments.json:
            print(table(path, answer, arguments.threshold), flush=True)
    if arguments.json:
        print(json.dumps(answers, indent=2))
    if arguments.picture and not unreadable:
        draw(paths[0], answer, identifier.recipe, arguments.picture)
    return 2 if unreadable else 0


def files_of(photos: list[Path]) -> list[Path]:
    """The files, and in place of a folder the photos below it, in order of their names, but for hidden ones.

    Raises InputError if there are none in a folder.
    """
    from landmarks.mirrors.survey import SUFFIXES

    found: list[Path] = []
    for photo in photos:
        if not photo.is_dir():
            found.append(photo)
            continue
        below = [path for path in sorted(photo.rglob("*")) if path.suffix.lower() in SUFFIXES and path.is_file()]
        below = [path for path in below if not any(part.startswith(".") for part in path.relative_to(photo).parts)]
        if not below:
            raise InputError(f"{photo} holds no photo ({', '.join(sorted(SUFFIXES))})")
        found += below
    return found


def as_dict(answer: "Answer") -> dict:
    """What JSON is made of."""
    return {
        **answer._asdict(),
        "top": [one._asdict() for one in answer.top],
        "nearest": [one._asdict() for one in answer.nearest],
    }


def table(path: Path, answer: "Answer", threshold: float) -> str:
    """An answer as lines for people."""
    best = answer.top[0]
    sure = f"{answer.confidence:.3f}" + ("" if answer.calibrated else " (the score: it is not calibrated)")
    shown = f"{best.landmark} {best.name}".rstrip()
    if answer.landmark is None:
        lines = [f"{path}: none; the best is {shown} with {sure}, the threshold is {threshold:g}"]
    else:
        lines = [f"{path}: {shown}, confidence {sure}"]
    lines.append(f"    {'landmark':>16}  {'score':>10}  name")
    lines += [f"    {one.landmark:>16}  {one.score:>10.4g}  {one.name}".rstrip() for one in answer.top]
    if answer.nearest:
        lines.append(f"    {'train photo':>16}  {'similarity':>10}  landmark")
    lines += [
        f"    {one.id:>16}  {one.similarity:>10.4g}  {one.landmark} {one.name}".rstrip() for one in answer.nearest
    ]
    return "\n".join(lines)


def draw(path: Path, answer: "Answer", recipe: Recipe, out: Path) -> None:
    """Write a picture of the photo beside the train photos that are most like it.

    Raises InputError if these are not at hand.
    """
    from landmarks.mirrors import added
    from landmarks.mirrors.images import UnreadablePhoto
    from landmarks.mirrors.open import open_mirror
    from landmarks.mirrors.pictures import photos_of, side_by_side

    source, cache = recipe.source.mirror, recipe.run.work / "mirror"
    try:
        if source == "sample" and not cache.exists():
            raise InputError("the sample is in the work folder no more")
        mirror = open_mirror(source, cache, recipe.training.seed, recipe.source)
        shard_of = {one.id: one.shard for one in answer.nearest if one.shard != added.ADDED}
        photos = photos_of(mirror, "train", shard_of)
    except InputError as error:
        raise InputError(f"no picture of train photos: {error}") from error
    photos |= added.photos_of(recipe.run.work, [one.id for one in answer.nearest if one.shard == added.ADDED])
    row: list[tuple[bytes | None, str]] = [(read_photo(path), path.name)]
    row += [(photos.get(one.id), f"{one.similarity:.3f} {one.landmark} {one.name}") for one in answer.nearest]
    try:
        with whole(out) as part:
            side_by_side(row).save(part)
    except (ValueError, UnreadablePhoto) as error:  # Pillow goes by the suffix
        raise InputError(f"{out} cannot be written: {error}; give a name like out.png") from error


if __name__ == "__main__":
    command.run(main)
