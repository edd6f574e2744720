"""The container files take what is there: the lock files, with hashes, and all that the scripts need."""

import json
import re
from fnmatch import fnmatch

import pytest
from conftest import ROOT
from test_requirements import PYTHONS, lines, unmet

from package_for_kaggle import SCRIPTS

FILES = {"Containerfile": "requirements.lock", "Containerfile.cuda": "requirements-cuda.lock"}


def instructions(name: str) -> list[tuple[str, str]]:
    """The instructions of a container file and what follows each, continued lines joined, without comments."""
    text = (ROOT / name).read_text().replace("\\\n", " ")
    rows = [line.partition(" ") for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(word, rest.strip()) for word, _, rest in rows]


def copied(name: str) -> list[str]:
    return [source for word, rest in instructions(name) if word == "COPY" for source in rest.split()[:-1]]


@pytest.mark.parametrize("name", FILES)
def test_what_is_copied_is_there_and_enough(name):
    for source in copied(name):
        assert list(ROOT.glob(source)), source
    for path in (path for pattern in (*SCRIPTS, "templates/*", "landmarks/report/*") for path in ROOT.glob(pattern)):
        place = path.relative_to(ROOT).as_posix()
        if path.is_file():
            assert any(fnmatch(place, source) or place.startswith(f"{source}/") for source in copied(name)), place


def test_what_is_copied_is_not_left_out():
    kept = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for source in {source for name in FILES for source in copied(name)}:
        assert any(fnmatch(source, pattern) for pattern in kept), source


@pytest.mark.parametrize(("name", "lock"), FILES.items())
def test_packages_are_those_of_a_lock_file(name, lock):
    (install,) = [rest for word, rest in instructions(name) if word == "RUN" and "pip" in rest]
    assert f"--require-hashes --requirement {lock}" in install
    assert lock in copied(name)
    assert not any(word == "ADD" for word, _ in instructions(name))
    entry = next(rest for word, rest in instructions(name) if word == "ENTRYPOINT")
    command = next(rest for word, rest in instructions(name) if word == "CMD")
    assert json.loads(entry) == ["python"] and (ROOT / json.loads(command)[0]).is_file()


@pytest.mark.parametrize("name", FILES)
def test_its_python_is_one_of_ours_and_not_root_runs_it(name):
    base = dict(instructions(name))["ARG"] if name is None else instructions(name)[0][1]
    python = re.fullmatch(r"BASE=docker\.io/library/python:(3\.\d+)-slim-\w+", base)[1]
    assert python in PYTHONS
    assert ("USER", "1000:1000") in instructions(name)
    if name == "Containerfile.cuda":
        assert f"--python-version {python}" in (ROOT / FILES[name]).read_text()[:400]


def test_both_differ_in_their_lock_alone():
    cpu, cuda = (
        [(word, rest.replace(lock, "LOCK")) for word, rest in instructions(name)] for name, lock in FILES.items()
    )
    assert cpu == cuda


def test_the_lock_with_cuda_has_the_versions_of_the_other_one():
    cuda, ours = ((ROOT / lock).read_text() for lock in ("requirements-cuda.lock", "requirements.lock"))
    assert unmet((ROOT / "requirements.txt").read_text(), cuda, "3.12") == []
    pins = "\n".join(line.split("--hash")[0] for line in lines(cuda) if not line.startswith("nvidia-"))
    assert unmet(pins, ours, "3.12") == []
    assert "nvidia-cudnn" in cuda
