"""requirements.lock pins what requirements.txt allows, on every Python that CI runs."""

import re

import pytest
from conftest import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PYTHONS = ["3.10", "3.11", "3.12", "3.13"]  # of .github/workflows/tests.yml
PIN = re.compile(r"[\w.-]+==[\w.!+]+( ; [^@]+?)?(\s+--hash=sha256:[0-9a-f]{64})+")  # no URL, no path, no option


def lines(text: str) -> list[str]:
    """The lines of a requirements file, continued ones joined, without comments."""
    joined = text.replace("\\\n", " ")
    return [line for line in joined.splitlines() if line.strip() and not line.lstrip().startswith("#")]


def unmet(ranges: str, lock: str, python: str) -> list[str]:
    """The lines of `ranges` that a Python needs, and of which `lock` has no version, or another one."""
    here = {"python_version": python, "python_full_version": f"{python}.0"}
    pins, wanted = (
        [one for one in map(Requirement, entries) if not one.marker or one.marker.evaluate(here)]
        for entries in ([line.split("--hash")[0] for line in lines(lock)], lines(ranges))
    )
    versions = {canonicalize_name(pin.name): next(iter(pin.specifier)).version for pin in pins}
    return [
        str(one) for one in wanted
        if not one.specifier.contains(versions.get(canonicalize_name(one.name), "0"), prereleases=True)
    ]  # fmt: skip


@pytest.mark.parametrize("python", PYTHONS)
def test_the_lock_has_a_version_in_each_range(python):
    ranges, lock = ((ROOT / name).read_text() for name in ("requirements.txt", "requirements.lock"))
    assert unmet(ranges, lock, python) == [], "make the lock anew, as its first lines say"


def test_every_line_of_the_lock_is_a_version_with_hashes():
    for line in lines((ROOT / "requirements.lock").read_text()):
        assert PIN.fullmatch(line), line


def test_a_lock_that_has_drifted_is_told():
    lock = """
        keras==3.12.4 ; python_full_version < '3.11' \\
            --hash=sha256:00
        keras==3.15.1 ; python_full_version >= '3.11' \\
            --hash=sha256:00
        pillow==13.0.0 \\
            --hash=sha256:00
    """
    ranges = 'keras>=3.13\nPillow>=13\ntomli>=2; python_version < "3.11"\n'
    assert unmet(ranges, lock, "3.10") == ["keras>=3.13", 'tomli>=2; python_version < "3.11"']
    assert unmet(ranges, lock, "3.11") == []
    assert unmet(ranges + "pillow<13\nfaiss_cpu>=1.9", lock, "3.11") == ["pillow<13", "faiss_cpu>=1.9"]
