"""The notebooks are those of their scripts, and run from top to bottom without network: the Kaggle ones as there."""

import shutil
import sys
import venv
from pathlib import Path

import kernels
import pandas as pd
import pytest
import tiny
from conftest import ROOT, extract, make_mirror, make_wheel

import package_for_kaggle

FOLDER = ROOT / "notebooks"
RECOGNITION, RETRIEVAL = "landmark-recognition-2021", "landmark-retrieval-2021"
jupytext = pytest.importorskip("jupytext", reason="pip install -r requirements-notebooks.txt")


def test_each_script_is_a_notebook():
    names = sorted(path.stem for path in FOLDER.glob("*.py"))
    assert names == sorted(path.stem for path in FOLDER.glob("*.ipynb"))
    for name in names:
        ours, made = (
            [(cell.cell_type, cell.source, cell.metadata.get("tags")) for cell in jupytext.read(path).cells]
            for path in (FOLDER / f"{name}.ipynb", FOLDER / f"{name}.py")
        )
        assert ours == made, f"run `jupytext --to ipynb --update notebooks/{name}.py`"


def test_the_tutorial_runs(tmp_path):
    parameters = f"WORK = Path({str(tmp_path)!r})\nLANDMARKS, VIEWS, OTHERS, SIZE = 4, (6, 7), 8, 32"
    said = kernels.execute(FOLDER / "tutorial.ipynb", tmp_path / "out.ipynb", parameters, FOLDER)
    assert "map@100" in said and "gap" in said
    outputs = [one for cell in jupytext.read(tmp_path / "out.ipynb").cells for one in cell.get("outputs", [])]
    assert sum(bool({"image/png", "image/jpeg"} & set(one.get("data", {}))) for one in outputs) == 10


def as_competition(mirror: Path, out: Path) -> list[str]:
    """A mirror as a competition's input folder has it; its test ids."""
    for tar in mirror.glob("*/*.tar"):
        extract(tar, out / tar.parent.name)
    shutil.copy(mirror / "metadata/train.csv", out)
    ids = pd.read_csv(mirror / "metadata/test.csv")["id"].tolist()
    pd.DataFrame({"id": ids, "landmarks": "10 0.5"}).to_csv(out / "sample_submission.csv", index=False)
    return sorted(ids)


class Kaggle:
    """A place with an input folder, and an image whose Python lacks one package."""

    def __init__(self, folder: Path):
        self.folder, self.input = folder, folder / "input"
        venv.create(folder / "image")
        self.packages = next((folder / "image").glob("lib/python*/site-packages"))
        (self.packages / "image.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
        package = self.input / "landmarks-package"
        package_for_kaggle.copy_scripts(package)
        make_wheel(package / "wheels")
        with open(package / "requirements.txt", "a") as file:
            file.write("probe\n")

    def run(self, name: str, kernel: str, parameters: str, **environment: str) -> str:
        """What a notebook printed in a kernel of that name, whose output is in `folder / kernel`."""
        working = self.folder / kernel
        working.mkdir()
        return kernels.execute(
            FOLDER / f"{name}.ipynb", self.folder / f"{kernel}.ipynb",
            f"INPUT = Path({str(self.input)!r})\nWORKING = Path({str(working)!r})\n{parameters}",
            working, str(self.folder / "image/bin/python"), **environment,
        )  # fmt: skip

    def attach(self, kernel: str, before: str = "") -> None:
        """The output of a kernel becomes an input, as Kaggle mounts it; that of the one before is removed."""
        (self.input / "notebooks/someone").mkdir(parents=True, exist_ok=True)
        if before:
            shutil.rmtree(self.input / "notebooks/someone" / before)
        shutil.copytree(self.folder / kernel, self.input / "notebooks/someone" / kernel)

    def submitted(self, kernel: str) -> list[str]:
        return pd.read_csv(self.folder / kernel / "submission.csv")["id"].tolist()


def test_the_kaggle_notebooks_go_on_from_kernel_to_kernel_and_answer_on_hidden_data(tmp_path):
    kaggle = Kaggle(tmp_path)
    tiny.Tiny(False, None, (32, 32, 3)).save(tmp_path / "tiny.keras")
    settings = f"--recipe small-frozen --backbone {tmp_path}/tiny.keras --inner-layers conv --scales 1 --image-size 32"
    small = f'SETTINGS = "{settings} --crop 1"'
    public = make_mirror(tmp_path / "public")
    ids = as_competition(public, kaggle.input / RECOGNITION)

    said = kaggle.run("kaggle_recognition", "first", f'{small}\nTIME_LIMIT = "1s"')
    assert "this is the first one" in said and said.rstrip().endswith("and run that.")
    assert (kaggle.packages / "probe.py").exists()  # the wheel that was lacking, and nothing else
    assert [path.name for path in kaggle.packages.glob("*.dist-info")] == ["probe-1.0.dist-info"]
    assert not (tmp_path / "first/submission.csv").exists()

    kaggle.attach("first")
    said = kaggle.run("kaggle_recognition", "second", small)
    assert "submission.csv is a whole recognition submission" in said
    assert sorted(kaggle.submitted("second")) == ids

    kaggle.attach("second", before="first")
    said = kaggle.run("kaggle_recognition", "saved", f"{small}\nSHORT_CUT = True")
    assert "the run on hidden data answers" in said and not (tmp_path / "saved/work").exists()
    assert "10 0.5" in (tmp_path / "saved/submission.csv").read_text()

    as_competition(public, kaggle.input / RETRIEVAL)
    assert "is a whole retrieval submission" in kaggle.run("kaggle_retrieval", "retrieval", "")
    assert sorted(kaggle.submitted("retrieval")) == ids

    shutil.rmtree(kaggle.input / RECOGNITION)
    hidden = as_competition(make_mirror(tmp_path / "hidden", 2, train=6, test=5), kaggle.input / RECOGNITION)
    said = kaggle.run("kaggle_recognition", "submitted", f"{small}\nSHORT_CUT = True", KAGGLE_IS_COMPETITION_RERUN="1")
    assert "is a whole recognition submission" in said and "train: 1 of 1 shards embedded, 1 of them now" in said
    assert sorted(kaggle.submitted("submitted")) == hidden != ids
