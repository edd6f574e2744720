"""Photos whose labels stand in a table or beside them: CSVs, Hugging Face datasets, webdatasets; listed for an import.

    LIST.csv                        paths and labels, the paths absolute or from its folder
    FOLDER/metadata.csv, .jsonl     Hugging Face's imagefolder: file_name and a label; in the folders of its splits too
    FOLDER/**/*.parquet, *.arrow    Hugging Face's datasets as they are published or saved, with a column of images
    FOLDER/*.tar                    webdatasets: KEY.jpg beside KEY.cls or KEY.json

Splits are not kept: an import divides photos anew. What is in parquet, Arrow and tar files is unpacked first.
"""

import csv
import json
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from landmarks.mirrors.shards import MAX_PHOTO_BYTES, DamagedShard, read_members
from landmarks.mirrors.survey import SUFFIXES, Listed, reason_to_pass_over
from landmarks.running.command import InputError, check_stop
from landmarks.running.files import require_space
from landmarks.running.progress import Progress
from landmarks.running.said import say

LABELS = ("landmark_id", "landmark", "label", "category", "class")  # columns, the first that there is
PATHS = ("file_name", "path", "file", "filename", "image", "photo")
IMAGES = ("image", "img", "photo", "jpg", "png", "webp")
METADATA = ("metadata.csv", "metadata.jsonl")
PACKED = {".parquet", ".arrow", ".tar"}
MAX_LINE = 2**20  # characters of a line, or bytes of a KEY.json or KEY.cls
SPARE = 2**26  # bytes that what is unpacked may have beyond twice what is packed: a photo hardly shrinks
NO_LABEL = {"", "-1", "None", "none", "null", "nan"}  # -1 as Hugging Face has it


def is_labelled(source: Path) -> bool:
    """Whether photos are listed in one of these forms, and do not lie in a folder per landmark."""
    return source.is_file() or bool(_tables(source) or _packed(source))


def listed(source: Path, unpacked: Path, label: str = "") -> list[Listed]:
    """All photos that a CSV, a dataset or a folder of tars lists.

    Args:
        unpacked: a folder to be filled with photos that are in no file of their own.
        label: the column of the labels, or their key in JSON; where it is empty, the first of `LABELS` that there is.

    Raises:
        InputError: a file is of no such form, lacks a column, is damaged, or unpacks to far more than its size.
    """
    is_file = source.is_file()
    root = source.parent if is_file else source
    packed = ([source] if source.suffix in PACKED else []) if is_file else _packed(source)
    tables = [] if packed else [source] if is_file else _tables(source)
    if not is_file:  # where a stray one among folders of photos is taken for a dataset, that is seen
        first, *others = packed or tables
        say(f"photos and labels are those of {first}{f' and {len(others):,} more files' if others else ''} alone")
    found: list[Listed] = []
    for path in tables:
        found += _of_table(path, label, root, is_file)
    size = sum(path.stat().st_size for path in packed)
    require_space(unpacked.parent, size, f"the photos in {source} take")
    write = _Unpacking(unpacked, 2 * size + SPARE)
    for path in Progress(packed, "unpack", unit=" files", disable=not packed):
        name = path.relative_to(root).as_posix()
        found += (_of_tar if path.suffix == ".tar" else _of_arrow)(path, name, label, write, root)
    return found


def _tables(folder: Path) -> list[Path]:
    return sorted(path for name in METADATA for path in (*folder.glob(name), *folder.glob(f"*/{name}")))


def _packed(folder: Path) -> list[Path]:
    """Without the caches that Hugging Face leaves beside what it has saved."""
    found = (path for suffix in PACKED for deep in ("", "*/", "*/*/") for path in folder.glob(f"{deep}*{suffix}"))
    return sorted(path for path in found if path.is_file() and not path.name.startswith("cache-"))


class _Unpacking:
    """Writes photos into a folder, under numbers, so that no name of a stranger becomes a path."""

    def __init__(self, folder: Path, most: int):
        self.folder, self.left, self.count = folder, most, 0

    def __call__(self, data: bytes) -> Path:
        """Raises InputError once they are too many bytes."""
        check_stop()
        self.left -= len(data)
        if self.left < 0:
            raise InputError("the dataset unpacks to far more than its size: it is damaged, or meant to fill the disk")
        path = self.folder / f"{self.count // 1000:06d}" / f"{self.count:09d}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        self.count += 1
        return path


def _column(path: Path, given: Iterable[str], known: Iterable[str], option: str = "") -> str:
    given = list(given)
    if option:
        known = [option]
    for name in known:
        if name in given:
            return name
    told = ", ".join(str(name)[:50] for name in given[:20])
    raise InputError(f"{path} has no column {' or '.join(known)}, but {told}; name that of the labels by --label")


def _text(value: Any) -> str | None:
    """A label; None where there is none."""
    text = "" if value is None else str(value).strip()
    return None if text in NO_LABEL else text


def _of_table(path: Path, label: str, root: Path, anywhere: bool) -> Iterator[Listed]:
    """Photos of a CSV or JSONL. Those of a dataset must lie in its folder; a list of your own may name any."""
    rows = _json_lines(path) if path.suffix == ".jsonl" else _csv_rows(path)
    columns: tuple[str, str] | None = None
    for row in rows:
        if columns is None:
            columns = _column(path, row, PATHS), _column(path, row, LABELS, label)
        name, said = row.get(columns[0]), row.get(columns[1])
        if not isinstance(name, str) or not name or "\0" in name:
            raise InputError(f"{path} has a photo without a path: {str(row)[:100]}")
        yield _file(path.parent / name, name if anywhere else _within(path.parent, root, name), said, root, anywhere)


def _within(folder: Path, root: Path, name: str) -> str:
    return (folder.relative_to(root) / name).as_posix()


def _file(place: Path, name: str, label: Any, root: Path, anywhere: bool) -> Listed:
    if not (anywhere or place.resolve().is_relative_to(root.resolve())):
        return Listed(name, None, None, "outside the folder of its dataset")
    fault = (reason_to_pass_over(place) or "") if place.is_file() else "not there"
    return Listed(name, None if fault else place, _text(label), fault)


def _csv_rows(path: Path) -> Iterator[dict[str, str]]:
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = csv.reader(iter(partial(file.readline, MAX_LINE), ""))
            header = next(rows, [])
            for row in filter(None, rows):
                if len(row) != len(header):
                    raise ValueError(f"line {rows.line_num}: {len(row)} cells, the first line has {len(header)}")
                yield dict(zip(header, row, strict=True))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, csv.Error) as error:
        raise InputError(f"{path} is not a CSV of photos and labels: {error}") from error


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    try:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(iter(partial(file.readline, MAX_LINE), ""), 1):
                if line.strip():
                    row = json.loads(line)
                    if not isinstance(row, dict):
                        raise ValueError(f"line {number} is no object")
                    yield row
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not a JSONL of photos and labels: {error}") from error


def _of_tar(path: Path, name: str, label: str, write: Callable[[bytes], Path], root: Path) -> list[Listed]:
    """A webdataset: members with the same name to the first dot of its last part are one sample."""
    photos: dict[str, Listed] = {}
    labels: dict[str, str | None] = {}
    faults: list[Listed] = []
    try:
        with open(path, "rb") as file:
            for member in read_members(file):
                place, slash, last = member.name.rpartition("/")
                key, _, extension = last.partition(".")
                sample, kind = f"{place}{slash}{key}", extension.lower()
                if member.isdir() or not (f".{kind}" in SUFFIXES or kind in (label or "cls", "json")):
                    continue
                is_photo, origin, fault = f".{kind}" in SUFFIXES, f"{name}/{member.name}", ""
                if not member.isreg() or member.sparse is not None:
                    fault = "not a regular file"
                elif member.size > (MAX_PHOTO_BYTES if is_photo else MAX_LINE):
                    fault = "too large"
                elif is_photo and sample in photos:
                    fault = "a second photo"
                if fault:
                    faults.append(Listed(origin, None, None, fault))
                else:
                    file.seek(member.offset_data)
                    data = file.read(member.size)
                    if is_photo:
                        photos[sample] = Listed(origin, write(data), None)
                    elif kind != "json":
                        labels[sample] = _text(data.decode("utf-8", "replace"))
                    elif isinstance(said := json.loads(data), dict):
                        named = next((one for one in ([label] if label else LABELS) if one in said), None)
                        labels.setdefault(sample, _text(said.get(named)) if named else None)
    except (DamagedShard, OSError, EOFError, ValueError, OverflowError, RecursionError) as error:
        raise InputError(f"{path} is no webdataset that can be read ({str(error)[:200]})") from error
    return [one._replace(label=labels.get(sample)) for sample, one in photos.items()] + faults


def _of_arrow(path: Path, name: str, label: str, write: Callable[[bytes], Path], root: Path) -> list[Listed]:
    """A parquet or Arrow file with a column of images, as Hugging Face's: a struct of bytes and path, or bytes."""
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise InputError(f"{path} needs pyarrow: pip install -r requirements-export.txt") from error
    found: list[Listed] = []
    try:
        if path.suffix == ".parquet":
            opened = parquet.ParquetFile(path)
            schema = opened.schema_arrow
            batches = opened.iter_batches
        else:
            stream = pa.ipc.open_stream(pa.memory_map(str(path)))
            schema, batches = stream.schema, None
        said = _features(schema)
        given = [one for one in schema.names if said.get(one, {}).get("_type") == "Image"]
        image = given[0] if given else _column(path, schema.names, IMAGES)
        named = _column(path, schema.names, LABELS, label)
        names = said.get(named, {}).get("names") if said.get(named, {}).get("_type") == "ClassLabel" else None
        columns = list(dict.fromkeys([image, named]))
        for batch in batches(batch_size=16, columns=columns) if batches else stream:
            for photo, value in zip(batch.column(image), batch.column(named).to_pylist(), strict=True):
                origin, photo = f"{name}/{len(found)}", photo.as_py()
                data, inner = (photo.get("bytes"), photo.get("path")) if isinstance(photo, dict) else (photo, None)
                if isinstance(names, list) and isinstance(value, int):
                    value = names[value] if 0 <= value < len(names) else None
                if isinstance(data, bytes) and len(data) <= MAX_PHOTO_BYTES:
                    found.append(Listed(origin, write(data), _text(value)))
                elif data is None and isinstance(inner, str):
                    found.append(_file(root / inner, inner, value, root, False))
                else:
                    found.append(Listed(origin, None, None, "no photo, or one that is too large"))
    except InputError:
        raise
    except Exception as error:  # of Arrow, and of many types
        raise InputError(f"{path} is no dataset of photos that can be read ({str(error)[:200]})") from error
    return found


def _features(schema: Any) -> dict[str, dict]:
    """What Hugging Face notes of the columns: which are images, and the names of classes."""
    try:
        noted = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        return {name: one for name, one in noted.items() if isinstance(one, dict)}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}
