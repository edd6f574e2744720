"""Photos with labels in other forms become the mirror that a folder per landmark does."""

import csv
import io
import json
import os
import tarfile
from pathlib import Path

import pandas as pd
import pytest
from conftest import jpeg, photos_in

from landmarks.mirrors import check, convert, labelled
from landmarks.mirrors.folder import FolderMirror
from landmarks.running.command import InputError

NAMES = {"Tower": 5, "Gate, old": 4}  # photos by landmark
NONE = 3  # of no landmark
PHOTOS = [
    (f"{name}-{number}.jpg", name, jpeg(10 * place + number))
    for place, (name, count) in enumerate(NAMES.items())
    for number in range(count)
] + [(f"none-{number}.jpg", None, jpeg(100 + number)) for number in range(NONE)]


def tables(folder: Path, where: str, label: str = "label", write=None) -> Path:
    """Photos in `folder/images`, and a CSV of them that names each by its path from `folder`."""
    (folder / "images").mkdir(parents=True)
    rows = []
    for name, said, data in PHOTOS:
        (folder / "images" / name).write_bytes(data)
        rows.append({"file_name": f"images/{name}", "width": 40, label: said})
    if where.endswith(".jsonl"):
        (folder / where).write_text("\n".join(map(json.dumps, rows)))
    else:
        with open(folder / where, "w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return folder


def from_csv(folder):
    return tables(folder, "list.csv", "landmark") / "list.csv"


def from_metadata_csv(folder):
    return tables(folder, "metadata.csv")


def from_metadata_jsonl(folder):
    return tables(folder, "metadata.jsonl", "category")


def from_webdataset(folder):
    folder.mkdir(parents=True)
    for shard in range(2):
        with tarfile.open(folder / f"shard-{shard:06d}.tar", "w") as tar:
            for number, (_, label, data) in enumerate(PHOTOS[shard::2]):
                key = f"some/{number:04d}"
                if shard:
                    add(tar, f"{key}.json", json.dumps({"label": label, "caption": "a photo"}).encode())
                elif label:
                    add(tar, f"{key}.cls", label.encode())
                add(tar, f"{key}.jpg", data)
                add(tar, f"{key}.seg.png", b"of another column")
    return folder


def add(tar, name, data, **changed):
    member = tarfile.TarInfo(name)
    member.size = len(data)
    for key, value in changed.items():
        setattr(member, key, value)
    tar.addfile(member, io.BytesIO(data))


def arrow_table(names=True):
    """As Hugging Face's `datasets` makes it: a struct for the image, a number for the class, and a note of both."""
    pa = pytest.importorskip("pyarrow", reason="pip install -r requirements-export.txt")
    classes = sorted(NAMES)
    images = [{"bytes": data, "path": name} for name, _, data in PHOTOS]
    labels = [-1 if label is None else classes.index(label) for _, label, _ in PHOTOS]
    features = {"picture": {"_type": "Image"}, "label": {"names": classes, "_type": "ClassLabel"}}
    noted = {"huggingface": json.dumps({"info": {"features": features}})} if names else None
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    columns = {"picture": pa.array(images, kind), "label": pa.array(labels, pa.int64())}
    return pa.table(columns).replace_schema_metadata(noted)


def from_parquet(folder):
    table = arrow_table()
    from pyarrow import parquet

    (folder / "data").mkdir(parents=True)
    half = len(PHOTOS) // 2
    parquet.write_table(table.slice(0, half), folder / "data/train-00000-of-00001.parquet", row_group_size=3)
    parquet.write_table(table.slice(half), folder / "data/test-00000-of-00001.parquet")
    return folder


def from_saved_dataset(folder):
    table = arrow_table()
    import pyarrow as pa

    (folder / "train").mkdir(parents=True)
    (folder / "dataset_dict.json").write_text('{"splits": ["train"]}')
    for name in ("data-00000-of-00001.arrow", "cache-0123456789abcdef.arrow"):
        with pa.OSFile(str(folder / "train" / name), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(table)
    return folder


FORMS = [from_csv, from_metadata_csv, from_metadata_jsonl, from_webdataset, from_parquet, from_saved_dataset]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_becomes_the_same_mirror(tmp_path, form, capsys):
    source, out = form(tmp_path / "data set"), tmp_path / "out"
    convert.import_folder(source, out, None, seed=0)
    told = capsys.readouterr().out
    assert " ".join(told.split()).startswith("out: landmarks 2 photos 12 train")
    mirror = FolderMirror(out)
    assert set(mirror.categories().values()) == set(NAMES)
    photos = {
        shard.read(identity)
        for split in ("train", "index", "test")
        for shard in mirror.stream(split, mirror.shard_names(split))
        for identity in shard.ids
    }
    assert photos == {data for _, _, data in PHOTOS}  # byte for byte
    solution = pd.read_csv(mirror.solution("recognition"))
    assert solution["landmarks"].isna().sum() == NONE - NONE // 3
    names = mirror.categories()
    found = mirror.train()["landmark_id"].map(names).value_counts()
    assert found.to_dict() == {"Tower": 3, "Gate, old": 2}
    assert check.check(str(out)) == 0
    assert not (out / "unpacked").exists()


def test_a_stopped_import_goes_on(tmp_path):
    source, out = from_webdataset(tmp_path / "tars"), tmp_path / "out"
    convert.import_folder(source, out, None, seed=0)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.tar")}
    convert.import_folder(source, out, None, seed=0)
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("*.tar")}


def test_what_is_passed_over_is_named(tmp_path):
    folder = tables(tmp_path / "set", "metadata.csv")
    secret = tmp_path / "secret.jpg"
    secret.write_bytes(jpeg(77))
    (folder / "images/broken.jpg").write_bytes(b"broken")
    os.symlink(secret, folder / "images/link.jpg")
    rows = [
        ("images/gone.jpg", "Tower", "not there"),
        ("images/broken.jpg", "Tower", "not a photo"),
        ("../secret.jpg", "Tower", "outside the folder of its dataset"),
        (str(secret), "Tower", "outside the folder of its dataset"),
        ("images/link.jpg", "Tower", "outside the folder of its dataset"),
        ("images/Tower-0.jpg", "Tower", "listed twice"),
        ("images/Tower-1.jpg", "Gate, old", "listed with two labels"),
        ("metadata.csv", "Tower", "no photo's suffix"),
    ]
    with open(folder / "metadata.csv", "a", newline="") as file:
        csv.writer(file).writerows((path, 1, label) for path, label, _ in rows)
    convert.import_folder(folder, tmp_path / "out", None, seed=0)
    failed = pd.read_csv(tmp_path / "out/failed.csv")
    for path, _, reason in rows:
        assert failed.loc[failed["url"] == path, "reason"].str.contains(reason).any(), (path, reason)


def test_a_list_of_ones_own_may_name_any_place(tmp_path):
    photos_in(tmp_path / "elsewhere", 8)
    rows = [f"{tmp_path / 'elsewhere'}/{number}.jpg,{7 + number % 2}" for number in range(8)]
    (tmp_path / "list.csv").write_text("\n".join(["path,landmark_id", *rows]))
    convert.import_folder(tmp_path / "list.csv", tmp_path / "out", photos_in(tmp_path / "none", 3, seed=50), seed=0)
    mirror = FolderMirror(tmp_path / "out")
    assert set(mirror.train()["landmark_id"]) == {7, 8}  # whole numbers stay as they are
    assert pd.read_csv(mirror.solution("recognition"))["landmarks"].isna().sum() == 2


def found(source, tmp_path, **given):
    """The label and the fault of each photo."""
    return [(one.label, one.fault) for one in labelled.listed(source, tmp_path / "unpacked", **given)]


def test_a_key_that_is_named_counts_and_not_the_number_beside_it(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        add(tar, "a.jpg", jpeg(1))
        add(tar, "a.json", b'{"place": "Tower"}')
        add(tar, "a.cls", b"17")
    assert found(tmp_path / "x.tar", tmp_path, label="place") == [("Tower", "")]
    assert found(tmp_path / "x.tar", tmp_path) == [("17", "")]


def test_parquet_alone_and_a_folder_of_that_name(tmp_path):
    """As Spark writes one; and photos that are in files beside the table."""
    pa = pytest.importorskip("pyarrow", reason="pip install -r requirements-export.txt")
    from pyarrow import parquet

    (tmp_path / "set.parquet").mkdir()
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    for place in (tmp_path, tmp_path / "set.parquet"):
        (place / "a.jpg").write_bytes(jpeg(1))
        image = pa.array([{"bytes": None, "path": "a.jpg"}], kind)
        parquet.write_table(pa.table({"image": image, "label": ["Tower"]}), place / "part-0.parquet")
    assert found(tmp_path / "part-0.parquet", tmp_path) == [("Tower", "")]
    assert found(tmp_path / "set.parquet", tmp_path) == [("Tower", "")]


def test_what_is_taken_for_a_dataset_is_said(tmp_path, capsys):
    photos_in(tmp_path / "Tower", 4)
    with tarfile.open(tmp_path / "Tower/old.tar", "w") as tar:
        add(tar, "a.jpg", jpeg(1))
    with pytest.raises(InputError, match="fewer than two landmarks"):
        convert.import_folder(tmp_path, tmp_path.with_name("out"), None, seed=0)
    assert f"photos and labels are those of {tmp_path}/Tower/old.tar alone" in capsys.readouterr().err


def test_tars_of_strangers(tmp_path):
    folder = from_webdataset(tmp_path / "tars")
    with tarfile.open(folder / "evil.tar", "w") as tar:
        add(tar, "../../escaped.jpg", jpeg(80))
        add(tar, "../../escaped.cls", b"Tower")
        add(tar, "/absolute.jpg", jpeg(81))
        add(tar, "link.jpg", b"", type=tarfile.SYMTYPE, linkname="/etc/hostname")
        add(tar, "two.jpg", jpeg(82))
        add(tar, "two.png", jpeg(83))
    convert.import_folder(folder, tmp_path / "out", None, seed=0)
    assert not list(tmp_path.rglob("escaped*")) and not Path("/absolute.jpg").exists()
    urls = set(pd.read_csv(tmp_path / "out/failed.csv")["url"])
    assert {"evil.tar/link.jpg", "evil.tar/two.png"} <= urls
    (folder / "cut.tar").write_bytes((folder / "evil.tar").read_bytes()[:3000])
    with pytest.raises(InputError, match="cut.tar is no webdataset that can be read"):
        convert.import_folder(folder, tmp_path / "other", None, seed=0)
    assert not (tmp_path / "other/unpacked").exists()


def test_a_dataset_cannot_fill_the_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(labelled, "SPARE", 1000)
    pa = pytest.importorskip("pyarrow", reason="pip install -r requirements-export.txt")
    from pyarrow import parquet

    (tmp_path / "set").mkdir()
    table = pa.table({"image": [jpeg(1)] * 10_000, "label": ["a"] * 10_000})  # a dictionary of one photo
    parquet.write_table(table, tmp_path / "set/x.parquet")
    with pytest.raises(InputError, match="unpacks to far more than its size"):
        convert.import_folder(tmp_path / "set", tmp_path / "out", None, seed=0)
    assert not (tmp_path / "out/unpacked").exists()


def test_a_form_that_is_none_is_one_clear_line(tmp_path, monkeypatch):
    folder = tables(tmp_path / "set", "metadata.csv", label="what")
    with pytest.raises(InputError, match="has no column landmark_id or .* but file_name, width, what; name .* --label"):
        convert.import_folder(folder, tmp_path / "out", None, seed=0)
    convert.import_folder(folder, tmp_path / "out", None, seed=0, label="what")
    with pytest.raises(InputError, match="--nested is for folders of photos"):
        convert.import_folder(folder, tmp_path / "out", None, seed=0, nested=True)
    photos_in(tmp_path / "plain/a", 3)
    with pytest.raises(InputError, match="--label is for photos that are listed"):
        convert.import_folder(tmp_path / "plain", tmp_path / "out", None, seed=0, label="what")
    for name, text, match in (
        ("metadata.jsonl", '{"file_name": "a.jpg", "label": 1}\n[', "is not a JSONL"),
        ("metadata.jsonl", "7", "line 1 is no object"),
        ("metadata.csv", "file_name,label\na.jpg", "line 2: 1 cells, the first line has 2"),
        ("metadata.csv", "file_name,label\n,x", "a photo without a path"),
        ("x.parquet", "PAR1", "is no dataset of photos that can be read"),
        ("x.arrow", "ARROW", "is no dataset of photos that can be read"),
    ):
        other = tmp_path / f"bad {name} {len(text)}"
        other.mkdir()
        (other / name).write_text(text)
        with pytest.raises(InputError, match=match) as told:
            convert.import_folder(other, tmp_path / "nothing", None, seed=0)
        assert "\n" not in str(told.value)
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(InputError, match="x.parquet needs pyarrow: pip install -r requirements-export.txt"):
        convert.import_folder(tmp_path / "bad x.parquet 4", tmp_path / "nothing", None, seed=0)
