import numpy as np
import pytest
from PIL import Image

from landmarks.sample.scene import Face, Texture, box, look, plain, project, render

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
