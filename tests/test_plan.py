"""The command: the public mirror without network, any other by its own counts, and what it says of wrong input."""

import re

import pytest
import scripts
from conftest import ROOT, make_mirror

TINY = ["--backbone=Tiny", "--weights=none", "--image-size=32", "--batch-size=8", "--beside="]


def plan(*arguments):
    return scripts.run(ROOT / "plan.py", *arguments)


def test_the_public_mirror_is_known(monkeypatch):
    done = plan("--recipe=arcface", "--machines=8", "--device=h100", *TINY)
    assert done.returncode == 0, done.stderr
    assert "4,132,914 train, 761,757 index, 117,577 test photos; 1,580,470 are learnt from" in done.stdout
    assert re.search(r"^embed train .* 8 +500GB", done.stdout, re.MULTILINE), done.stdout
    assert re.search(
        r"^Tiny at 32 px: .* \((measured|estimated), \d{4}-\d\d-\d\d, as ResNet50: ", done.stdout, re.MULTILINE
    )


@pytest.mark.parametrize("device", ["here", "cpu"])
def test_any_other_mirror_is_counted(tmp_path, device):
    done = plan(f"--mirror={make_mirror(tmp_path / 'mirror')}", f"--device={device}", *TINY)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"small-ensemble on 1 x {device}: ")
    assert "24 train, 10 index, 10 test photos; 24 are learnt from, of 3 landmarks" in done.stdout
    assert re.search(r"^all .* (seconds|minutes)", done.stdout, re.MULTILINE)


def test_wrong_input_is_said_in_a_line():
    for arguments in (["--device=h10"], ["--machines=0"], ["--mirror=/nowhere"], ["--recipe=arkface"], ["--machine=2"]):
        done = plan(*arguments)
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, (arguments, done.stderr)
