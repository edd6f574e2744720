"""Which landmark does one photo show? By the model and the train photos of a finished work folder, opened once.

from landmarks.neighbours.identification import Identifier

identifier = Identifier("work")
answer = identifier.identify("photo.jpg")
print(answer.landmark, answer.name, answer.confidence)
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from landmarks.mirrors.added import ADDED
from landmarks.mirrors.shards import read_photo
from landmarks.neighbours import gallery, growing, penalty, probability, voting
from landmarks.neighbours.ensemble import Embedder
from landmarks.neighbours.search import Index, Neighbours, without_itself
from landmarks.neighbours.voting import HeadScores
from landmarks.running import recipe as recipes
from landmarks.running.features_file import Features, outline

NONE: tuple[None, np.ndarray] = None, np.empty(0, np.int64)  # added photos, and their landmarks, where there are none
DEPTH = 1000  # nearest train photos, among which landmarks are looked for that come next to the best


class Landmark(NamedTuple):
    """A landmark that a photo may show."""

    landmark: int
    name: str  # empty where the mirror told none
    score: float  # before it became a probability: only the first one's can


class TrainPhoto(NamedTuple):
    """A train photo, or one that was added later, that is like the photo."""

    id: str
    landmark: int
    name: str  # of the landmark
    similarity: float
    shard: str  # where it is in its mirror, like images_000; `added`: in the work folder


class Answer(NamedTuple):
    """What a photo shows."""

    landmark: int | None  # None: no landmark, as far as the threshold tells
    name: str
    confidence: float  # of the best landmark, also where it is below the threshold
    calibrated: bool  # whether that is the probability of being right; else it is the score
    top: list[Landmark]  # best first; fewer than asked for where the nearest train photos show no more
    nearest: list[TrainPhoto]  # most similar first; none where the head recognises and no train photo was embedded


class Labelled(NamedTuple):
    """What photos are compared with, and the landmark of each."""

    photos: Index
    landmark: np.ndarray  # (N,) int64


class Identifier:
    """Recognises photos as recognition.py did in a work folder, one at a time: model and train photos stay in memory.

    The train photos take 4 bytes a dimension: 3.2 GB for 1.58 million of 512. The answer is that of recognition.csv, up
    to the rounding of embeddings to float16, but for what other test photos (`most_predicted`) or local features
    (`verify`) had a say in. Photos of a landmark that were added to the work folder are as good as train photos; how
    sure an answer is, is told by the curve that was found without them.

    Args:
        work: the work folder, or several as in `A,B`, of a finished run of recognition.py.

    Raises:
        InputError: a file is absent, damaged, or of another model or other settings than the rest.
    """

    def __init__(self, work: str | Path = "work"):
        recipe = recipes.load([f"--work={work}"])
        run, self._settings = recipe.run, recipe.recognition
        for folder in run.folders:
            recipes.of(folder)  # there is a trained model
        self.recipe = recipe
        self._embed = Embedder(run, recipe.embedding)
        kept = gallery.opened(run, self._embed.members, self._settings, recipe.verification)
        grown = growing.opened(run, self._embed.members)
        self._names = {**growing.names(run.work), **gallery.names(run.work)}
        calibrated = kept.calibrated and recipe.verification.verify == "off"  # by which scores change
        self._curve = probability.kept(None, run.work / "calibration.json") if calibrated else None
        self._how = penalty.penalty(self._settings.penalty, self._settings.votes, self._settings.vote_power)
        self._weight = kept.weight
        self._shards = [*(path.stem for path in kept.files), ADDED]
        votes = kept.landmark >= 0
        more, landmark = grown.voters() if grown else NONE
        self._photos = self._voters = (
            Labelled(Index(kept.files, votes, more), np.append(kept.landmark[votes], landmark)) if kept.files else None
        )
        voters = kept.files
        if self._settings.recognizer == "centres":
            voters = [run.work / voting.CENTRES]
            more, landmark = grown.centres() if grown else NONE
            centres = outline(voters[0]).ids.astype(np.int64)
            self._voters = Labelled(Index(voters, more=more), np.append(centres, landmark))
        references = run.work / penalty.NON_LANDMARKS
        self._none = Index([references]) if kept.weight else None
        self._of_voters: np.ndarray | None = None  # their likeness to photos of no landmark
        if self._voters and kept.weight and self._how.of_train:
            last = 1 if self._settings.non_landmarks == "other-half" else 0
            kept_search = run.work / f"neighbours/train-in-nonlandmarks-{last}"
            likeness = penalty.likeness(voters, references, self._how.of_train, kept_search)
            if more is not None:
                likeness = pd.concat([likeness, self._likeness(more, self._how.of_train)])
            self._of_voters = likeness.loc[self._voters.photos.ids].to_numpy()

    def identify(self, photo: str | Path | bytes, top: int = 5, threshold: float = 0.5) -> Answer:
        """Which landmark a photo shows.

        Args:
            photo: a file, or what is in one.
            top: landmarks, and train photos, that the answer names at most.
            threshold: of the confidence; below it the photo shows no landmark.

        Raises:
            ValueError: `top` is below 1.
            OSError: the file cannot be read, or is larger than 64 MiB.
            UnreadablePhoto: it is no photo.
            InputError: its embedding is not finite.
        """
        if top < 1:
            raise ValueError(f"top is {top}: an answer names one landmark at least")
        seen = self._embed(photo if isinstance(photo, bytes) else read_photo(Path(photo)))
        near = self._photos.photos.nearest(seen, max(DEPTH, self._how.depth)) if self._photos else None
        found = self._by_head(seen, top) if self._settings.recognizer == "head" else self._by_votes(seen, near, top)
        best = found[0]
        confidence = float(self._curve.of(np.array([best.score]))[0]) if self._curve else best.score
        shown = confidence >= threshold
        return Answer(
            best.landmark if shown else None,
            best.name if shown else "",
            confidence,
            self._curve is not None,
            found,
            self._train_photos(near, top),
        )

    def gallery(self) -> pd.DataFrame:
        """The photos among which the nearest are: `id`, `landmark`, `name` and `shard`, as a `TrainPhoto` has them."""
        if self._photos is None:
            return pd.DataFrame(columns=["id", "landmark", "name", "shard"])
        index, landmark = self._photos
        name = [self._names.get(one, "") for one in landmark.tolist()]
        shard = np.array(self._shards)[index.file]
        return pd.DataFrame({"id": index.ids, "landmark": landmark, "name": name, "shard": shard})

    def _by_head(self, seen: Features, top: int) -> list[Landmark]:
        head = _head(seen)
        return [self._named(*one) for one in zip(head.landmark[0, :top], head.score[0, :top], strict=True)]

    def _by_votes(self, seen: Features, near: Neighbours | None, top: int) -> list[Landmark]:
        """The landmark that is voted for, then those that were if the ones before were not there.

        Where no more landmark is among the photos that vote, the nearest photo of another one does.
        """
        voters, how, weight = self._voters, self._how, self._weight
        assert voters is not None
        if near is None or voters is not self._photos:
            near = voters.photos.nearest(seen, DEPTH)
        of_photo = pd.Series(0.0, seen.ids)
        if self._none:
            of_photo = self._likeness(seen, how.of_queries)
        if self._of_voters is not None:  # which puts so many in another order, and no others
            near = near._replace(
                similarities=near.similarities[:, : how.depth], positions=near.positions[:, : how.depth]
            )
            near = penalty.subtract(near, weight * self._of_voters)
        head = _head(seen) if self._settings.blend else None
        left = np.flatnonzero(near.positions[0] >= 0)
        landmark = voters.landmark[near.positions[0]]
        found: list[Landmark] = []
        while len(found) < top and len(left):
            counted = left[left < how.votes] if left[0] < how.votes else left[:1]
            some = near._replace(similarities=near.similarities[:, counted], positions=near.positions[:, counted])
            one = penalty.penalise(some, voters.landmark, how, weight, of_photo, None, head, self._settings.blend)
            found.append(self._named(one["landmark"].iloc[0], one["score"].iloc[0]))
            left = left[landmark[left] != found[-1].landmark]
        return found[:1] + sorted(found[1:], key=lambda one: -one.score)  # a blend may have changed their order

    def _likeness(self, photos: Features, k: int) -> pd.Series:
        """The mean similarity of photos to the k nearest photos of no landmark, by id."""
        assert self._none is not None
        near = without_itself(self._none.nearest(photos, k + 1))
        return pd.Series(penalty.nonlandmark_similarity(near, k), photos.ids)

    def _named(self, landmark: int, score: float) -> Landmark:
        return Landmark(int(landmark), self._names.get(int(landmark), ""), float(score))

    def _train_photos(self, near: Neighbours | None, top: int) -> list[TrainPhoto]:
        if near is None or self._photos is None:
            return []
        index, landmark = self._photos
        found = []
        for place, similarity in zip(near.positions[0, :top], near.similarities[0, :top], strict=True):
            if place >= 0:
                shown = self._named(landmark[place], similarity)
                found.append(TrainPhoto(str(index.ids[place]), *shown, self._shards[index.file[place]]))
        return found


def _head(seen: Features) -> HeadScores:
    assert seen.top_landmark is not None and seen.top_score is not None
    return HeadScores(seen.top_landmark, seen.top_score)
