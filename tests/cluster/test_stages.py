"""What stages make on a cluster is the same bytes as on one machine."""

import threading
import time
from pathlib import Path

import keras
import numpy as np
import pytest
import tiny  # noqa: F401
from conftest import identity, make_mirror, recipe_with

import model as models
from landmarks.local_features.candidates import kept_features
from landmarks.mirrors.open import open_mirror
from landmarks.mirrors.shards import write_tar
from landmarks.neighbours import ensemble
from landmarks.running.features_file import Features, save_features
from landmarks.running.recipe import Recipe
from landmarks.training.cleaning import clean

pytestmark = pytest.mark.filterwarnings("ignore")  # of Ray and what it takes, in its own processes and threads


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Recipe:
    """A work folder with a model, as training leaves it, of a mirror whose train photos are in twelve shards."""
    folder = tmp_path_factory.mktemp("trained")
    mirror = open_mirror(str(make_mirror(folder / "mirror", train=40)))
    shards = mirror.stream("train", mirror.shard_names("train"))
    photos = [(one, shard.read(one)) for shard in shards for one in shard.ids]
    for number in range(12):
        some = [*photos[number * 10 : number * 10 + 10], (identity(10_000 + number), b"no photo")]
        write_tar(folder / f"mirror/train/images_{number:03d}.tar", some)
        (folder / f"mirror/md5sum/train/md5.images_{number:03d}.txt").unlink(missing_ok=True)
    recipe = recipe_with(
        work=folder / "work", mirror=str(folder / "mirror"), backbone="Tiny", weights="none", image_size=32,
        batch_size=4, crop=1,
    )  # fmt: skip
    recipe.keep()
    landmarks = np.unique(mirror.train()["landmark_id"])
    models.save(models.build_model(len(landmarks), recipe.model), recipe.run.work / "model.keras")
    rows = "".join(f"{number},{landmark}\n" for number, landmark in enumerate(landmarks))
    (recipe.run.work / "labels.csv").write_text(f"class,landmark_id\n{rows}")
    return recipe


def embedded(trained: Recipe, work: Path, cluster: str) -> dict[str, bytes]:
    """All features of a copy of the work folder, made anew, by their names."""
    work.mkdir()
    for name in ("model.keras", "labels.csv", "recipe.toml"):
        (work / name).write_bytes((trained.run.work / name).read_bytes())
    recipe = recipe_with(trained, work=work, cluster=cluster)
    mirror = open_mirror(recipe.source.mirror, work / "mirror", settings=recipe.source)
    assert ensemble.embed(recipe.run, recipe.embedding, mirror, ["train"])
    skipped = (work / "skipped.csv").read_text().splitlines()
    files = {path.relative_to(work).as_posix(): path.read_bytes() for path in work.rglob("*.npz")}
    return files | {"skipped": "\n".join(sorted(skipped)).encode()}


def test_votes_of_scenes(cluster, trained, tmp_path):
    photos = keras.Input((16, 16, 3))
    head = keras.layers.Dense(6)(keras.layers.GlobalAveragePooling2D()(photos))
    keras.Model(photos, head).save(tmp_path / "scenes.keras")
    categories = "".join(f"/a/scene{number} {1 + number % 2}\n" for number in range(6))
    (tmp_path / "scenes.txt").write_text(categories)
    votes = {}
    for name, address in (("alone", ""), ("shared", cluster.address)):
        given = {"classifier": tmp_path / "scenes.keras", "categories": tmp_path / "scenes.txt", "votes": 1}
        clean(trained.source.mirror, tmp_path / f"{name}.csv", cluster=address, **given)
        votes[name] = {path.name: path.read_bytes() for path in (tmp_path / f"{name}.csv.parts").glob("*.npz")}
    assert len(votes["alone"]) == 12 and votes["alone"] == votes["shared"]
    assert (tmp_path / "alone.csv").read_bytes() == (tmp_path / "shared.csv").read_bytes()


def test_local_features_are_added_to_those_that_are_there(cluster, trained, tmp_path):
    pytest.importorskip("cv2")
    mirror = open_mirror(trained.source.mirror)
    settings = recipe_with(trained, extractor="sift", verify="none", local_points=50).verification
    files = [tmp_path / f"features/{name}.npz" for name in mirror.shard_names("train")[:1]]
    ids = {path: mirror.shard_ids("train", path.stem)[:10] for path in files}
    for path, some in ids.items():
        save_features(path, Features(np.array(some), np.ones((len(some), 2), "float16")))
    made = {}
    for name, address in (("alone", ""), ("shared", cluster.address)):
        work = tmp_path / name
        work.mkdir()
        for rows in (slice(0, 3), slice(0, 10, 2)):
            wanted = [one for some in ids.values() for one in some[rows]]
            kept = kept_features(settings, work, work, mirror, "train", files, wanted, cluster=address)
            assert set(wanted) <= set(kept)
        made[name] = {path.name: path.read_bytes() for path in work.rglob("*.npz")}
    assert len(made["alone"]) == 1 and made["alone"] == made["shared"]


def test_features_while_a_node_is_killed(cluster, trained, tmp_path, monkeypatch):
    monkeypatch.setenv("TF_NUM_INTRAOP_THREADS", "1")
    alone = embedded(trained, tmp_path / "alone", "")
    lost, features = next(iter(cluster.worker_nodes)), tmp_path / "shared/features/train"

    def kill():
        while not any(features.glob("*.npz")):
            time.sleep(0.01)
        cluster.remove_node(lost, allow_graceful=False)

    killer = threading.Thread(target=kill)
    killer.start()
    shared = embedded(trained, tmp_path / "shared", cluster.address)
    killer.join()
    assert len(alone) == 12 + 1 and alone["skipped"].count(b"images_0") == 12 and alone.keys() == shared.keys()
    assert [name for name in alone if alone[name] != shared[name]] == []
