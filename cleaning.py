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
from pathlib import Path

from landmarks.running import command


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
    parser.add_argument(
        "--cluster", default="", metavar="auto|ADDRESS", help="a Ray cluster that classifies the shards"
    )
    arguments = vars(parser.parse_args())
    from landmarks.cluster import tasks
    from landmarks.training.cleaning import clean  # pandas takes half a second, which --help need not wait for

    tasks.require(arguments["cluster"])
    clean(**arguments)


if __name__ == "__main__":
    command.run(main)
