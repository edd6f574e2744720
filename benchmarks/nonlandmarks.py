"""What the non-landmark penalty gains where 95 % of the test photos show no landmark, as nearly all of the public do.

    python benchmarks/nonlandmarks.py --work WORK [WORK ...] [--share 0.95 --draws 200 --most-predicted 10]

From the features in finished work folders, whose mirror has a recognition solution. In each half all photos of no
landmark stay, and so many with one are drawn that the share is met; the references are the other half's photos of no
landmark. A row is the mean over the draws, with the standard deviation between them.

The sample has 100 test photos of no landmark; one with more: python -c "import pathlib;
from landmarks.mirrors.open import make_sample; make_sample(pathlib.Path('crowd'), others=2000)".
"""

import argparse
import os
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

os.environ.setdefault("TQDM_DISABLE", "1")
sys.path[0] = str(Path(__file__).resolve().parents[1])  # the project; there `nonlandmarks` is not this file

import recognition
from landmarks.mirrors.open import open_mirror
from landmarks.neighbours import nonlandmarks, rerank
from landmarks.neighbours.nonlandmarks import References
from landmarks.running import command, history
from landmarks.running import recipe as recipes
from landmarks.running.answer_settings import RecognitionSettings
from landmarks.running.command import InputError
from landmarks.scoring import measures, solutions


def main() -> None:
    parser = command.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--work", type=Path, nargs="+", required=True, help="finished work folders, each measured alone"
    )
    parser.add_argument("--share", type=float, default=0.95, help="of photos of no landmark (default: %(default)s)")
    parser.add_argument("--draws", type=int, default=200, help="test sets drawn from each half (default: %(default)s)")
    parser.add_argument("--most-predicted", type=int, default=10, help="as the setting has it (default: %(default)s)")
    arguments = parser.parse_args()
    print(history.stamp(), flush=True)
    for work in arguments.work:
        measure(work, arguments.share, arguments.draws, arguments.most_predicted)


def measure(work: Path, share: float, draws: int, most_predicted: int) -> None:
    recipe = recipes.load(["--work", str(work)])
    mirror = open_mirror(recipe.source.mirror, work / "mirror", seed=recipe.training.seed)
    path = mirror.solution("recognition")
    if path is None:
        raise InputError(f"{mirror.name} has no recognition solution")
    solution = solutions.read_recognition_solution(path)
    references = nonlandmarks.reference_halves(solution, mirror.ids("test"))
    files = {
        split: [work / f"features/{split}/{name}.npz" for name in mirror.shard_names(split)]
        for split in ("test", "train")
    }
    if absent := [path for paths in files.values() for path in paths if not path.exists()]:
        raise InputError(f"there is no {absent[0]}: run recognition.py --work {work} --recognizer neighbours first")
    before = recipe.recognition

    def predict(penalty: str, weight: float, references: list[References]) -> pd.DataFrame:
        settings = RecognitionSettings(
            recognizer="neighbours",
            votes=before.votes,
            vote_power=before.vote_power,
            vote_all=before.vote_all,
            penalty=penalty,
            penalty_weight=weight,
            non_landmarks="other-half" if references else "",
        )
        return recognition.predict(recipe.model_copy(update={"recognition": settings}), mirror, files, references)

    found = {"without penalty": predict("none", 1.0, [])}
    for penalty, weight in product(("published", "winners"), (1.0, 0.5)):
        name = penalty + f", weight {weight}" * (weight != 1)
        found[name] = predict(penalty, weight, references)
    for half in ("public", "private"):
        truth = getattr(solution, half)
        drawn = list(test_sets(truth, share, draws))
        shown = sum(bool(truth[photo]) for photo in drawn[0])
        print(f"\n{work}, {half} half: {shown} of {len(drawn[0])} photos show a landmark")
        print("| | GAP | top-1 |\n|---|---|---|")
        for name, table in found.items():
            print_row(name, [scores(table, photos, truth) for photos in drawn])
        print_row(f"predicted over {most_predicted} times",
                  [scores(found["without penalty"], photos, truth, most_predicted) for photos in drawn])  # fmt: skip


def test_sets(truth: dict[str, list[int]], share: float, draws: int) -> Iterator[list[str]]:
    """Ids of test photos, of which this share shows no landmark."""
    rng = np.random.default_rng(0)
    none, some = ([photo for photo, landmarks in truth.items() if bool(landmarks) is shows] for shows in (False, True))
    count = min(len(some), max(1, round(len(none) * (1 - share) / share)))
    for _ in range(draws):
        yield none + rng.choice(some, count, replace=False).tolist()


def scores(table: pd.DataFrame, photos: list[str], truth: dict[str, list[int]], most: int = 0) -> tuple[float, float]:
    table = table[table.index.isin(photos)]  # those that could be read
    score = table["score"].to_numpy()
    if most:
        score = rerank.frequent_as_nonlandmark(table["landmark"].to_numpy(), score, most)
    predictions = dict(zip(table.index, zip(table["landmark"].tolist(), score.tolist(), strict=True), strict=True))
    solution = {photo: truth[photo] for photo in photos}
    return measures.gap(predictions, solution), measures.top1_accuracy(predictions, solution)


def print_row(name: str, figures: list[tuple[float, float]]) -> None:
    cells = (
        f"{mean:.3f} ± {far:.3f}" for mean, far in zip(np.mean(figures, axis=0), np.std(figures, axis=0), strict=True)
    )
    print("|", " | ".join([name, *cells]), "|")


if __name__ == "__main__":
    command.run(main)
