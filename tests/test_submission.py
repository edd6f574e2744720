import subprocess
import sys

from conftest import ROOT


def test_check_command(tmp_path):
    (tmp_path / "metadata").mkdir()
    (tmp_path / "metadata" / "test.csv").write_text("id\naaa1\naaa2\n")
    (tmp_path / "metadata" / "index.csv").write_text("id\nbbb1\n")
    path = tmp_path / "retrieval.csv"

    def run(task, submission_csv):
        command = [sys.executable, "submission.py", "check", task, str(submission_csv), "--mirror", str(tmp_path)]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)

    path.write_text("id,images\naaa2,bbb1\naaa1,\n")
    whole = run("retrieval", path)
    assert (whole.returncode, whole.stderr) == (0, "")

    path.write_text("id,images\naaa1,bbb1 bbb2\n")
    faulty = run("retrieval", path)
    assert (faulty.returncode, faulty.stdout.splitlines()) == (
        1,
        [
            "not in the index: line 2: 'bbb2'",
            "wrong number of rows: 1, but the mirror has 2 test images",
            "missing id: 'aaa2'",
        ],
    )

    absent = run("recognition", tmp_path / "absent.csv")
    assert (absent.returncode, absent.stdout, absent.stderr.count("\n")) == (2, "", 1)
