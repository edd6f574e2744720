from conftest import jpeg

from landmarks.local_features.points import decode


def test_a_photo_keeps_its_aspect_ratio():
    assert decode(jpeg(1, (400, 100)), 200).shape == (50, 200, 3)
    assert decode(jpeg(1, (40, 30)), 200).shape == (30, 40, 3)
