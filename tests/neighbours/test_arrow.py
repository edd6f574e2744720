"""Embeddings as Parquet and LanceDB: every photo, what the run says of it, whole or not at all."""

import numpy as np
import pytest
import scripts
from conftest import ROOT, recipe_with

from landmarks.neighbours import arrow
from landmarks.neighbours.search import Index
from landmarks.running import recipe as recipes
from landmarks.running.command import InputError
from landmarks.running.features_file import Features, save_features

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


@pytest.fixture
def work(tmp_path):
    """Two shards of train photos, one of which votes for nothing, one of index and one of test photos."""
    folder = tmp_path / "work"
    recipe_with(work=folder, beside="").keep()
    rng = np.random.default_rng(0)
    for split, name, count in [("train", 0, 5), ("train", 1, 3), ("index", 0, 1500), ("test", 0, 4)]:
        embeddings = rng.standard_normal((count, 6))
        embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
        head = [np.arange(count), np.linspace(0, 1, count, dtype=np.float32)] if split == "index" else []
        ids = np.array([f"{split}{name}{number}" for number in range(count)])
        path = folder / f"features/{split}/images_00{name}.npz"
        save_features(path, Features(ids, embeddings.astype(np.float16), *head), f"{split}-by photos{name}")
    labels = np.array([7, 7, -1, 8, 8, 9, 9, 9])
    np.savez(folder / "gallery.npz", files=np.array(["images_000.npz", "images_001.npz"]), landmark=labels)
    (folder / "recognition.csv").write_text("id,landmarks\ntest00,7 0.1234567890123456\ntest01,\ntest02,9 2e-05\n")
    return folder


def parts(work):
    return arrow.parts_of(recipes.load([f"--work={work}"]).run)


def test_a_parquet_file_has_what_the_run_says(work, tmp_path):
    out = tmp_path / "out.parquet"
    done = scripts.run(ROOT / "features.py", "to", work, out)
    assert done.returncode == 0, done.stderr
    assert f"{out}: 1,512 photos of train, index, test" in done.stdout
    file = parquet.ParquetFile(out)
    assert [str(field.type) for field in file.schema_arrow][:4] == ["string", "string", "int64", "double"]
    assert file.schema_arrow.field("embedding").type == pa.list_(pa.float32(), 6)
    assert [file.metadata.row_group(number).num_rows for number in range(5)] == [5, 3, 1024, 476, 4]
    table = file.read().to_pandas().set_index("id")
    train, index, test = (table[table["split"] == split] for split in ("train", "index", "test"))
    assert train["landmark"].fillna(-1).tolist() == [7, 7, -1, 8, 8, 9, 9, 9] and train["score"].isna().all()
    assert index["landmark"].tolist() == list(range(1500)) and index["score"].iloc[-1] == 1
    assert test["landmark"].fillna(-1).tolist() == [7, -1, 9, -1]
    assert test["score"].fillna(-1).tolist() == [0.1234567890123456, -1, 2e-05, -1]
    stored = np.load(work / "features/train/images_001.npz")["embeddings"]
    np.testing.assert_array_equal(np.stack(train["embedding"].iloc[5:]), stored.astype(np.float32))


def test_without_answers_the_head_speaks(work):
    for name in ("recognition.csv", "gallery.npz"):
        (work / name).unlink()
    found = pa.concat_tables(arrow.tables(parts(work), arrow.schema_of(parts(work)))).to_pandas()
    assert found["landmark"].notna().sum() == 1500


def test_a_file_is_replaced_only_if_it_is_ours_and_stays_if_a_shard_is_damaged(work, tmp_path):
    out = tmp_path / "out.parquet"
    other = pa.table({"id": ["a"]})
    parquet.write_table(other, out)
    with pytest.raises(InputError, match="was not made by this command"):
        arrow.to_parquet(parts(work), out)
    out.write_bytes(b"no Parquet")
    with pytest.raises(InputError, match="was not made by this command"):
        arrow.to_parquet(parts(work), out)
    out.unlink()
    assert arrow.to_parquet(parts(work), out) == arrow.to_parquet(parts(work), out) == 1512
    before, shard = out.read_bytes(), work / "features/test/images_000.npz"
    there = parts(work)
    data = bytearray(shard.read_bytes())
    data[data.index(b"embeddings.npy") + 200] ^= 1
    shard.write_bytes(data)
    with pytest.raises(InputError, match=r"test/images_000.npz.*run recognition.py"):
        arrow.to_parquet(there, out)
    assert out.read_bytes() == before and sorted(path.name for path in tmp_path.iterdir()) == ["out.parquet", "work"]


def test_lancedb_finds_the_ten_that_we_find(work, tmp_path):
    lancedb = pytest.importorskip("lancedb")
    out = tmp_path / "db"
    (out / "mine").mkdir(parents=True)
    with pytest.raises(InputError, match="was not made by this command"):
        arrow.to_lancedb(parts(work), out)
    (out / "mine").rmdir()
    out.rmdir()
    assert arrow.to_lancedb(parts(work), out) == arrow.to_lancedb(parts(work), out) == 1512
    photos = lancedb.connect(out).open_table("photos")
    index = Index([work / "features/index/images_000.npz"])
    queries = photos.search().where("split = 'test'").limit(10).to_pandas()
    assert len(queries) == 4
    for query in queries.itertuples():
        seen = Features(np.array([query.id]), np.array([query.embedding]))
        found = photos.search(query.embedding).distance_type("dot").where("split = 'index'", prefilter=True).limit(10)
        near = index.nearest(seen, 10)
        assert found.to_pandas()["id"].tolist() == index.ids[near.positions[0]].tolist()


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda work: (work / "recognition.csv").write_text("id,landmarks\nx,seven\n"), "not as recognition.py writes"),
        (lambda work: (work / "features/train/images_001.npz").unlink(), "images_001.npz"),
        (lambda work: (work / "features/index/images_000.npz").write_bytes(b"x"), "not a whole features file"),
        (
            lambda work: save_features(
                work / "features/train/images_002.npz", Features(np.array(["a"]), np.ones((1, 6))), "other-by photos"
            ),
            "are of several models",
        ),
    ],
    ids=["answers", "absent", "damaged", "models"],
)
def test_what_does_not_fit_together_is_told(work, change, error):
    change(work)
    with pytest.raises(InputError, match=error):
        parts(work)


def test_a_wrong_name_is_one_line(work):
    done = scripts.run(ROOT / "features.py", "to", work, "out.csv")
    assert done.returncode == 2 and "out.csv is neither a name like OUT.parquet nor lancedb:FOLDER" in done.stderr


def test_embeddings_that_are_not_there(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="there are no embeddings in"):
        parts(tmp_path / "empty")
