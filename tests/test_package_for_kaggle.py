import hashlib
import os
from pathlib import Path

import pytest
import scripts
import tiny  # noqa: F401
from conftest import ROOT, make_wheel
from packaging.requirements import Requirement

import package_for_kaggle
from landmarks.networks.backbones import build_backbone
from landmarks.running.command import InputError
from landmarks.running.settings import ModelSettings
from package_for_kaggle import PYTHONS, download_wheels, package, pins


@pytest.fixture
def index(tmp_path, monkeypatch) -> Path:
    """A folder of wheels, the only place that pip knows."""
    for name, value in {"NO_INDEX": "1", "FIND_LINKS": str(tmp_path / "index"), "CONFIG_FILE": os.devnull}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    return tmp_path / "index"


@pytest.mark.parametrize("python", PYTHONS)
def test_pins_are_those_of_the_lock_for_that_python(python):
    found = {line.split("==")[0]: line for line in pins((ROOT / "requirements.lock").read_text(), python)}
    assert ("tomli" in found) == (python == "3.10")  # what the markers of the lock say
    assert "colorama" not in found  # is of Windows
    for line in (ROOT / "requirements.txt").read_text().splitlines():
        one = Requirement(line)
        if one.name != "tomli":
            assert one.specifier.contains(found[one.name].split("==")[1].split()[0])
    assert all(";" not in line and line.count("--hash=sha256:") >= 1 for line in found.values())


def test_wheels_are_downloaded_for_the_python_of_the_kernel(index, tmp_path):
    wheel = make_wheel(index, "cp311-cp311-manylinux_2_28_x86_64")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    lock = f"# made by hand\nprobe==1.0 ; python_full_version >= '3.10' \\\n    --hash=sha256:{digest}\n    # via all\n"
    download_wheels(lock, "3.11", tmp_path / "wheels")
    assert [path.name for path in (tmp_path / "wheels").iterdir()] == [
        "probe-1.0-cp311-cp311-manylinux_2_28_x86_64.whl"
    ]
    for changed, python in ((lock, "3.12"), (lock.replace(digest, "0" * 64), "3.11")):  # another Python, another hash
        with pytest.raises(InputError, match="could not download"):
            download_wheels(changed, python, tmp_path / f"wheels-{python}")


def test_the_package_runs_and_has_the_weights_that_were_asked_for(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(package_for_kaggle, "download_wheels", lambda lock, python, out: make_wheel(out))
    (tmp_path / "work").mkdir()
    (tmp_path / "work/labels.csv").write_text("class,landmark_id\n")
    (tmp_path / "own.h5").write_bytes(b"123")
    out = tmp_path / "out"
    package(out, "3.12", ["Tiny", str(tmp_path / "own.h5"), str(tmp_path / "work")])
    said = capsys.readouterr().out
    assert f"{out / 'wheels'}: 1 files, " in said and f"{out / 'weights'}: 3 files, " in said and " in all\n" in said
    assert (out / "weights/own.h5").read_bytes() == b"123"
    assert (out / "weights/work/labels.csv").is_file()
    base, _ = build_backbone(ModelSettings(backbone="Tiny", weights=str(out / "weights/Tiny.weights.h5")))
    assert base.name == "tiny"
    done = scripts.run(out / "recognition.py", "--recipe=arcface", "--help")
    assert done.returncode == 0 and "--time-limit" in done.stdout, done.stderr
    assert not list(tmp_path.glob("part-*"))


def test_a_package_that_cannot_be_made_leaves_nothing(tmp_path, monkeypatch):
    def fail(*_):
        raise InputError("no network")

    monkeypatch.setattr(package_for_kaggle, "download_wheels", fail)
    with pytest.raises(InputError, match="no network"):
        package(tmp_path / "out", "3.12", [])
    with pytest.raises(InputError, match="ResNet51.*did you mean"):
        package(tmp_path / "out", "3.12", ["ResNet51"])
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InputError, match="is there already"):
        package(tmp_path, "3.12", [])
