import json
import subprocess
import sys

from conftest import ROOT

from landmarks.scoring.scores import score_recognition


def write(path, *lines):
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def recognition_files(folder):
    submission = write(
        folder / "recognition.csv", "id,landmarks", "a,1 0.5", "b,2 0.9", "c,7 0.7", "d,", "e,x", "f,3 0.1"
    )
    solution = write(
        folder / "solution.csv",
        "id,landmarks,Usage", "a,1 2,Public", "b,1,Public", "c,,Public", "d,5,Private", "e,,Ignored", "f,3,Private",
    )  # fmt: skip
    return submission, solution


def run(*arguments):
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60)


def test_command_prints_json(tmp_path):
    submission, solution = recognition_files(tmp_path)
    result = run("metrics.py", "recognition", str(submission), str(solution))
    assert (result.returncode, result.stderr) == (0, "")
    assert json.loads(result.stdout) == score_recognition(submission, solution)


def test_standard_errors_come_beside_the_scores(tmp_path):
    submission, solution = recognition_files(tmp_path)
    other = write(tmp_path / "other.csv", "id,landmarks", "a,9 0.5", "f,3 0.1")
    arguments = ["metrics.py", "recognition", str(submission), str(solution)]
    plain = json.loads(run(*arguments, "--standard-errors").stdout)
    assert plain.pop("resampled")["public"]["top1"].keys() == {"value", "standard_error"}
    found = json.loads(run(*arguments, "--against", str(other)).stdout)
    figures = found.pop("resampled")
    assert plain == found == score_recognition(submission, solution)
    # Of the landmarks a and b one is named, and by the other submission none; of d and f both name one.
    assert (figures["public"]["top1"]["difference"], figures["private"]["top1"]["difference"]) == (0.5, 0)
    assert figures["mean"]["top1"]["difference"] == 0.25
    assert figures["mean"]["top1"]["difference_standard_error"] > 0


def test_command_says_what_is_wrong_in_one_line(tmp_path):
    submission, solution = recognition_files(tmp_path)
    for arguments in (
        ["recognition", str(tmp_path / "absent.csv"), str(solution)],
        ["recognition", str(submission), str(tmp_path)],
        ["retrieval", str(submission), str(solution)],
        ["recognition", str(submission), str(solution), "--against", str(tmp_path / "absent.csv")],
        ["calibration", str(submission), str(solution), "--standard-errors"],
    ):
        result = run("metrics.py", *arguments)
        assert (result.returncode, result.stdout) == (2, "")
        assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert run("metrics.py", "segmentation", str(submission), str(solution)).returncode == 2


def test_commands_start_without_heavy_imports():
    heavy = "{'tensorflow', 'keras', 'torch', 'pandas', 'numpy'}"
    result = run("-c", f"import metrics, submission, sys; print(*({heavy} & set(sys.modules)))")
    assert (result.returncode, result.stdout.strip()) == (0, "")
