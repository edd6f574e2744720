from conftest import make_mirror

from landmarks.mirrors import check
from landmarks.mirrors.folder import FolderMirror


def test_check_prints_each_fault(tmp_path, capsys):
    out = make_mirror(tmp_path / "m")
    test_ids = FolderMirror(out).ids("test")
    (out / "metadata/test.csv").write_text("\n".join(["id", *test_ids[1:], "abc1"]) + "\n")
    path = out / "train/images_000.tar"
    data = path.read_bytes()
    begin = data.index(b"\xff\xd8")
    path.write_bytes(data[:begin] + bytes(100) + data[begin + 100 :])
    assert check.check(str(out)) == 1
    printed = capsys.readouterr().out
    assert f"test: {test_ids[0]} is in a shard but not in metadata/test.csv" in printed
    assert "test: abc1 is in metadata/test.csv but in no shard" in printed
    assert "train/images_000.tar: md5 differs" in printed
    assert "cannot be read" in printed
    assert "4 faults" in printed


def test_check_goes_on_after_a_damaged_shard_and_sees_a_wrong_md5_at_a_url(tmp_path, serve, capsys):
    source = make_mirror(tmp_path / "m")
    (source / "train/images_002.tar").write_bytes(b"broken")
    (source / "md5sum/train/md5.images_004.txt").write_text(f"{'0' * 32}  images_004.tar\n")
    for mirror in (str(source), serve(source).url):
        assert check.check(mirror) == 1
        printed = capsys.readouterr().out
        assert "train/images_002.tar" in printed
        assert "train/images_004.tar: md5 differs" in printed
        assert "in metadata/train.csv but in no shard" in printed
        assert "6 faults" in printed  # 2 shards, and the 4 photos of the damaged one
