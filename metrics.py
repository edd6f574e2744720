"""The scores of the two challenges, as the published metric code of the Google Landmarks Dataset v2 computes them.

    python metrics.py recognition|retrieval SUBMISSION.csv SOLUTION.csv [--standard-errors] [--against OTHER.csv]
    python metrics.py calibration SUBMISSION.csv SOLUTION.csv     are the scores of recognition probabilities?

prints the scores of the public and the private test images as JSON: fractions, not percentages; null where a part has
nothing to score (no image with a landmark, no query). `--standard-errors` adds "resampled": GAP, top-1 and mAP@100 of
each half and the mean of both with their standard errors, from 1,000 bootstrap samples of the test images; `--against`
adds what they differ by from those of another submission, paired.
"""

import json
from pathlib import Path

from landmarks.running import command
from landmarks.running.command import InputError
from landmarks.scoring.scores import SCORERS


def main() -> None:
    parser = command.Parser(description="Score a submission against the published solution.")
    parser.add_argument("task", choices=list(SCORERS))
    parser.add_argument("submission", type=Path, help="a CSV file: id,landmarks or id,images")
    parser.add_argument("solution", type=Path, help="a CSV file: id,landmarks,Usage or id,images,Usage")
    parser.add_argument("--standard-errors", action="store_true", help="resample the test images")
    parser.add_argument(
        "--against", type=Path, metavar="OTHER.csv", help="a submission to differ from; with errors too"
    )
    arguments = parser.parse_args()
    scores: dict = SCORERS[arguments.task](arguments.submission, arguments.solution)
    if arguments.standard_errors or arguments.against:
        if arguments.task == "calibration":
            raise InputError("--standard-errors and --against are for recognition and retrieval")
        from landmarks.scoring import resampling  # numpy, which plain scores need not wait for

        scores["resampled"] = resampling.standard_errors(
            arguments.task, arguments.submission, arguments.solution, arguments.against
        )
    print(json.dumps(scores, indent=2))


if __name__ == "__main__":
    command.run(main)
