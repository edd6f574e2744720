"""The embeddings of a finished run as a table for other tools: a Parquet file or a LanceDB, by way of Arrow.

    python features.py to WORK OUT.parquet
    python features.py to WORK lancedb:FOLDER

A row for each photo of train, index and test that has been embedded: id, split, landmark, score, embedding. Of a train
photo `landmark` is its label, of a test photo that in recognition.csv, with its score; of others, and where these are
not there, what the model's head says, if there is one. docs/formats.md has the schema.
"""

import argparse
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from landmarks.mirrors.base import SPLITS
from landmarks.running import command, features_file
from landmarks.running import recipe as recipes
from landmarks.running.arrays import open_npz
from landmarks.running.command import InputError, check_stop
from landmarks.running.files import require_ours, whole, whole_folder
from landmarks.running.locks import require_idle
from landmarks.running.progress import Progress
from landmarks.running.settings import RunSettings

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow

ROWS = 1024  # of a row group: 8 MB of 2,048 dimensions
MARK = b"landmarks"  # in the schema's metadata, and the name of a file in a LanceDB: so it is ours to replace
TABLE = "photos"  # of a LanceDB


class Part(NamedTuple):
    """A features file, and what the run says of its photos."""

    split: str
    path: Path
    known: "pd.DataFrame | None"  # `landmark`, `score` by id; None: the features file tells


def main() -> None:
    parser = command.Parser(prog="features.py", description="The features of a finished run for other tools.")
    converting = parser.add_subparsers(dest="command", required=True).add_parser(
        "to", help="write them as Parquet, or into a LanceDB", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    converting.add_argument("work", help="of a finished run; A,B for several models")
    converting.add_argument("out", metavar="OUT.parquet|lancedb:FOLDER")
    arguments = parser.parse_args()
    kind, _, place = arguments.out.rpartition(":")
    packages = ["pyarrow", "lancedb"] if kind == "lancedb" else ["pyarrow"]
    if kind != "lancedb" and not arguments.out.endswith(".parquet"):
        raise InputError(f"{arguments.out} is neither a name like OUT.parquet nor lancedb:FOLDER")
    if absent := [package for package in packages if find_spec(package) is None]:
        raise InputError(f"{arguments.out} needs {' and '.join(absent)}: pip install -r requirements-export.txt")
    run = recipes.load([f"--work={arguments.work}"]).run
    for folder in {run.work, *run.folders}:
        require_idle(folder)
    write, out = (to_lancedb, Path(place)) if kind == "lancedb" else (to_parquet, Path(arguments.out))
    parts = parts_of(run)
    count = write(parts, out)
    print(f"{out}: {count:,} photos of {', '.join(dict.fromkeys(part.split for part in parts))}")


def parts_of(run: RunSettings) -> list[Part]:
    """The features files of a run, those of train, index and test in this order.

    Raises InputError if there are none, one is damaged, or they are not all of one model.
    """
    from landmarks.neighbours import gallery  # pandas, which --help need not wait for

    folder = run.features
    files = [(split, path) for split in SPLITS for path in sorted((folder / split).glob("*.npz"))]
    remedy = f"run recognition.py and retrieval.py --work {','.join(map(str, run.folders))} again"
    if not files:
        raise InputError(f"there are no embeddings in {folder}: {remedy}")
    try:
        made_by = {(split, features_file.made_from(path).partition(" ")[0]) for split, path in files}
        dimensions = {features_file.outline(path).dimension for _, path in files}
        known = {"train": labels(run.work / gallery.GALLERY, folder / "train"), "test": answers(run.work)}
    except (ValueError, KeyError, FileNotFoundError) as error:
        raise InputError(f"{error}: {remedy}") from error
    if len(made_by) > len({split for split, _ in files}) or len(dimensions) > 1:
        raise InputError(f"the embeddings in {folder} are of several models: {remedy}")
    return [Part(split, path, known.get(split)) for split, path in files]


def labels(kept: Path, folder: Path) -> "pd.DataFrame | None":
    """`landmark` and `score`, which is missing, of the train photos that vote, by id; None where none was to vote."""
    if not kept.exists():
        return None
    with open_npz(kept) as (arrays, _):
        names, landmark = arrays["files"].tolist(), arrays["landmark"].astype(np.int64)
    ids = features_file.ids_in(folder / Path(name).name for name in names)
    if len(ids) != len(landmark):
        raise ValueError(f"{kept} goes with other features")
    return _by_id(ids[landmark >= 0], landmark[landmark >= 0], np.nan) if names else None


def answers(work: Path) -> "pd.DataFrame | None":
    """`landmark` and `score` of the test photos that show one, by id, as recognition.csv has them; None without it."""
    import pandas as pd

    path = work / "recognition.csv"
    if not path.exists():
        return None
    cells = pd.read_csv(path, dtype=str).dropna().set_index("id")["landmarks"]
    if not cells.str.fullmatch(r"\d{1,18} \S+").all():
        raise ValueError(f"{path} is not as recognition.py writes it")
    said = cells.str.split(" ", expand=True)
    return _by_id(cells.index, said[0].astype("int64"), said[1].astype("float64"))


def _by_id(ids, landmark, score) -> "pd.DataFrame":
    import pandas as pd

    return pd.DataFrame({"landmark": np.asarray(landmark), "score": np.asarray(score)}, ids).astype(
        {"landmark": "Int64"}
    )


def schema_of(parts: list[Part]) -> "pyarrow.Schema":
    """The columns of the table, with a mark in its metadata that this command made it."""
    import pyarrow as pa

    dimension = features_file.outline(parts[0].path).dimension
    return pa.schema(
        [
            pa.field("id", pa.string(), nullable=False),
            pa.field("split", pa.string(), nullable=False),
            pa.field("landmark", pa.int64()),
            pa.field("score", pa.float64()),
            pa.field("embedding", pa.list_(pa.float32(), dimension), nullable=False),
        ],
        {MARK: features_file.made_from(parts[0].path).partition(" ")[0]},
    )


def tables(parts: list[Part], schema: "pyarrow.Schema") -> Iterator["pyarrow.Table"]:
    """The table, a features file at a time. Raises InputError if one is damaged."""
    import pandas as pd
    import pyarrow as pa

    for part in Progress(parts, "convert", unit=" shards"):
        check_stop()
        try:
            found = features_file.load_features(part.path)
        except (ValueError, FileNotFoundError) as error:
            raise InputError(f"{error}: run recognition.py and retrieval.py again") from error
        head = {"landmark": found.landmark, "score": found.score}
        said = pd.DataFrame(head, found.ids) if part.known is None else part.known.reindex(found.ids)
        columns = [
            pa.array(found.ids.tolist()),
            pa.array([part.split] * len(found.ids)),
            pa.array(said["landmark"].astype("Int64"), pa.int64()),
            pa.array(said["score"].astype("float64"), from_pandas=True),
            pa.FixedSizeListArray.from_arrays(found.embeddings.astype(np.float32).ravel(), found.embeddings.shape[1]),
        ]
        yield pa.Table.from_arrays(columns, schema=schema)


def to_parquet(parts: list[Part], out: Path) -> int:
    """Write a Parquet file, and say how many photos it has. Raises InputError where another file is there."""
    import pyarrow as pa
    from pyarrow import parquet

    if out.exists():
        try:
            ours = MARK in (parquet.read_schema(out).metadata or {})
        except (pa.ArrowException, OSError):
            ours = False
        if not ours:
            raise InputError(f"{out} is there, and was not made by this command: give another name, or move it away")
    schema = schema_of(parts)
    count = 0
    with whole(out) as part, parquet.ParquetWriter(part, schema, compression="zstd") as writer:
        for table in tables(parts, schema):
            writer.write_table(table, ROWS)
            count += len(table)
    return count


def to_lancedb(parts: list[Part], out: Path) -> int:
    """Write the table `photos` of a new LanceDB, and say how many photos it has.

    Raises InputError where a folder is that this command has not made.
    """
    import lancedb

    mark = MARK.decode()
    require_ours(out, mark)
    schema = schema_of(parts)
    with whole_folder(out, mark) as part:
        photos = lancedb.connect(part).create_table(TABLE, schema=schema)
        for table in tables(parts, schema):
            photos.add(table)
        (part / mark).write_bytes(schema.metadata[MARK])
        return photos.count_rows()
