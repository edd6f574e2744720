import numpy as np
import pytest

from landmarks.networks import whitening as whitenings
from landmarks.networks.whitening import Whitening, choose_shrinkage, fit

METHODS = ["pca", "lda", "learned"]


def photos(landmarks=12, each=8, dimension=20, seed=0):
    """Landmarks differ in the first four directions; photos of one differ most in the last four."""
    random = np.random.default_rng(seed)
    landmark = np.repeat(np.arange(landmarks) * 7, each)
    deviation = np.full(dimension, 0.05)
    deviation[-4:] = 2
    centres = np.zeros((landmarks, dimension))
    centres[:, :4] = random.normal(size=(landmarks, 4))
    embeddings = np.repeat(centres, each, axis=0) + random.normal(size=(len(landmark), dimension)) * deviation + 0.3
    return whitenings.unit(embeddings), landmark


def precision(embeddings, landmark):
    return np.mean(whitenings.average_precisions(embeddings, landmark))


def test_what_varies_within_a_landmark_counts_less():
    embeddings, landmark = photos()
    new, new_landmark = photos(each=5, seed=1)
    plain = precision(new, new_landmark)
    for method in ("lda", "learned"):  # found from some landmarks, these directions help with others too
        whitening = next(fit(method, embeddings, landmark, [0.1], 0))
        assert precision(whitening(new), new_landmark) > plain + 0.2
    assert precision(next(fit("pca", embeddings, landmark, [0.1], 0))(new), new_landmark) > plain


def test_within_landmarks_all_directions_vary_alike():
    embeddings, landmark = photos(landmarks=40, each=50)
    mean, projection = next(fit("learned", embeddings, landmark, [1e-9], 0))
    whitened = (embeddings - mean) @ projection
    within = np.concatenate([whitened[landmark == one] - whitened[landmark == one].mean(0) for one in set(landmark)])
    variances = np.linalg.eigvalsh(within.T @ within)
    assert variances[-1] / variances[0] < 1.01


def test_directions_in_which_landmarks_do_not_differ_count_less():
    random = np.random.default_rng(0)
    landmark = np.repeat(np.arange(4), 200)  # whose means differ in three directions
    embeddings = random.normal(size=(800, 10)) + random.normal(size=(4, 10))[landmark] * 5
    _, projection = next(fit("lda", embeddings, landmark, [0.01], 0))
    values = np.linalg.svd(projection, compute_uv=False)
    assert values[3] / values[2] == pytest.approx(whitenings.UNSEEN, rel=0.2)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("each", [2, 30])  # fewer photos than dimensions, and more
def test_the_first_dimensions_are_those_of_all(method, each):
    embeddings, landmark = photos(each=each)
    some, more = (next(fit(method, embeddings, landmark, [0.3], count)) for count in (6, 12))
    assert some.projection.shape == (20, 6) and some.projection.dtype == np.float32
    np.testing.assert_allclose(some.projection, more.projection[:, :6], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(some(embeddings), axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_fewer_photos_than_dimensions_are_as_many(method):
    """A scatter of rank n has the same root by its n x n product: zeros that are added change nothing."""
    embeddings, landmark = photos(landmarks=3, each=4)
    many = next(fit(method, np.concatenate([embeddings] * 4), np.concatenate([landmark] * 4), [0.5], 0))
    few = next(fit(method, embeddings, landmark, [0.5], 0))
    alike = many(embeddings) @ many(embeddings).T - few(embeddings) @ few(embeddings).T
    np.testing.assert_allclose(alike, 0, atol=1e-3)


def test_the_shrinkage_is_that_which_finds_most_of_held_out_photos(monkeypatch):
    monkeypatch.setattr(whitenings, "SHRINKAGES", (1e-3, 1e4))
    embeddings, landmark = photos()
    assert choose_shrinkage("lda", embeddings, landmark, 0) == 1e-3
    assert choose_shrinkage("lda", embeddings[::8], landmark[::8], 0) == 1.0  # no landmark has two photos


def test_it_comes_back_as_written_and_damage_is_noticed(tmp_path):
    whitening = Whitening(np.ones(3, np.float32), np.eye(3, 2, dtype=np.float32))
    path = tmp_path / "whitening.npz"
    whitenings.save(path, whitening, "note")
    found, note = whitenings.load(path)
    assert note == "note"
    for name in Whitening._fields:
        np.testing.assert_array_equal(getattr(found, name), getattr(whitening, name))
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ValueError, match="whole"):
        whitenings.load(path)
    np.savez(path, mean=np.ones(2, np.float32), projection=np.eye(3, dtype=np.float32), made_from="")
    with pytest.raises(ValueError, match="do not match"):
        whitenings.load(path)
