"""What strangers may send: files that are made odd, or damaged, for the tests in hostile/."""

import io
import zipfile
from contextlib import suppress

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

# A bound of wall time would fail where two cores are shared by many.
hostile = settings(
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
PIECES = [
    b"\xff" * 4, b"\xff" * 8, b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", bytes(8), b"\0", b"../", b"/", b"\r\n", b"\r",
    b"\n", b'"', b",", b"[" * 3000, b"{a=" * 400, b"1" * 5000, b"-", b"nan", b"\xef\xbb\xbf", b"\xff\xfe",
    "\u202egpj.exe".encode(), "ａ１".encode(), b"\xed\xa0\x80", b"a" * 200_000, b" ", b"=", b"'", b"#", b"a.a.a.a.a.a",
]  # fmt: skip


@st.composite
def mutated(draw, originals) -> bytes:
    """One of the files with up to four faults: bytes changed, cut, put in, repeated, or another file's from there."""
    data = draw(st.sampled_from(originals))
    for _ in range(draw(st.integers(0, 4))):
        begin = draw(st.integers(0, len(data)))
        end = begin + draw(st.sampled_from([0, 1, 2, 4, 8, 64, 512, 10**9]))
        middle = draw(
            st.one_of(
                st.binary(max_size=8), st.sampled_from(PIECES), st.just(data[begin:end] * 3), st.sampled_from(originals)
            )
        )
        data = (data[:begin] + middle + data[end:])[: 2**20]
    return data


def npy(array) -> bytes:
    data = io.BytesIO()
    np.save(data, array)
    return data.getvalue()


def npz(members, compression: int = zipfile.ZIP_STORED) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", compression) as file:
        for name, content in members:
            with suppress(UserWarning):  # two of a name
                file.writestr(name, content)
    return data.getvalue()
