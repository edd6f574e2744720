"""Does the photo really show the landmark? Its local features and those of train photos decide.

    python verification.py match A.jpg B.jpg [--out matches.png] [--model WORK] [--extractor sift]
    python verification.py calibrate WORK

A test photo is compared with train photos of its predicted landmark, the most similar first, until one has more inliers
than the threshold: then it shows the landmark, else none. The third published solution compares with 20 at most, and
its threshold is 35 inliers of DELF.

`match` counts the inliers of two photos, and draws them: by the DELF of a WORK folder, else by an untrained one on
the ImageNet weights of EfficientNet-Lite0, which come with pip.

`calibrate` tells what each threshold would give with the model and settings of a WORK folder, and which has the best
GAP: on train photos, each held out, and as many that show no landmark, where the mirror lists some in
metadata/non_landmarks.csv; else these are train photos whose landmark is taken for unknown. No solution is read. It
ends with the threshold at which a run stops to compare; for more give the run more `--inliers`.
"""

import argparse
from pathlib import Path

from landmarks.running import command
from landmarks.running import recipe as recipes
from landmarks.running.locks import held


def calibrate(work: Path) -> None:
    """Print what each threshold would give to train photos that are held out, by the model in a work folder."""
    recipe = recipes.load(["--work", str(work)])
    run, settings = recipe.run, recipe.verification
    for folder in run.folders:
        recipes.of(folder)  # there is a trained model
    command.prepare_backend()
    from landmarks.local_features import calibration, decision  # import Keras
    from landmarks.mirrors.open import open_mirror
    from landmarks.neighbours import ensemble

    decision.require(run, recipe.model, settings)
    mirror = open_mirror(recipe.source.mirror, run.work / "mirror", recipe.training.seed, recipe.source)
    splits, none = calibration.photos_of_no_landmark(mirror)
    with held(run.work, *run.folders):
        files = ensemble.embed(run, recipe.embedding, mirror, splits)
        if files is None:
            return
        verified = calibration.verify_held_out(run, settings, mirror, files, none, recipe.training.seed)
    truth = {row.Index: [row.truth] if row.shown else [] for row in verified.itertuples()}
    table, best = calibration.calibrate(verified, truth, decision.largest_threshold(settings))
    print(table.to_string(float_format="{:.4f}".format))
    shown = int(verified["shown"].sum())
    others = "that show no landmark" if none else "whose landmark was left out"
    print(f"{shown:,} held-out train photos, and {len(verified) - shown:,} {others}")
    print(f"best GAP: --inliers {best}" if best >= 0 else "best GAP: --verify off")


def main() -> None:
    parser = command.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    matching = commands.add_parser("match", help="count the inliers of two photos, and draw them")
    matching.add_argument("a", type=Path)
    matching.add_argument("b", type=Path)
    matching.add_argument("--out", type=Path, help="the picture to write, like matches.png")
    matching.add_argument(
        "--extractor", help="delf, sift, xfeat, savedmodel or untrained (default: delf, untrained without --model)"
    )
    matching.add_argument("--model", type=Path, help="work folder of a trained DELF, or folder of the SavedModel")
    matching.add_argument("--size", type=int, default=512, help="pixels of a photo's longer side (default 512)")
    matching.add_argument("--points", type=int, default=1000, help="of a photo at most (default 1000)")
    calibrating = commands.add_parser("calibrate", help="precision, recall and GAP by the threshold of inliers")
    calibrating.add_argument("work", type=Path, help="a work folder with a trained model")
    arguments = vars(parser.parse_args())
    if arguments.pop("command") == "calibrate":
        return calibrate(**arguments)
    from landmarks.local_features.pair import match  # numpy and Pillow, which --help need not wait for

    match(**arguments)


if __name__ == "__main__":
    command.run(main)
