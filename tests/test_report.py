"""The command: one run or several, where the page goes, and what it says of wrong input."""

import scripts
from conftest import ROOT, make_mirror, recipe_with
from finished import finish


def report(*arguments):
    return scripts.run(ROOT / "report.py", *arguments)


def test_a_page_of_a_run_and_of_several(tmp_path):
    mirror = make_mirror(tmp_path / "mirror")
    works = [finish(recipe_with(work=tmp_path / name, mirror=str(mirror))) for name in "ab"]
    done = report(works[0])
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{works[0]}/report.html: ") and (works[0] / "report.html").exists()
    done = report(*works, f"--out={tmp_path}/both.html")
    assert done.returncode == 0, done.stderr
    assert "Runs side by side" in (tmp_path / "both.html").read_text() and not (works[1] / "report.html").exists()


def test_a_mirror_and_solutions_that_have_moved_are_given(tmp_path):
    mirror = make_mirror(tmp_path / "mirror")
    work = finish(recipe_with(work=tmp_path / "work", mirror=str(mirror)))
    moved, truth = mirror.rename(tmp_path / "moved"), (tmp_path / "moved/ground_truth").rename(tmp_path / "truth")
    assert report(work).returncode == 0
    assert "Precision against rank" not in (work / "report.html").read_text()
    done = report(work, f"--mirror={moved}", "--solutions", *truth.glob("*.csv"))
    page = (work / "report.html").read_text()
    assert done.returncode == 0 and "Precision against rank" in page and "data:image/jpeg" in page


def test_what_is_no_run_is_said_in_a_line(tmp_path):
    done = report(tmp_path / "absent")
    assert (
        done.returncode == 2
        and done.stderr == f"error: {tmp_path}/absent is no work folder of a run: there is no recipe.toml in it\n"
    )
    (tmp_path / "list.csv").write_text("id\n")
    done = report(tmp_path, "--solutions", tmp_path / "list.csv")
    assert done.returncode == 2 and "it is no solution of recognition or retrieval" in done.stderr
