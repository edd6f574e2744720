"""pip-audit of requirements.lock: a known vulnerability fails, a service that does not answer is said and passes.

pip-audit's exit code does not tell the two apart: it is 1 for both, and 0 where a mirror of the package index answers
that it knows none of the packages. What it writes does. Arguments are passed on to it, as `--ignore-vuln ID`. Audited
are the lines that the lock has for this Python.
"""

import json
import re
import subprocess
import sys

COMMAND = (
    "pip_audit --requirement requirements.lock --require-hashes --disable-pip --format json --progress-spinner off "
    "--timeout 5"  # seconds for one answer
).split()
SECONDS = 60  # for all answers; with a good network they take 10
NO_ANSWER = re.compile(r"requests\.exceptions|\bServiceError|ConnectionError|vulnerability feed|not redirecting")
SKIPPED = 0, "pip-audit skipped: the vulnerability service cannot be reached"


def judge(report: str, errors: str) -> tuple[int, str]:
    """The exit code and what there is to say, by what pip-audit wrote to its two outputs."""
    try:
        packages = json.loads(report)["dependencies"]
    except ValueError:  # it writes its report last
        return SKIPPED if NO_ANSWER.search(errors) else (1, f"pip-audit failed: {errors.strip()}")
    known = [package for package in packages if "vulns" in package]
    found = [
        f"{package['name']} {package['version']} has {fault['id']}, fixed in {fault['fix_versions'] or 'no release'}"
        for package in known
        for fault in package["vulns"]
    ]
    if found:
        return 1, "\n".join(found)
    unknown = [package["name"] for package in packages if package not in known]
    beside = f"; it knows nothing of {', '.join(unknown)}" if unknown else ""
    return (0, f"pip-audit: no known vulnerability in {len(known)} packages{beside}") if known else SKIPPED


def main() -> int:
    try:
        done = subprocess.run(
            [sys.executable, "-m", *COMMAND, *sys.argv[1:]], capture_output=True, text=True, timeout=SECONDS
        )
        code, said = judge(done.stdout, done.stderr)
    except subprocess.TimeoutExpired:
        code, said = SKIPPED
    print(said)
    return code


if __name__ == "__main__":
    sys.exit(main())
