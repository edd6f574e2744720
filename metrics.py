"""The scores of the two challenges, as the published metric code of the Google Landmarks Dataset v2 computes them.

    python metrics.py recognition|retrieval SUBMISSION.csv SOLUTION.csv
    python metrics.py calibration SUBMISSION.csv SOLUTION.csv     are the scores of recognition probabilities?

prints the scores of the public and the private test images as JSON: fractions, not percentages; null where a part has
nothing to score (no image with a landmark, no query).
"""

import json
from pathlib import Path

from landmarks.running import command
from landmarks.scoring.scores import SCORERS


def main() -> None:
    parser = command.Parser(description="Score a submission against the published solution.")
    parser.add_argument("task", choices=list(SCORERS))
    parser.add_argument("submission", type=Path, help="a CSV file: id,landmarks or id,images")
    parser.add_argument("solution", type=Path, help="a CSV file: id,landmarks,Usage or id,images,Usage")
    arguments = parser.parse_args()
    print(json.dumps(SCORERS[arguments.task](arguments.submission, arguments.solution), indent=2))


if __name__ == "__main__":
    command.run(main)
