"""What a run leaves so that single photos are recognised later, without its mirror: labels, weights, names."""

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import unquote

import numpy as np
import pandas as pd

from landmarks.mirrors.base import CATEGORIES, Mirror
from landmarks.mirrors.tables import read_table
from landmarks.neighbours import penalty, voting
from landmarks.neighbours.nonlandmarks import References
from landmarks.running.answer_settings import RecognitionSettings, VerificationSettings
from landmarks.running.arrays import open_npz
from landmarks.running.command import InputError
from landmarks.running.digest import digest
from landmarks.running.features_file import outline
from landmarks.running.files import whole
from landmarks.running.settings import RunSettings

if TYPE_CHECKING:
    from landmarks.neighbours.ensemble import Member

GALLERY = "gallery.npz"  # in a work folder
NAMES = Path(CATEGORIES).name


class Gallery(NamedTuple):
    """What the test photos of a finished run were recognised by, beside its model."""

    files: list[Path]  # features of the train photos, in order; none where the head recognises alone
    landmark: np.ndarray  # (N,) int64: of each photo in them; -1 where it does not vote
    weight: float  # of the penalty; 0: none is taken
    calibrated: bool  # the scores that were written are probabilities


def keep(
    run: RunSettings,
    members: "list[Member]",
    recognition: RecognitionSettings,
    verification: VerificationSettings,
    files: list[Path],
    voters: pd.DataFrame,
    references: list[References],
    calibrated: bool,
) -> None:
    """Write `WORK/gallery.npz`, with a digest of the model, the settings and the embeddings that it goes with.

    Args:
        files: the features of the train photos.
        voters: `id` and `landmark_id` of those that vote.
        references: the photos of no landmark, weighed. Where there are two halves, the last serves unknown photos.
    """
    landmark_of = voters.set_index("id")["landmark_id"]
    landmark = [landmark_of.reindex(outline(path).ids, fill_value=-1).to_numpy(np.int64) for path in files]
    weight = (recognition.penalty_weight or references[-1].weight) if references else 0.0
    made_from = _made_from(run, members, recognition, verification, files, weight)
    with whole(run.work / GALLERY) as part, open(part, "wb") as file:
        np.savez(
            file,
            files=np.array([path.name for path in files], dtype=str),
            landmark=np.concatenate([np.empty(0, np.int64), *landmark]),
            weight=weight,
            calibrated=calibrated,
            made_from=made_from,
        )


def opened(
    run: RunSettings,
    members: "list[Member]",
    recognition: RecognitionSettings,
    verification: VerificationSettings,
) -> Gallery:
    """What `keep` wrote. Raises InputError if it is not there or damaged, or goes with another model or other files."""
    path, remedy = run.work / GALLERY, f"run recognition.py --work {','.join(map(str, run.folders))} again"
    try:
        found, made_from = read(run)
        if recognition.recognizer != "head" and not (found.landmark >= 0).any():
            raise ValueError("no train photo votes")
        now = _made_from(run, members, recognition, verification, found.files, found.weight)
    except FileNotFoundError as error:
        raise InputError(f"{error.filename} is not there: {remedy}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} or what it goes with is not whole ({error}): {remedy}") from error
    if made_from != now:
        raise InputError(f"{path} goes with another model, other settings or other features: {remedy}")
    return found


def read(run: RunSettings) -> tuple[Gallery, str]:
    """What `keep` wrote, whatever it goes with now, and the digest of what it went with.

    Raises FileNotFoundError, or ValueError, KeyError or TypeError if it is damaged.
    """
    with open_npz(run.work / GALLERY) as (arrays, _):
        files = [run.features / "train" / Path(name).name for name in arrays["files"].tolist()]
        landmark, calibrated = arrays["landmark"].astype(np.int64), bool(arrays["calibrated"])
        return Gallery(files, landmark, float(arrays["weight"]), calibrated), str(arrays["made_from"])


def keep_names(mirror: Mirror, work: Path) -> None:
    """Take the mirror's names of landmarks along, where it has any; those of another mirror go."""
    path, kept = mirror.path(CATEGORIES), work / NAMES
    if path is None:
        kept.unlink(missing_ok=True)
    else:
        with whole(kept) as part:
            part.write_bytes(path.read_bytes())


def names(work: Path) -> dict[int, str]:
    """Landmark ids to names that people read; empty where the mirror told none. Raises InputError if malformed.

    The public mirror has the address of a category of Wikimedia Commons for a name.
    """
    path = work / NAMES
    if not path.exists():
        return {}
    table = read_table(path, ["landmark_id", "category"])
    return dict(zip(table["landmark_id"].tolist(), map(_name, table["category"]), strict=True))


def _name(category: str) -> str:
    _, is_address, title = category.rpartition("/Category:")
    name = unquote(title).replace("_", " ") if is_address else category
    return "".join(letter if letter.isprintable() else "?" for letter in name)  # a terminal obeys some


def _made_from(
    run: RunSettings,
    members: "list[Member]",
    recognition: RecognitionSettings,
    verification: VerificationSettings,
    files: list[Path],
    weight: float,
) -> str:
    searched = [*files, *searched_beside(run.work, recognition, weight)]
    settings = recognition.model_dump(), verification.model_dump(), run.model_weights
    return digest(*settings, [one.made_by() for one in members], [outline(path).crc32 for path in searched])


def searched_beside(work: Path, recognition: RecognitionSettings, weight: float) -> list[Path]:
    """The features files that photos are compared with, beside the train photos: centres, photos of no landmark."""
    centres = [work / voting.CENTRES] if recognition.recognizer == "centres" else []
    return centres + ([work / penalty.NON_LANDMARKS] if weight else [])
