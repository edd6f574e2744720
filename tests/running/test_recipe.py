import json
import subprocess
import sys

import pytest
from conftest import recipe_with

import retrieval
from landmarks.mirrors.outages import PATIENCE
from landmarks.neighbours import penalty
from landmarks.running import recipe as recipes
from landmarks.running.command import InputError
from landmarks.running.command_line import FIRST, flag
from landmarks.running.recipe import SECTION_OF, load, selected


def penalty_of(recipe):
    settings = recipe.recognition
    return penalty.penalty(settings.penalty, settings.votes, settings.vote_power)


def test_the_best_small_recipe_is_the_default():
    assert load([]) == load(["--recipe", "small-ensemble"])


def test_a_head_recognises_alone_whatever_the_recipe_has_beside_it():
    assert load([]).run.beside == "small-frozen"
    assert load(["--recognizer=head"]).run.beside == load(["--blend=1"]).run.beside == ""
    with pytest.raises(InputError, match="several models have no head in common"):
        load(["--recognizer=head", "--beside=small-frozen"])


def test_a_model_beside_is_made_on_the_same_machines():
    (beside,) = load(["--cluster=auto", "--devices=2"]).beside()
    assert (beside.run.cluster, beside.run.devices) == ("auto", "2")


def test_every_shipped_recipe_is_valid():
    names = [path.stem for path in recipes.RECIPES.glob("*.toml")]
    published, small = (
        {"softmax", "triplet", "arcface", "bottleneck"},
        {"triplet", "arcface", "bottleneck", "frozen", "ensemble"},
    )
    assert set(names) == published | {f"small-{name}" for name in small} | {
        "small", "dinov2-small", "dinov3", "dinov3-arcface"
    }  # fmt: skip
    for name in names:
        assert load(["--recipe", name]).run.recipe == name


def test_the_published_softmax_recipe():
    recipe = load(["--recipe", "softmax"])
    assert recipe.photos.exclude == [138982] and recipe.model.flip and recipe.model.crop_size == 168
    assert recipe.source.mirror == "https://s3.amazonaws.com/google-landmark"


def test_the_published_triplet_recipe():
    """12 landmarks x 8 photos of 20 subspaces; the nearest photo less the mean similarity to the 5 nearest of none."""
    recipe = load(["--recipe", "triplet"])
    training = recipe.training
    assert (training.subspaces, training.classes_per_batch, training.photos_per_class) == (20, 12, 8)
    assert penalty_of(recipe)[1:] == (1, 1.0, 5, 0)
    assert not recipe.source.mirror.startswith("http")
    assert recipe.recognition.non_landmarks == "auto"  # a live challenge has no solution


def test_the_published_arcface_recipe():
    """Votes of 3 after the penalty of 5 and 10 non-landmarks (2020's winners); the best 750 re-ranked (2021's)."""
    recipe = load(["--recipe", "arcface"])
    assert penalty_of(recipe)[1:] == (3, 1.0, 10, 5)
    assert (recipe.retrieval.rerank_by, recipe.retrieval.rerank_depth, recipe.model.subcentres) == ("soft", 750, 3)
    assert recipe.recognition.non_landmarks == "auto"


def test_a_work_folder_goes_on_with_its_recipe_as_it_was(tmp_path):
    begun = load(["--work", str(tmp_path), "--recipe", "softmax"])
    old = recipe_with(begun, crop=1.0, learning_rate_steps={170: 1e-4, 330: 4e-5, 380: 2e-5})
    old.keep()
    (tmp_path / "checkpoint.keras").touch()
    assert load(["--work", str(tmp_path), "--recipe", "softmax"]) == old
    own = tmp_path / "own.toml"
    own.write_text("image_size = 128\n")
    load(["--work", str(tmp_path / "mine"), "--recipe", str(own)]).keep()
    (tmp_path / "mine/checkpoint.keras").touch()
    own.write_text("image_size = 160\n")  # a file of the user's own says what he wants now
    with pytest.raises(InputError, match="image_size = 128, now 160"):
        load(["--work", str(tmp_path / "mine"), "--recipe", str(own)])


def test_the_command_line_wins_over_the_recipe(tmp_path):
    (tmp_path / "mine.toml").write_text('backbone = "VGG16"\nimage_size = 128\n')
    recipe = load(["--recipe", str(tmp_path / "mine.toml"), "--image-size", "160", "--no-flip", "--exclude", "3,4"])
    assert (recipe.model.backbone, recipe.model.image_size, recipe.model.flip) == ("VGG16", 160, False)
    assert recipe.photos.exclude == [3, 4]
    steps = load(["--schedule=steps", "--learning-rate-steps", "5=0.1", "--learning-rate-steps", "7=0.01"])
    assert steps.training.learning_rate_steps == {5: 0.1, 7: 0.01}


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("45s", 45), ("30m", 1800), ("11h", 39600), ("11h30m", 41400), ("0.5h", 1800)]
)
def test_time_limit(text, seconds):
    assert load(["--time-limit", text]).run.time_limit == seconds
    assert load(["--patience", text]).source.patience == seconds
    assert load([]).source.patience == PATIENCE == 1800


WRONG = [
    (["--imge-size", "3"], "imge-size.*did you mean --image-size"),
    (["--image-size", "big"], "--image-size.*big"),
    (["--image-size", "8"], "--image-size.*32"),
    (["--pooling", "median"], "--pooling.*'gem'.*median"),
    (["--crop", "1.5"], "--crop.*1.5"),
    (["--learning-rate-steps", "5=0.1"], "learning_rate_steps are for --schedule steps"),
    (["--time-limit", "soon"], "--time-limit.*soon"),
    (["--patience", "inf"], "--patience.*inf"),
    (["--shards", "34:17"], r"--shards: give the smaller number first, like 0:17"),
    (["--shards", "3"], r"--shards: give two numbers, like 0:17 \(given: '3'\)"),
    (["--batch-size", "0"], "--batch-size"),
    (["--recipe", "nonesuch"], "nonesuch.*small"),
    (["--recipe", "smal-arcface"], "small-triplet, softmax, triplet nor a TOML file .did you mean small-arcface"),
    (["--learning-rate-steps", "x"], "--learning-rate-steps takes STEP=RATE, like 170=1e-4"),
    (["stray"], "stray"),
    (["--penalty", "published"], "--penalty published needs --non-landmarks"),
    (["--non-landmarks", "ids.txt"], "--non-landmarks is for --penalty"),
    (["--verify", "maybe"], "--verify.*'off', 'none' or 'lower'.*maybe"),
    (["--verify", "none", "--extractor", "savedmodel"], "savedmodel needs the folder with it: --extractor-model"),
    (["--loss", "triplet", "--recognizer", "head"], "triplets train no head: --recognizer neighbours"),
    (
        ["--loss", "triplet", "--mirror", "https://m.org/x", "--image-size", "224"],
        "python mirror.py shrink https://m.org/x OUT --size 224",
    ),
    (["--classifier", "places.onnx"], "--classifier and --categories"),
    (["--loss", "triplet", "--blend", "1"], "triplets train no head.*--blend 0"),
    (["--recognizer", "head", "--blend", "1"], "--blend and --penalty"),
    (["--recognizer", "head", "--penalty", "winners", "--non-landmarks", "ids.txt"], "--blend and --penalty"),
    (["--model-weights", "1,2,3"], "3 --model-weights for 2 models"),
    (["--store", "/mnt/x"], r"--store: give a URL of s3:// or gs:// \(given: '/mnt/x'\)"),
    (["--work", "nowhere,none", "--beside", "small-frozen"], "nowhere,none are several models already"),
    (["--seed", "4294967296"], "--seed.*less than 2147483648"),
    (["--learning-rate", "inf"], "--learning-rate.*finite.*inf"),
    (["--work", "nowhere,"], "--work nowhere,: name each folder, and once"),
    (["--mirror", ""], "--mirror: it is empty: give a URL, a folder, or sample"),
    (["--work", "nowhere,nowhere"], "--work nowhere,nowhere: name each folder, and once"),
    (["--work", "nowhere,none"], "no trained model .*nowhere/model.keras: run recognition.py --work .*nowhere first"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG)
def test_a_wrong_name_or_value_is_one_clear_line(arguments, message):
    with pytest.raises(InputError, match=message) as error:
        load(arguments)
    assert "\n" not in str(error.value)


def test_a_wrong_toml_is_named(tmp_path):
    for text, message in {
        "backbon = 'x'": "mine.toml.*backbon.*backbone",
        "a = [": "mine.toml is not TOML.*delete it and give the settings",
        "image_size = 'x'": "mine.toml: image_size: .*given: 'x'",
        "loss = 'triplet'\nblend = 1": "no head.*beside what .*mine.toml says",
        "store = 's3://bucket/run'": "mine.toml: store is for the command line, .*: --store s3://bucket/run",
    }.items():
        (tmp_path / "mine.toml").write_text(text)
        with pytest.raises(InputError, match=message):
            load(["--recipe", str(tmp_path / "mine.toml")])


def test_settings_bind_once_something_was_made_with_them(tmp_path):
    load(["--work", str(tmp_path), "--image-size", "224", "--votes", "3"]).keep()
    assert load(["--work", str(tmp_path)]).model.image_size == 256
    (tmp_path / "checkpoint.keras").touch()
    assert load(["--work", str(tmp_path)]).model.image_size == 224
    with pytest.raises(InputError, match="image_size = 224, now 256"):
        load(["--work", str(tmp_path), "--image-size", "256"])


def test_a_file_of_settings_that_was_cut_at_the_end_of_a_line_is_noticed(tmp_path):
    finished(tmp_path, "--image-size", "224")
    kept = tmp_path / "recipe.toml"
    lines = kept.read_text().splitlines(keepends=True)
    for some in (lines[:2], lines[:-1]):
        kept.write_text("".join(some))
        with pytest.raises(InputError, match=r"it has \d+ settings, and its first line says \d+; correct it"):
            load(["--work", str(tmp_path)])
    kept.write_text("".join(lines[1:5]))  # as somebody may have written it, or an earlier version
    assert load(["--work", str(tmp_path)]).model.image_size == 256


def test_an_emptied_file_of_settings_binds_nobody(tmp_path):
    finished(tmp_path, "--image-size", "224")
    (tmp_path / "recipe.toml").write_bytes(b"")
    assert load(["--work", str(tmp_path), "--image-size", "224"]).model.image_size == 224


def test_a_mirror_may_be_somewhere_else_now(tmp_path):
    finished(tmp_path, "--mirror", "https://example.org")
    assert load(["--work", str(tmp_path)]).source.mirror == "https://example.org"
    assert load(["--work", str(tmp_path), "--mirror", str(tmp_path)]).source.mirror == str(tmp_path)


def test_an_empty_work_folder_is_no_folder():
    with pytest.raises(InputError, match="--work is empty"):
        load(["--work", ""])


@pytest.mark.parametrize("alone", [["--beside="], ["--recognizer=head"]])
def test_without_the_model_beside_a_recipe_has_no_weights_of_two(tmp_path, alone):
    both = ["--recipe", "small-ensemble", "--work", str(tmp_path)]
    assert len(load(both).run.model_weights) == 2
    assert load([*both, *alone]).run.model_weights == []


@pytest.mark.parametrize("other", [["--backbone=ResNet50"], ["--weights=net.onnx"], ["--weights=folder"]])
def test_inner_layers_of_a_recipe_are_its_own_backbones(tmp_path, monkeypatch, other):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    frozen = ["--recipe", "small-frozen", "--work", str(tmp_path / "work")]
    kept = load(frozen).embedding.inner_layers
    assert len(kept) > 1
    for same in ([], ["--backbone=EfficientNetLite0"], ["--weights=none"], ["--weights=net.keras"]):
        assert load([*frozen, *same]).embedding.inner_layers == kept
    assert load([*frozen, *other]).embedding.inner_layers == []
    assert load([*frozen, *other, "--inner-layers=one,two"]).embedding.inner_layers == ["one", "two"]


def test_the_work_folder_remembers_its_settings(tmp_path):
    begun = load(["--work", str(tmp_path), "--image-size", "224", "--time-limit", "1h", "--recipe", "softmax"])
    begun.keep()
    (tmp_path / "checkpoint.keras").touch()
    again = load(["--work", str(tmp_path)])
    assert again == recipe_with(begun, time_limit=0)
    assert load(["--work", str(tmp_path), "--no-rerank", "--ahead", "3"]).retrieval.rerank is False
    free = load(["--work", str(tmp_path), "--verify", "none", "--extractor", "sift", "--local-size", "640"])
    assert free.verification.inliers == 35
    with pytest.raises(InputError, match="backbone = ResNet50, now VGG16.*another --work"):
        load(["--work", str(tmp_path), "--backbone", "VGG16"])
    with pytest.raises(InputError, match="image_size = 224, now 256"):
        load(["--work", str(tmp_path), "--recipe", "small"])


def finished(folder, *arguments):
    """A work folder as training leaves it."""
    load(["--work", str(folder), "--beside=", *arguments]).keep()
    for name in ("model.keras", "labels.csv"):
        (folder / name).touch()


def test_labels_that_are_gone_are_told_from_a_model_that_is_not_trained(tmp_path):
    with pytest.raises(InputError, match="no trained model .*/model.keras: run recognition.py"):
        recipes.of(tmp_path)
    finished(tmp_path)
    (tmp_path / "labels.csv").unlink()
    with pytest.raises(InputError, match="labels.csv is gone; bring back a copy, or delete model.keras"):
        recipes.of(tmp_path)


def test_several_models(tmp_path):
    folders = [tmp_path / name for name in ("A", "B")]
    finished(folders[0], "--image-size", "64", "--votes", "3")
    finished(folders[1], "--image-size", "96", "--votes", "5", "--seed", "0")
    both = ["--work", f"{folders[0]},{folders[1]}"]
    recipe = load([*both, "--model-weights", "1,0.5"])
    assert (recipe.run.work, recipe.run.models, recipe.run.folders) == (tmp_path / "A+B", folders, folders)
    assert (recipe.model.image_size, recipe.recognition.votes, recipe.run.model_weights) == (64, 3, [1, 0.5])
    assert [(recipes.of(folder).run.work, recipes.of(folder).model.image_size) for folder in folders] == [
        (folders[0], 64),
        (folders[1], 96),
    ]

    recipe.keep()
    (tmp_path / "A+B/features").mkdir()
    assert load(["--work", str(tmp_path / "A+B")]) == load(both) == recipe
    assert load([*both, "--model-weights", "2,1", "--votes", "1"]).run.model_weights == [2, 1]
    for wrong, message in {
        "--recognizer=head": "no head in common: --recognizer neighbours or centres",
        "--blend=1": "no head in common.*--blend 0",
        "--model-weights=1,2,3": "3 --model-weights for 2 models",
        "--model-weights=1,0": "greater than 0",
        "--image-size=96": "image_size = 64, now 96",
    }.items():
        with pytest.raises(InputError, match=message):
            load([*both, wrong])


def test_a_model_beside_goes_on_as_it_was_begun(tmp_path):
    mine = tmp_path / "mine.toml"
    mine.write_text("image_size = 64\nmin_images = 7\n")
    given = ["--work", str(tmp_path / "work"), f"--beside={mine}", "--seed=3", "--min-images=5"]
    given.append("--checkpoint-minutes=9")
    (beside,) = load(given).beside()
    assert (beside.model.image_size, beside.photos.min_images, beside.training.seed) == (64, 5, 3)
    assert beside.run.checkpoint_minutes == 9
    finished(tmp_path / "work", *given[2:])
    with pytest.raises(InputError, match=f"work/beside/.*run recognition.py --work {tmp_path}/work --beside RECIPE"):
        recipes.of(tmp_path / "work/beside")
    beside.keep()
    (tmp_path / "work/beside/checkpoint.keras").touch()
    mine.unlink()  # or the work folder was copied to another machine
    assert load(["--work", str(tmp_path / "work")]).beside() == [beside]
    with pytest.raises(InputError, match="beside was begun with the recipe .*mine.toml, not small-frozen"):
        load(["--work", str(tmp_path / "work"), "--beside=small-frozen"]).beside()


def test_a_model_that_is_not_finished_is_named(tmp_path):
    finished(tmp_path / "A")
    load(["--work", str(tmp_path / "B")]).keep()
    for both in ("A,B", "B,A"):
        with pytest.raises(InputError, match=f"no trained model {tmp_path}/B/model.keras: run recognition.py"):
            load(["--work", ",".join(f"{tmp_path}/{name}" for name in both.split(","))])
    assert not list(tmp_path.glob("*+*"))


def test_a_folder_is_remembered_by_its_full_path(tmp_path, monkeypatch):
    (tmp_path / "mirror").mkdir()
    monkeypatch.chdir(tmp_path)
    assert load(["--mirror", "mirror"]).source.mirror == str(tmp_path / "mirror")


def test_the_crop_follows_the_image_size():
    assert load([]).model.crop_size == 192
    assert load(["--image-size", "64"]).model.crop_size == 48
    assert load(["--crop", "1"]).model.crop_size == 0


def test_a_narrow_terminal_is_no_error(monkeypatch):
    monkeypatch.setenv("COLUMNS", "3")
    assert load([]).run.recipe == "small-ensemble"


def test_selected():
    names = [f"images_{number:03d}" for number in range(5)]
    assert selected(names, "") == names
    assert selected(names, "1:3") == names[1:3]
    assert selected(names, "3:17") == names[3:]


def help_of(*arguments):
    command = [sys.executable, "-X", "importtime", *arguments]
    done = subprocess.run(command, cwd=recipes.RECIPES.parent, capture_output=True, text=True)
    assert done.returncode == 0
    assert " tensorflow" not in done.stderr
    assert " keras" not in done.stderr
    return done.stdout


def explained_in(text):
    return {line.split()[0].rstrip(",") for line in text.splitlines() if line.startswith("  --")}


def test_help_explains_ten_settings_and_names_the_others():
    short, whole = help_of("recognition.py", "--help"), help_of("recognition.py", "--help", "all")
    explained = explained_in(short.partition("\nrun:")[0])
    assert len(explained) == 10 and explained == set(map(flag, FIRST))
    assert explained_in(whole) == set(map(flag, SECTION_OF))
    for name in SECTION_OF:
        assert flag(name) in short
    assert "--work FOLDER" in short and "--learning-rate-steps STEP=RATE" in whole
    for typed in ("Path", " str", "list[", "dict[", "(default: )"):
        assert typed not in whole
    assert load([]).training.epochs == 12 and "(default: 12)" in short  # of the recipe, not of the setting


def test_help_of_retrieval_is_of_what_it_uses():
    assert explained_in(help_of("retrieval.py", "--help", "all")) == set(
        map(flag, SECTION_OF.keys() - retrieval.UNUSED)
    )


def test_defaults_are_of_the_type_that_a_file_gives_back(tmp_path):
    """Digests of settings tell 0 from 0.0."""
    recipe = load([f"--work={tmp_path}"])
    for section in (
        recipe.run,
        recipe.source,
        recipe.training,
        recipe.embedding,
        recipe.recognition,
        recipe.verification,
    ):
        fresh = type(section)()
        again = type(section)(**json.loads(fresh.model_dump_json()))
        assert repr(fresh.model_dump()) == repr(again.model_dump())


def test_a_name_that_toml_cannot_hold_is_one_clear_line(tmp_path):
    load(["--work", str(tmp_path / "caf\udce9"), "--mirror", "sample"]).keep()
    with pytest.raises(InputError, match="udce9' is no UTF-8.*another name"):
        load(["--work", str(tmp_path / "work"), "--mirror", "caf\udce9"]).keep()
    assert not (tmp_path / "work/recipe.toml").exists()
