"""Is a submission whole, and would it be accepted? Check it before sending.

    python submission.py check recognition|retrieval SUBMISSION.csv --mirror MIRROR

prints each fault on a line and exits with 1, or with 0 if there is none.
"""

from pathlib import Path

from landmarks.running import command
from landmarks.scoring.solutions import HEADERS
from landmarks.scoring.submissions import check


def main() -> int:
    parser = command.Parser(description="Check a submission against the test and index ids of a mirror.")
    parser.add_argument("action", choices=["check"])
    parser.add_argument("task", choices=HEADERS)
    parser.add_argument("submission", type=Path, help="a CSV file: id,landmarks or id,images")
    parser.add_argument("--mirror", required=True, help="sample, a URL or a folder")
    arguments = parser.parse_args()
    from landmarks.mirrors.open import open_mirror  # pandas takes a second, which a wrong argument need not wait for

    mirror = open_mirror(arguments.mirror)
    index_ids = mirror.ids("index") if arguments.task == "retrieval" else ()
    faults = check(arguments.task, arguments.submission, mirror.ids("test"), index_ids)
    print("\n".join(faults) or f"{arguments.submission} is a whole {arguments.task} submission")
    return 1 if faults else 0


if __name__ == "__main__":
    command.run(main)
