import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, identity, jpeg, make_mirror, photos_in, read_all
from PIL import Image

import mirror as mirrors
from landmarks.mirrors import check, convert
from landmarks.mirrors.base import SPLITS
from landmarks.mirrors.folder import FolderMirror
from landmarks.running import command
from landmarks.running.command import InputError
from landmarks.running.locks import held
from landmarks.scoring import solutions


def landmark_folders(root: Path) -> Path:
    number = 0
    for name, count in {"Tower": 10, "Dome, old": 5, "Gate": 2, "Ruin": 1}.items():
        (root / name).mkdir(parents=True)
        for i in range(count):
            number += 1
            (root / name / f"{i}{('.JPG', '.jpeg', '.jpg')[min(i, 2)]}").write_bytes(jpeg(number))
    (root / "Tower/readme.txt").write_text("no photo")
    (root / "Tower/broken.jpg").write_bytes(b"broken")
    Image.fromarray(np.full((20, 30, 4), 128, np.uint8)).save(root / "Tower/transparent.png")
    return root


def test_import_makes_a_whole_mirror(tmp_path):
    folder = landmark_folders(tmp_path / "mine")
    others = tmp_path / "others"
    others.mkdir()
    for number in range(6):
        (others / f"{number}.jpg").write_bytes(jpeg(100 + number))
    out = tmp_path / "out"
    convert.import_folder(folder, out, others, seed=1)

    mirror = FolderMirror(out)
    names = mirror.categories()
    assert sorted(names.values()) == ["Dome, old", "Gate", "Ruin", "Tower"]
    train = mirror.train()
    counts = {names[i]: n for i, n in train["landmark_id"].value_counts().items()}
    assert counts == {"Tower": 7, "Dome, old": 3, "Gate": 1, "Ruin": 1}  # of 11, 5, 2 and 1 that can be read
    for split in SPLITS:
        assert set(read_all(out, split)) == set(mirror.ids(split))
    assert len(mirror.ids("train")) + len(mirror.ids("index")) + len(mirror.ids("test")) == 11 + 5 + 2 + 1 + 6
    failed = pd.read_csv(out / "failed.csv")
    assert failed["url"].tolist() == [str(folder / "Tower/readme.txt"), str(folder / "Tower/broken.jpg")]

    urls = dict(zip(train["id"], pd.read_csv(out / "metadata/train.csv")["url"], strict=True))
    for photo, data in read_all(out, "train").items():
        original = Path(urls[photo]).read_bytes()
        assert data == original if original.startswith(b"\xff\xd8") else Image.open(io.BytesIO(data)).format == "JPEG"

    recognition = solutions.read_recognition_solution(mirror.solution("recognition"))
    scored = recognition.public | recognition.private
    assert set(scored) == set(mirror.ids("test"))
    assert sum(not landmarks for landmarks in scored.values()) == 4
    of_index = pd.read_csv(out / "metadata/index_image_to_landmark.csv").groupby("landmark_id")["id"].agg(set)
    retrieval = solutions.read_retrieval_solution(mirror.solution("retrieval"))
    for photo, found in {**retrieval.public, **retrieval.private}.items():
        assert set(found) == of_index[scored[photo][0]]
    assert {photo for photo, landmarks in scored.items() if not landmarks} < retrieval.ignored
    assert check.check(str(out)) == 0


def test_import_is_deterministic_and_the_seed_matters(tmp_path):
    folder = landmark_folders(tmp_path / "mine")
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        convert.import_folder(folder, tmp_path / name, None, seed)
    tables = [(tmp_path / name / "metadata/test.csv").read_text() for name in "abc"]
    assert tables[0] == tables[1] != tables[2]


def test_import_into_a_file_is_told_before_photos_are_looked_through(tmp_path, capsys):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file is a file"):
        convert.import_folder(landmark_folders(tmp_path / "mine"), tmp_path / "file", None, 0)
    assert "looking through" not in capsys.readouterr().err


def test_import_asks_for_the_space_of_all_photos_before_it_writes_one(tmp_path, monkeypatch):
    folder, out = landmark_folders(tmp_path / "mine"), tmp_path / "out"
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(InputError, match="no space left on the disk: the photos of .*mine take .*kB, 1.00kB are free"):
        convert.import_folder(folder, out, None, 0)
    assert not list(out.glob("*/*.tar"))
    monkeypatch.undo()
    convert.import_folder(folder, out, None, 0)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=0))
    convert.import_folder(folder, out, None, 0)  # all is there


def test_import_refuses_what_it_cannot_use(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no folder of photos"):
        convert.import_folder(tmp_path / "empty", tmp_path / "out", None, 0)
    with pytest.raises(InputError, match="is no folder"):
        convert.import_folder(tmp_path / "nowhere", tmp_path / "out", None, 0)
    folder = landmark_folders(tmp_path / "mine")
    make_mirror(tmp_path / "mirror")
    with pytest.raises(InputError, match="holds shards already"):
        convert.import_folder(folder, tmp_path / "mirror", None, 0)


@pytest.mark.parametrize("web", [False, True])
def test_shrink_copies_everything_smaller(tmp_path, serve, tiny_mirror, web):
    source = serve(tiny_mirror).url if web else str(tiny_mirror)
    convert.shrink(source, tmp_path / "out", 16)
    for split in SPLITS:
        before, after = read_all(tiny_mirror, split), read_all(tmp_path / "out", split)
        assert before.keys() == after.keys()
        assert all(min(Image.open(io.BytesIO(data)).size) == 16 for data in after.values())
    for path in [*tiny_mirror.glob("metadata/*.csv"), *tiny_mirror.glob("ground_truth/*.csv")]:
        assert (tmp_path / "out" / path.relative_to(tiny_mirror)).read_bytes() == path.read_bytes()
    assert not (tmp_path / "out/download").exists()
    assert check.check(str(tmp_path / "out")) == 0


def test_shrink_skips_done_shards_and_refuses_another_size(tmp_path, tiny_mirror):
    convert.shrink(str(tiny_mirror), tmp_path / "out", 16)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*/*.tar")}
    removed = next(iter(before))
    (tmp_path / f"out/md5sum/{removed.parent.name}/md5.{removed.stem}.txt").unlink()
    convert.shrink(str(tiny_mirror), tmp_path / "out", 16)
    assert {path for path in before if path.stat().st_mtime_ns != before[path]} == {removed}
    with pytest.raises(InputError, match="side 16.*side 8"):
        convert.shrink(str(tiny_mirror), tmp_path / "out", 8)


def test_shrink_goes_on_with_a_mirror_that_has_moved_and_with_no_other(tmp_path, tiny_mirror, serve):
    server = serve(tiny_mirror)
    server.faults["/test/images_000.tar"] = [lambda h: h.send_error(501)]
    with pytest.raises(InputError, match="HTTP 501"):
        convert.shrink(server.url, tmp_path / "out", 16)
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*/*.tar")}
    other = make_mirror(tmp_path / "other", train=9)
    for wrong in (serve(other).url, str(other)):
        with pytest.raises(InputError, match="give another folder"):
            convert.shrink(wrong, tmp_path / "out", 16)
    convert.shrink(serve(tiny_mirror).url, tmp_path / "out", 16)
    assert made and made.items() <= {p: p.stat().st_mtime_ns for p in (tmp_path / "out").glob("*/*.tar")}.items()
    assert read_all(tmp_path / "out", "test").keys() == read_all(tiny_mirror, "test").keys()


def test_the_command_line(tmp_path):
    landmark_folders(tmp_path / "mine")

    def run(*arguments):
        root = ROOT
        return subprocess.run(
            [sys.executable, root / "mirror.py", *arguments], capture_output=True, text=True, cwd=tmp_path
        )

    done = run("import", "mine", "out")
    assert done.returncode == 0, done.stderr
    assert run("check", "out").returncode == 0
    wrong = run("check", "nowhere")
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)
    assert "nowhere" in wrong.stderr


def test_import_of_strange_names(tmp_path, capsys):
    folder = tmp_path / "mine"
    strange = ["Köln, Dom", 'The "Gate"', "new\nline", " space ", os.fsdecode(b"latin\xe9"), "-1", "@"]
    for number, name in enumerate(strange):
        photos_in(folder / name, 4, 10 * number)
    (folder / os.fsdecode(b"latin\xe9") / os.fsdecode(b"broken\xff\n.jpg")).write_bytes(b"")
    (folder / "-1/a table.csv").write_bytes(b"")
    (folder / "loose.jpg").write_bytes(jpeg(99))
    convert.import_folder(folder, tmp_path / "out", None, 0)
    assert check.check(str(tmp_path / "out")) == 0
    names = FolderMirror(tmp_path / "out").categories().values()
    assert sorted(names) == sorted([*strange[:2], "new\\nline", " space ", "latin\\udce9", "-1", "@"])
    failed = (tmp_path / "out/failed.csv").read_text(encoding="utf8")
    assert failed.count("\n") == 4
    assert "broken\\udcff\\n.jpg" in failed
    assert "in no landmark's folder  " in capsys.readouterr().out


@pytest.mark.parametrize("where", ["mine/none", "mine/Tower/none", "elsewhere/Tower"])
@pytest.mark.parametrize("absolute", [True, False])
def test_photos_of_no_landmark_may_lie_anywhere(tmp_path, monkeypatch, where, absolute):
    monkeypatch.chdir(tmp_path)
    photos_in(tmp_path / "mine/Tower", 6)
    photos_in(tmp_path / "mine/Gate", 6, 20)
    none = photos_in(tmp_path / where, 6, 40)
    convert.import_folder(Path("mine"), tmp_path / "out", none if absolute else Path(where), 0)
    mirror = FolderMirror(tmp_path / "out")
    assert sum(len(mirror.ids(split)) for split in SPLITS) == 18
    solution = solutions.read_recognition_solution(mirror.solution("recognition"))
    assert sum(not landmarks for landmarks in (solution.public | solution.private).values()) == 4
    assert check.check(str(tmp_path / "out")) == 0


def test_folders_that_hold_one_another_are_refused(tmp_path):
    photos_in(tmp_path / "mine/Tower", 3)
    none = photos_in(tmp_path / "none", 3)
    for out in (tmp_path / "mine", tmp_path / "mine/out", none / "out"):
        with pytest.raises(InputError, match="lies in"):
            convert.import_folder(tmp_path / "mine", out, none, 0)
    for above in (tmp_path, tmp_path / "mine"):
        with pytest.raises(InputError, match="--non-landmarks"):
            convert.import_folder(tmp_path / "mine", tmp_path.parent / "out", above, 0)
    assert not (tmp_path / "mine/out").exists()


def test_a_mirror_is_never_made_from_two_states_of_its_source(tmp_path, serve):
    folder = landmark_folders(tmp_path / "mine")
    convert.import_folder(folder, tmp_path / "out", None, 0)
    convert.import_folder(folder, tmp_path / "out", None, 0)
    (folder / "Gate/new.jpg").write_bytes(jpeg(77))
    with pytest.raises(InputError, match="was begun by.*give another folder"):
        convert.import_folder(folder, tmp_path / "out", None, 0)
    rows = [f"abc{n},http://127.0.0.1:9/x,{n % 2}" for n in range(8)]
    (tmp_path / "list.csv").write_text("\n".join(["id,url,landmark_id", *rows]))
    for split in ("train", "divide"):
        with pytest.raises(InputError, match="was begun by"):
            convert.fetch(tmp_path / "list.csv", tmp_path / "out", split, 100, 1, 0, allow_private=True)


def kaggle_tree(root: Path) -> Path:
    for split, numbers in (("train", range(8)), ("index", range(20, 25)), ("test", range(30, 34))):
        for n in numbers:
            place = root.joinpath(split, *identity(n)[:3])
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{identity(n)}.jpg").write_bytes(jpeg(n))
    (root / "train.csv").write_text("\n".join(["id,landmark_id", *(f"{identity(n)},7" for n in range(8))]))
    sample = ["id,landmarks", *(f"{identity(n)},8815 0.03" for n in range(30, 34))]
    (root / "sample_submission.csv").write_text("\n".join(sample))
    return root


def test_an_extracted_tree_is_checked_and_shrunk_to_a_whole_mirror(tmp_path, capsys):
    tree = kaggle_tree(tmp_path / "kaggle")
    assert check.check(str(tree)) == 0
    convert.shrink(str(tree), tmp_path / "out", 16)
    for split in SPLITS:
        assert sorted(FolderMirror(tmp_path / "out").ids(split)) == sorted(FolderMirror(tree).ids(split))
    assert check.check(str(tmp_path / "out")) == 0


def test_shrink_into_a_folder_in_use_downloads_nothing(tmp_path, tiny_mirror, serve):
    out = tmp_path / "out"
    with held(out), pytest.raises(InputError, match="in use by .*process"):
        convert.shrink(serve(tiny_mirror).url, out, 16)
    assert not (out / "download").exists()


def test_shrink_of_a_wrong_mirror_leaves_nothing(tmp_path, tiny_mirror):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError):
        convert.shrink(str(tmp_path / "empty"), tmp_path / "out", 16)
    assert not (tmp_path / "out").exists()


def test_shrink_names_the_members_that_it_passes_over(tmp_path):
    source = make_mirror(tmp_path / "m")
    with tarfile.open(source / "train/images_001.tar", "a") as tar:
        tar.addfile(tarfile.TarInfo("../evil\x1b.jpg"))
    convert.shrink(str(source), tmp_path / "out", 16)
    failed = pd.read_csv(tmp_path / "out/failed.csv")
    assert failed.values.tolist() == [["../evil\\x1b.jpg", "train/images_001", "not named a/b/c/ID.jpg"]]


@pytest.mark.parametrize(
    "arguments",
    [
        [], ["improt"], ["import", "mine"], ["import", "mine", "out", "--seed", "-1"], ["shrink", "mine", "out"],
        ["shrink", "mine", "out", "--size", "0"], ["shrink", "mine", "out", "--size", "9" * 5000],
        ["fetch", "x.csv", "out", "--threads", "-1"], ["fetch", "x.csv", "out"], ["import", "nowhere", "out"],
        ["fetch", ".", "out"], ["import", "mine", "file"], ["check", "mine", "--fast"], ["check", ""],
    ],
)  # fmt: skip
def test_wrong_arguments_are_one_line_and_code_2(tmp_path, monkeypatch, capsys, arguments):
    photos_in(tmp_path / "mine/Tower", 3)
    (tmp_path / "file").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["mirror.py", *arguments])
    with pytest.raises(SystemExit) as ended:
        command.run(mirrors.main)
    assert ended.value.code == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1
    assert errors[0].startswith("error: ")
    assert not (tmp_path / "out").exists()
