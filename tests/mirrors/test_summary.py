import pandas as pd

from landmarks.mirrors.summary import KINDS_LISTED, kinds, summary


def photos(**splits: str) -> pd.DataFrame:
    """Photos whose splits are given by landmark, one letter a photo: a=... is landmark 0, b=... 1, none=... none."""
    names = {"t": "train", "i": "index", "e": "test"}
    rows = [(None if key == "none" else ord(key) - 97, names[one]) for key, value in splits.items() for one in value]
    return pd.DataFrame(rows, columns=["landmark_id", "split"]).astype({"landmark_id": "Int64"})


def test_the_table_says_what_was_made_and_what_was_not():
    reasons = ["no photo's suffix: .txt", "not a photo (JPEG)", "not a photo (JPEG)"]
    assert summary("mine", photos(a="t" * 1200 + "ie", b="te", none="iee"), reasons).split("\n") == [
        "mine:",
        "  landmarks                            2",
        "    without a test or index photo      1",
        "  photos                           1,207",
        "    train                          1,201",
        "    index                              2",
        "    test                               4",
        "    of no landmark, among these        3",
        "  passed over (failed.csv)             3",
        "    not a photo                        2",
        "    no photo's suffix: .txt            1",
    ]


def test_the_table_counts_near_duplicates():
    table = photos(a="tttie", b="tie")
    assert "near-duplicates" not in summary("mine", table.assign(group=range(8)), [])
    assert summary("mine", table.assign(group=[1, 1, 2, 3, 4, 5, 6, 5]), []).split("\n")[6] == (
        "    near-duplicates, kept together (near_duplicates.csv)  4"
    )


def test_a_split_alone_lacks_no_test_or_index_photo():
    assert summary("mine", photos(a="ttt"), []).split("\n") == [
        "mine:", "  landmarks    1", "  photos       3", "    train      3", "    index      0", "    test       0",
        "  passed over  0",
    ]  # fmt: skip


def test_rare_reasons_are_added_up():
    reasons = [f"no photo's suffix: .{letter}" for letter in "abcdefghijklmnop"] + ["no photo's suffix: .p"]
    listed = kinds(reasons)
    assert listed[0] == ("no photo's suffix: .p", 2)
    assert listed[-1] == ("other reasons", len(set(reasons)) - KINDS_LISTED)
    assert sum(count for _, count in listed) == len(reasons)
