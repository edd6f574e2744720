"""Runs a notebook as `python tests/kernels.py NOTEBOOK OUT PARAMETERS`, without network where that can be cut off.

PARAMETERS, code, goes into a cell after the one tagged `parameters`, whose values it replaces. OUT, a notebook with all
outputs, is written where a cell fails too, and the exit code is 1 then.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

REFUSED = "http://127.0.0.1:9"  # a port that nobody answers at
OFFLINE = {name: REFUSED for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "ALL_PROXY")}


def execute(
    notebook: Path, out: Path, parameters: str, folder: Path, python: str = sys.executable, **environment: str
) -> str:
    """Run a notebook in a folder with no way to the network, and return all that its cells printed.

    A network namespace of its own cuts it off, where the system gives one; else, and as well, proxies that refuse do.
    """
    cut_off = ["unshare", "--map-root-user", "--net"]
    if not shutil.which("unshare") or subprocess.run([*cut_off, "true"], capture_output=True).returncode:
        cut_off = []
    done = subprocess.run(
        [*cut_off, python, __file__, notebook.resolve(), out, parameters],
        cwd=folder, env={**os.environ, **OFFLINE, **environment}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, f"{notebook.name}: {done.stderr[-3000:]}"
    return printed(out)


def printed(path: Path) -> str:
    import nbformat

    outputs = [one for cell in nbformat.read(path, 4).cells for one in cell.get("outputs", [])]
    return "".join(one["text"] for one in outputs if one["output_type"] == "stream")


def main(notebook: str, out: str, parameters: str) -> None:
    import nbformat
    from jupyter_client import AsyncKernelManager
    from nbclient import NotebookClient

    read = nbformat.read(notebook, 4)
    place = next(place for place, cell in enumerate(read.cells) if "parameters" in cell.metadata.get("tags", []))
    read.cells.insert(place + 1, nbformat.v4.new_code_cell(parameters))
    with tempfile.TemporaryDirectory() as sockets:  # TCP would take a network
        kernel = AsyncKernelManager(kernel_name="python3", transport="ipc", ip=f"{sockets}/kernel")
        try:
            NotebookClient(read, km=kernel, timeout=1800).execute()
        finally:
            nbformat.write(read, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
