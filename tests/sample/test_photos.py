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
from landmarks.running import command
from landmarks.sample import photos as sample
from landmarks.sample.scene import Face, Texture, box, corners, look, plain, project, render

GROUND = Face(np.array([-500.0, -500, 0]), np.array([1000.0, 0, 0]), np.array([0, 1000.0, 0]), plain([120, 120, 120]))
NOON = np.array([0, 0, 1.0])
CAMERAS = [
    look(np.array([-9.0, -14, 2]), np.array([0, 0, 4.0]), 260, (320, 240), roll=0.1),
    look(np.array([4.0, -19, 7]), np.array([1.0, 0, 3]), 350, (240, 320), roll=-0.05),
]
RED, BLUE = [200, 20, 20], [20, 20, 200]


def picture(faces: list[Face], camera, sun=NOON, ambient=1.0, samples=1.5) -> np.ndarray:
    return render(GROUND, faces, camera, sun, ambient, samples)[0]


def wall(texture: Texture, y: float = 0.0, **shape) -> Face:
    return Face(np.array([-3.0, y, 1]), np.array([6.0, 0, 0]), np.array([0, 0, 5.0]), texture, **shape)


def quadrants() -> Texture:
    image = np.zeros((64, 64, 3), np.uint8)
    image[:32, 32:], image[32:, :32], image[32:, 32:] = (250, 0, 0), (0, 250, 0), (0, 0, 250)
    return Texture(Image.fromarray(image))


@pytest.mark.parametrize("camera", CAMERAS)
@pytest.mark.parametrize("place", [(0.0, 0, 4), (-2.0, 1, 2), (2.5, -3, 5)])
def test_a_point_is_drawn_where_project_says(camera, place):
    side = 0.5
    low = np.array(place) - [side / 2, 0, side / 2]
    face = Face(low, np.array([side, 0, 0]), np.array([0, 0, side]), plain(RED))
    pixels = picture([face], camera, samples=6)
    weight = np.clip(pixels[..., 0] - pixels[..., 1], 0, None)
    rows, columns = np.indices(weight.shape) + 0.5
    centroid = (columns * weight).sum() / weight.sum(), (rows * weight).sum() / weight.sum()
    expected, depth = project(np.array([place]), camera)
    assert np.allclose(centroid, expected[0], atol=0.1)
    assert depth[0] == pytest.approx((np.array(place) - camera.centre) @ camera.rotation[2])


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


def test_a_texture_is_upright_and_not_mirrored():
    pixels = picture([wall(quadrants())], CAMERAS[0])
    for (x, z), colour in {(1.5, 4.75): [250, 0, 0], (-1.5, 2.25): [0, 250, 0], (1.5, 2.25): [0, 0, 250]}.items():
        (column, row), *_ = project(np.array([[x, 0, z]]), CAMERAS[0])[0].astype(int)
        assert np.allclose(pixels[row, column, :3], colour, atol=2)


@pytest.mark.parametrize("reverse", [False, True])
def test_the_nearer_face_hides_the_farther_and_backs_are_not_seen(reverse):
    near, far, back = wall(plain(RED), y=-2), wall(plain(BLUE), y=2), wall(plain([0, 250, 0]), y=-4)
    back = back._replace(origin=back.origin + back.right, right=-back.right)
    faces = [near, far, back]
    pixels = picture(faces[::-1] if reverse else faces, CAMERAS[0])
    (column, row), *_ = project(np.array([[0, -2, 3.5]]), CAMERAS[0])[0].astype(int)
    assert np.allclose(pixels[row, column, :3], RED)
    assert not (pixels[..., 1] > 240).any()
    assert (pixels[..., 2] > 150).any()


def test_a_full_taper_is_a_triangle_and_holes_are_seen_through():
    full, triangle = ((picture([wall(plain(RED), taper=t)], CAMERAS[0])[..., 0] > 160).sum() for t in (0.0, 1.0))
    assert triangle == pytest.approx(full / 2, rel=0.12)  # nearly: perspective
    cut = np.full((8, 8, 4), 255, np.uint8)
    cut[:, :4, 3] = 0
    open_wall = wall(Texture(Image.fromarray(cut)))
    pixels = picture([open_wall, wall(plain(BLUE), y=3)], CAMERAS[1])
    columns = project(np.array([[-1.5, 0, 3], [1.5, 0, 3]]), CAMERAS[1])[0].astype(int)
    assert np.allclose(pixels[columns[0, 1], columns[0, 0], :3], BLUE)
    assert np.allclose(pixels[columns[1, 1], columns[1, 0], :3], 255)


def test_the_sun_lights_faces_by_their_angle_and_casts_shadows():
    sun, ambient = np.array([-0.6, 0.0, 0.8]), 0.5
    grey = plain([200, 200, 200])
    pixels = picture(box((-2, -2, 0), (4, 4, 4), grey, grey, grey), CAMERAS[1], sun, ambient)

    def brightness(*point):
        (column, row), *_ = project(np.array([point], float), CAMERAS[1])[0].astype(int)
        return pixels[row, column, 0]

    assert brightness(0, -2, 2) == pytest.approx(200 * 0.5)  # the sun does not reach the front
    assert brightness(0, 0, 4) == pytest.approx(200 * (0.5 + 0.5 * 0.8))
    # The edge at height 4 throws its shadow 4 * 0.6 / 0.8 = 3 m to the right of x = 2.
    assert brightness(5.4, -1, 0) == pytest.approx(120 * 0.9)
    assert brightness(4.6, -1, 0) == pytest.approx(120 * 0.9 * 0.5)


def test_ground_under_the_camera_and_sky():
    pixels, inverse_depth = render(GROUND, [wall(plain(RED))], CAMERAS[1], NOON, 1.0)
    assert np.allclose(pixels[-1, 120], [120, 120, 120, 255])
    level = look(np.array([0, -9.0, 2]), np.array([0, 0, 2.0]), 300, (320, 240))
    pixels, inverse_depth = render(GROUND, [wall(plain(RED))], level, NOON, 1.0)
    assert not pixels[:10, :10].any() and not inverse_depth[:10, :10].any()
    assert inverse_depth[120, 160] == pytest.approx(1 / 9, rel=1e-3)


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


def test_two_runs_write_the_same_files(mirror, tmp_path):
    make_small_sample(tmp_path / "again", seed=3)
    files = {path.relative_to(mirror): path.read_bytes() for path in mirror.rglob("*") if path.is_file()}
    again = tmp_path / "again"
    assert files == {path.relative_to(again): path.read_bytes() for path in again.rglob("*") if path.is_file()}
    assert [path.name for path in tmp_path.iterdir()] == ["again"]


def blank(urls):
    data = io.BytesIO()
    Image.new("RGB", (8, 8)).save(data, "JPEG")
    return dict.fromkeys(urls, data.getvalue())


def test_the_default_counts_and_splits(tmp_path, monkeypatch):
    monkeypatch.setattr(sample, "render", blank)
    open.make_sample(tmp_path / "out")
    metadata, truth = tmp_path / "out/metadata", tmp_path / "out/ground_truth"
    train = pd.read_csv(metadata / "train.csv")
    index = pd.read_csv(metadata / "index.csv").merge(
        pd.read_csv(metadata / "index_image_to_landmark.csv"), on="id", how="left"
    )
    test = pd.read_csv(truth / "recognition_solution_v2.1.csv")
    assert len(set(train["id"]) | set(index["id"]) | set(test["id"])) == len(train) + len(index) + len(test)
    assert train["id"].str.fullmatch("[0-9a-f]{16}").all()
    counts = pd.DataFrame(
        {name: split.value_counts() for name, split in
         {"train": train["landmark_id"], "index": index["landmark_id"], "test": test["landmarks"]}.items()}
    )  # fmt: skip
    assert len(counts) == 24 and counts.notna().all(axis=None)
    assert counts.sum(axis=1).between(20, 30).all() and counts.sum(axis=1).nunique() > 4
    shares = counts.div(counts.sum(axis=1), axis=0)
    assert shares[["index", "test"]].sub(0.2).abs().le(0.03).all(axis=None) and counts["test"].ge(3).all()
    assert (index["landmark_id"].isna().sum(), test["landmarks"].isna().sum()) == (50, 100)
    categories = pd.read_csv(metadata / "train_label_to_category.csv")
    assert set(categories["landmark_id"]) == set(train["landmark_id"]) and categories["category"].is_unique


def test_another_seed_gives_other_ids(tmp_path, monkeypatch):
    monkeypatch.setattr(sample, "render", blank)
    for seed in (0, 1):
        open.make_sample(tmp_path / str(seed), seed)
    one, two = (pd.read_csv(tmp_path / seed / "metadata/train.csv") for seed in "01")
    assert not set(one["id"]) & set(two["id"]) and set(one["landmark_id"]) != set(two["landmark_id"])


def test_a_folder_that_exists_or_a_negative_seed_is_refused(tmp_path):
    with pytest.raises(command.InputError, match="is there already"):
        make_small_sample(tmp_path)
    with pytest.raises(command.InputError, match="-1"):
        open.make_sample(tmp_path / "out", seed=-1)
    assert not any(tmp_path.iterdir())


def test_a_stop_leaves_no_mirror_behind(tmp_path):
    command.stop_event.set()
    with pytest.raises(command.Stopped):
        make_small_sample(tmp_path / "out")
    assert not any(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_to_is_known_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr(sample, "render", lambda _: pytest.fail("rendered in vain"))
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        open.make_sample(tmp_path / "file" / "out")
