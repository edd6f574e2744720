"""The sample's pictures obey geometry and light, and its mirror is whole, repeatable and divided as promised."""

import io
from contextlib import closing
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from landmarks.mirrors import open
from landmarks.mirrors.shards import TarShard
from landmarks.sample import photos as sample
from landmarks.sample.scene import Face, Texture, corners, look, plain, project, render

GROUND = Face(np.array([-500.0, -500, 0]), np.array([1000.0, 0, 0]), np.array([0, 1000.0, 0]), plain([120, 120, 120]))


NOON = np.array([0, 0, 1.0])


CAMERAS = [
    look(np.array([-9.0, -14, 2]), np.array([0, 0, 4.0]), 260, (320, 240), roll=0.1),
    look(np.array([4.0, -19, 7]), np.array([1.0, 0, 3]), 350, (240, 320), roll=-0.05),
]


def picture(faces: list[Face], camera, sun=NOON, ambient=1.0, samples=1.5) -> np.ndarray:
    return render(GROUND, faces, camera, sun, ambient, samples)[0]


def wall(texture: Texture, y: float = 0.0, **shape) -> Face:
    return Face(np.array([-3.0, y, 1]), np.array([6.0, 0, 0]), np.array([0, 0, 5.0]), texture, **shape)


def test_four_projected_corners_give_the_homography_between_two_views():
    noise = np.random.default_rng(0).integers(0, 256, (10, 12, 3), dtype=np.uint8)
    face = wall(Texture(Image.fromarray(noise).resize((240, 200), Image.Resampling.NEAREST)))
    one, two = (Image.fromarray(picture([face], camera)[..., :3].astype(np.uint8)) for camera in CAMERAS)
    (source, _), (target, _) = (project(corners([face])[0], camera) for camera in CAMERAS)
    rows, values = [], []
    for (x, y), (u, v) in zip(target, source, strict=True):  # Pillow asks for where each pixel comes from
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        values += [u, v]
    warp = np.linalg.solve(rows, values).tolist()
    warped = one.transform(two.size, Image.Transform.PERSPECTIVE, warp, Image.Resampling.BILINEAR)
    middle = np.clip(np.round([target.min(axis=0), target.max(axis=0)]), 0, two.size).astype(int)
    inner = np.s_[middle[0, 1] + 12 : middle[1, 1] - 12, middle[0, 0] + 12 : middle[1, 0] - 12]
    a, b = (np.asarray(image, float)[inner] for image in (warped, two))
    assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.95


@pytest.mark.parametrize("landmark", range(4))
def test_a_landmark_fills_part_of_every_view(landmark):
    points = corners(sample.landmark_building(5, landmark)).reshape(-1, 3)
    cameras = [sample.landmark_view(5, landmark, view)[1] for view in range(4)]
    for camera in cameras:
        seen, depths = project(points, camera)
        assert depths.min() > 0
        low, high = np.clip(seen.min(axis=0), 0, camera.size), np.clip(seen.max(axis=0), 0, camera.size)
        assert np.prod(high - low) > 0.05 * np.prod(camera.size)
    bearings = [np.degrees(np.arctan2(camera.centre[0], -camera.centre[1])) for camera in cameras]
    assert np.abs(bearings).max() <= 75 and np.ptp(bearings) > 5


def test_the_members_of_a_family_share_colours_and_differ_in_structure():
    members = [sample.landmark_building(1, landmark) for landmark in range(8)]
    trims = [{tuple(face.texture.texels) for face in faces if len(face.texture.texels) == 1} for faces in members]
    assert all(trims[0] & trims[landmark] for landmark in range(1, 4))
    assert not trims[0] & trims[4]
    tall = [corners(faces)[..., 2].max() / np.ptp(corners(faces)[..., 0]) for faces in members[:4]]
    assert len({len(faces) for faces in members[:4]}) > 1 and np.ptp(tall) > 0.1


make_small_sample = partial(open.make_sample, landmarks=3, views=(5, 7), others=6)


@pytest.fixture(scope="module")
def mirror(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("sample") / "tiny"
    make_small_sample(out, seed=3)
    return out


def photos(mirror: Path) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for path in mirror.glob("*/images_*.tar"):
        with closing(TarShard(path)) as shard:
            found |= {identity: shard.read(identity) for identity in shard.ids}
    return found


def test_the_photos_are_jpegs_of_320_pixels(mirror):
    found = photos(mirror)
    assert 3 * 5 + 6 <= len(found) <= 3 * 7 + 6
    assert len(set(found.values())) == len(found)
    for data in found.values():
        image = Image.open(io.BytesIO(data))
        image.load()
        assert (image.format, image.mode, max(image.size)) == ("JPEG", "RGB", 320)
        assert np.asarray(image).std() > 4


def test_the_same_seed_gives_the_same_bytes_whatever_the_process(mirror):
    found, train = photos(mirror), pd.read_csv(mirror / "metadata/train.csv")
    for identity, url in train[["id", "url"]].to_numpy()[::-3]:
        assert found[identity] == sample.photo(url)
        assert found[identity] != sample.photo(url.replace("sample:3/", "sample:4/"))
