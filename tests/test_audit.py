"""CI's audit tells a vulnerability from a service that does not answer, by what pip-audit 2.10 writes of either."""

import json
import runpy

import pytest
from conftest import ROOT

judge = runpy.run_path(str(ROOT / ".ci" / "audit.py"))["judge"]
KNOWN = {"name": "numpy", "version": "2.4.6", "vulns": []}
UNKNOWN = {"name": "keras", "skip_reason": "Dependency not found on PyPI and could not be audited: keras (3.15.1)"}
FAULTY = {
    "name": "pillow",
    "version": "13.0.0",
    "vulns": [{"id": "CVE-1", "fix_versions": ["14.0.0"], "aliases": ["GHSA-aaaa"], "description": "bad"}],
}


def report(*packages: dict) -> str:
    return json.dumps({"dependencies": packages, "fixes": []})


def test_a_vulnerability_fails_whatever_else_there_is():
    for beside in ([], [KNOWN], [UNKNOWN]):
        code, said = judge(report(*beside, FAULTY), "Found 1 known vulnerability in 1 package")
        assert code == 1 and said == "pillow 13.0.0 has CVE-1, fixed in ['14.0.0']"


def test_no_vulnerability_passes_and_names_what_was_not_known():
    assert judge(report(KNOWN), "") == (0, "pip-audit: no known vulnerability in 1 packages")
    assert judge(report(KNOWN, UNKNOWN), "")[1].endswith("in 1 packages; it knows nothing of keras")


@pytest.mark.parametrize(
    ("written", "errors"),
    [
        (report(UNKNOWN), "No known vulnerabilities found"),  # of a mirror that has packages alone
        ("", "ERROR:pip_audit._cli:Could not connect to PyPI's vulnerability feed\nERROR:pip_audit._cli:Tip: ..."),
        ("", "requests.exceptions.ConnectionError: HTTPSConnectionPool(host='pypi.org', port=443): Max retries"),
        ("", "requests.exceptions.ReadTimeout: HTTPSConnectionPool(host='pypi.org', port=443): Read timed out."),
        ("", "requests.exceptions.JSONDecodeError: Expecting value: line 1 column 1 (char 0)"),  # a log-in page
        ("", "pip_audit._service.interface.ServiceError"),  # HTTP 503
    ],
)
def test_a_service_that_does_not_answer_is_said_and_passes(written, errors):
    assert judge(written, errors) == (0, "pip-audit skipped: the vulnerability service cannot be reached")


def test_any_other_failure_fails():
    errors = "ERROR:pip_audit._cli:requirement absl-py==2.5.1 does not contain a hash"
    assert judge("", errors) == (1, f"pip-audit failed: {errors}")
