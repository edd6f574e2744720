"""Where photos live: a mirror of the Google Landmarks layout at a URL, in a folder, or the built-in sample.

python mirror.py import FOLDER OUT [--non-landmarks FOLDER] [--nested]   a folder per landmark becomes a mirror
python mirror.py import LIST.csv|DATASET OUT [--label COLUMN]            and so do listed ones, and data sets of others
python mirror.py fetch CSV OUT [--split train] [--size 512]              the 2018 form: id,url,landmark_id
python mirror.py shrink MIRROR OUT --size 256                            a small local copy
python mirror.py check MIRROR                                            read every shard and report each fault
python mirror.py sample OUT [--seed 0]                                   the built-in sample, in a folder of its own
"""

from collections.abc import Callable
from pathlib import Path

from landmarks.mirrors.base import SPLITS
from landmarks.running import command
from landmarks.running.command import at_least


def main() -> int | None:
    parser = command.Parser(description="Make, shrink and check mirrors.")
    commands = parser.add_subparsers(dest="command", required=True)

    importing = commands.add_parser(
        "import", help="a folder per landmark, or photos with labels, become a mirror with solutions",
        description="Beside a folder per landmark it takes a CSV with paths and labels, a Hugging Face data set (a "
        "folder with metadata.csv or metadata.jsonl, or with parquet or Arrow files, which need pyarrow) and a "
        "webdataset (tars). All photos are looked through before one is written. A table says what was made; "
        "failed.csv names what was passed over and why: what cannot be read, the same photo once more, or both where "
        "it lies in two landmarks. Near-duplicates stay in one split (near_duplicates.csv). HEIC needs "
        "`pip install pillow-heif`.",
    )  # fmt: skip
    importing.add_argument(
        "folder", type=Path,
        help="holds a folder of photos a landmark, whose name is the category; or a data set; or a CSV",
    )  # fmt: skip
    importing.add_argument("out", type=Path)
    importing.add_argument("--non-landmarks", type=Path, help="a folder of photos that show no landmark")
    importing.add_argument(
        "--nested", action="store_true",
        help="landmarks may lie deeper: each folder that holds photos is one, and its path the category",
    )  # fmt: skip
    importing.add_argument(
        "--label", default="", metavar="COLUMN",
        help="of a list: the column, or key, of the labels (default: the first of landmark_id, landmark, label, "
        "category and class that there is)",
    )  # fmt: skip
    importing.add_argument(
        "--seed", type=at_least(0), default=0, help="of the split into train, index and test (default 0)"
    )

    fetching = commands.add_parser("fetch", help="photos listed by URL (id,url,landmark_id) become a mirror")
    fetching.add_argument("csv", type=Path)
    fetching.add_argument("out", type=Path)
    fetching.add_argument(
        "--split", choices=[*SPLITS, "divide"], default="train",
        help="the split that the photos go to; `divide` splits them like import does (default train)",
    )  # fmt: skip
    fetching.add_argument("--size", type=at_least(1), default=512, help="shorter side in pixels, at most (default 512)")
    fetching.add_argument("--threads", type=at_least(1), default=16, help="downloads at a time (default 16)")
    fetching.add_argument("--seed", type=at_least(0), default=0, help="of --split divide (default 0)")
    fetching.add_argument(
        "--allow-private", action="store_true",
        help="follow URLs to private addresses too, as in your own network: for a list that you trust",
    )  # fmt: skip

    shrinking = commands.add_parser("shrink", help="a copy of a mirror with small photos")
    shrinking.add_argument("mirror", help="sample, a URL or a folder")
    shrinking.add_argument("out", type=Path)
    shrinking.add_argument("--size", type=at_least(1), required=True, help="shorter side in pixels, at most")

    checking = commands.add_parser("check", help="read everything and report each fault")
    checking.add_argument("mirror", help="sample, a URL or a folder")

    sampling = commands.add_parser("sample", help="the built-in sample, in a folder of its own")
    sampling.add_argument("out", type=Path, help="the folder to make")
    sampling.add_argument("--seed", type=at_least(0), default=0, help="another seed gives other landmarks (default 0)")

    arguments = vars(parser.parse_args())
    from landmarks.mirrors import check, convert  # pandas takes half a second, which --help need not wait for
    from landmarks.mirrors import open as opened

    actions: dict[str, Callable[..., int | None]] = {
        "import": convert.import_folder,
        "fetch": convert.fetch,
        "shrink": convert.shrink,
        "check": check.check,
        "sample": opened.make_sample,
    }
    return actions[arguments.pop("command")](**arguments)


if __name__ == "__main__":
    command.run(main)
