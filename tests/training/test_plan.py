import pytest
import tiny  # noqa: F401  the backbone
from conftest import make_mirror, recipe_with

from landmarks.mirrors.folder import FolderMirror
from landmarks.training import forecast, plan, rates

GIGABYTE = 1e9
COUNTS = plan.Counts(
    {"train": 1000, "index": 200, "test": 100}, {"train": 10, "index": 2, "test": 1},
    {"train": 10 * GIGABYTE, "index": 2 * GIGABYTE, "test": GIGABYTE}, 500, 20, True,
)  # fmt: skip
FAST = plan.Machine(1e15, 1e15, 1e12, 1e15, True)


def stages(
    machine=FAST, pass_seconds=1.0, counts=COUNTS, machines=1, cached=0.0, minutes=0, trained_by=1, **settings
) -> dict[str, plan.Stage]:
    plain = {
        "backbone": "Tiny", "weights": "none", "image_size": 32, "crop": 1.0, "mirrored": False, "epochs": 2,
        "validation_shards": 0, "batch_size": 1,
    }  # fmt: skip
    recipe = recipe_with(**{**plain, **settings})
    needs = forecast.needs(
        recipe.model, recipe.training, recipe.embedding, counts.learnt, counts.classes, sum(counts.photos.values()),
        counts.shards["train"], False, machine.has_accelerator,
    )  # fmt: skip
    found = plan.network_stages(
        needs, pass_seconds, machine, counts, recipe.training, recipe.embedding, machines, list(counts.photos), cached,
        minutes, trained_by,
    )  # fmt: skip
    return {one.name: one for one in found}


def test_the_slowest_of_passes_decoding_and_download_bounds_a_stage():
    by_passes = stages()
    assert by_passes["train"].seconds == 500 * 2 * 3 and by_passes["train"].bound_by == "network's passes"
    assert by_passes["embed index"].seconds == 200
    by_network = stages(FAST._replace(received=1e6))
    assert by_network["train"].seconds == 2 * 10_000 and by_network["train"].bound_by == "download"
    by_decoding = stages(FAST._replace(decoded=0.01), scales=[1.0, 2.0])
    assert by_decoding["train"].seconds == pytest.approx(2 * 1000 / 0.01 / 2)  # half of the photos are learnt
    assert (
        by_decoding["embed test"].seconds == pytest.approx(2 * 100 / 0.01)
        and by_decoding["embed test"].bound_by == "decoding"
    )


def test_a_mirror_in_a_folder_takes_no_network():
    assert [one.network for one in stages().values()] == [20 * GIGABYTE, 0, 10 * GIGABYTE, 2 * GIGABYTE, GIGABYTE]
    local = stages(FAST._replace(received=1.0), counts=COUNTS._replace(is_remote=False))
    assert not any(one.network for one in local.values())
    assert local["embed test"].seconds == 100


def test_machines_share_shards_but_the_training_as_hosts_alone():
    alone, shared = stages(), stages(machines=4)
    assert shared["train"] == alone["train"]
    assert shared["embed train"].seconds == alone["embed train"].seconds / 4
    together = stages(machines=4, trained_by=4)["train"]
    assert together.seconds == alone["train"].seconds / 4 and together.network == alone["train"].network
    assert shared["embed index"].machines == 2 and shared["embed test"].machines == 1  # as there are shards


def test_without_an_accelerator_the_same_cores_decode():
    both = stages(FAST._replace(decoded=0.5, has_accelerator=False))["embed test"]
    assert (both.seconds, both.bound_by) == (100 + 100 / 0.5, "network's passes")


def test_what_is_cached_is_neither_downloaded_nor_decoded_again():
    assert [stages(epochs=3, cached=part)["train"].network for part in (0, 0.5, 1)] == [3e10, 2e10, 1e10]


def test_whitening_takes_time_by_its_dimensions():
    few, many = (stages(whitening="pca", scales=[1.0] * n, scale_pooling="side_by_side")["whiten"] for n in (1, 100))
    assert few.seconds > 0 and many.seconds > 100**2 * few.seconds
    assert "whiten" not in stages()


def test_what_whitening_multiplies():
    """Three folds of 800 photos of 2,000 dimensions, with five shrinkages each, and one of all 1,200."""
    cube = plan.EIGENVECTORS * 1000**3
    all_kept = 3 * (800**2 * 2000 * 2 + plan.EIGENVECTORS * 800**3 + 5 * 2000**2 * 800) + 1200**2 * 2000 * 2
    all_kept += plan.EIGENVECTORS * 1200**3 + 2000**2 * 1200
    assert plan.products_of_whitening(1200, 2000, 0) == pytest.approx(all_kept)
    few_kept = plan.products_of_whitening(1200, 2000, 500) - all_kept
    spectra = 15 * (800**2 * 2000 * 2) + 1200**2 * 2000 * 2 + cube * (15 * 0.8**3 + 1.2**3)
    assert few_kept == pytest.approx(15 * 2000**2 * 1300 + 2000**2 * 1700 + spectra)


def test_a_frozen_net_is_not_trained():
    assert not {"train", "validate"} & set(stages(loss="none", validation_shards=1))


def test_the_last_batch_of_a_mini_epoch_is_filled_up():
    assert stages(batch_size=32)["train"].seconds == pytest.approx(2 * 10 * 64 * 3)  # 50 photos a shard


def test_checkpoints_are_written_after_each_mini_epoch_or_by_the_clock():
    by_shard = stages(FAST._replace(saved=1e6))["checkpoints"].seconds
    by_clock = stages(FAST._replace(saved=1e6), minutes=10)["checkpoints"].seconds
    assert by_shard > 0 and by_clock == pytest.approx(by_shard * (500 * 2 * 3 / 600) / 20)


def test_held_out_photos_are_looked_at_after_each_mini_epoch_and_not_learnt():
    assert "validate" not in stages()
    found = stages(validation_shards=2, compare_start=False)
    assert found["train"].seconds == pytest.approx(400 * 2 * 3)
    assert found["validate"].seconds == pytest.approx(2 * 8 * 100)  # a shard is a mini-epoch
    assert stages(validation_shards=2, validation_images=30)["validate"].seconds == pytest.approx(2 * 8 * 30)


def searched(photos, dimensions=512, machines=1, **settings) -> dict[str, plan.Stage]:
    recipe = recipe_with(**settings)
    counts = COUNTS._replace(photos=dict(zip(("train", "index", "test"), photos, strict=True)))
    found = plan.search_stage(
        counts, dimensions, rates.device("cpu"), recipe.run, recipe.recognition, recipe.retrieval, machines
    )
    return {one.name: one for one in found}


def test_an_exact_search_multiplies_all_pairs():
    rate = rates.device("cpu").rates.exact.value
    found = searched((7000, 500, 30))["search"]
    assert found.seconds == pytest.approx(512 * (30 * 7000 + 30 * 500 + 500 * 7000) / rate)
    assert searched((7000, 500, 30), rerank=False)["search"].seconds == pytest.approx(512 * 30 * 7500 / rate)
    by_head = searched((7000, 500, 30), recognizer="head", beside="")["search"]
    assert by_head.seconds == pytest.approx(512 * 30 * 500 / rate)


def test_an_approximate_search_of_millions_takes_less_time_and_memory():
    photos = (10**7, 10**6, 10**5)
    exact, approximate = searched(photos), searched(photos, search="ivfpq")
    assert sum(one.seconds for one in approximate.values()) < exact["search"].seconds / 5
    assert set(approximate) == {"search: lists", "search"} and set(exact) == {"search"}
    assert searched((10, 10, 10), search="ivfpq").keys() == {"search"}  # too few to pay


def test_parts_bound_memory():
    photos = (10**7, 10**6, 10**5)
    few, many = (searched(photos, index_parts=parts)["search"].memory for parts in (1, 100))
    assert few - many == pytest.approx(0.99 * 10**7 * 512 * 4)


def test_machines_share_an_exact_search_and_have_a_part_each():
    photos = (10**7, 10**6, 10**5)
    alone, shared = (searched(photos, machines=machines)["search"] for machines in (1, 24))
    assert (shared.seconds, shared.machines) == (alone.seconds / 24, 24)
    assert alone.memory - shared.memory == pytest.approx((1 / 6 - 1 / 24) * 10**7 * 512 * 4)
    approximate = searched(photos, machines=24, search="ivfpq")
    assert {one.machines for one in approximate.values()} == {1}


def test_verification_takes_as_many_train_photos_as_there_is_room_for():
    device = rates.device("cpu")

    def verified(counts=COUNTS, **settings):
        return plan.verification_stage(counts, device, FAST, recipe_with(**settings).verification, 1)

    assert verified() == []
    features, pairs = verified(verify="none")
    assert features.seconds == 1100 / device.rates.extract.value
    assert pairs.seconds == 100 * 20 / device.rates.compare.value
    less, _ = verified(verify="none", local_gigabytes=300 * plan.FEATURES_PER_PHOTO / 1e9)
    assert less.disk == pytest.approx(300 * plan.FEATURES_PER_PHOTO)


def test_counts_are_those_of_the_mirror(tmp_path):
    mirror = make_mirror(tmp_path / "mirror", landmarks=3, train=8, index=2, test=2, others=4)
    recipe = recipe_with(min_images=2)
    found = plan.counted(FolderMirror(mirror), recipe.photos, tmp_path, False)
    assert found.photos == {"train": 24, "index": 10, "test": 10}
    assert (found.learnt, found.classes) == (24, 3)
    assert found.bytes["train"] == sum(path.stat().st_size for path in (mirror / "train").glob("*.tar"))
