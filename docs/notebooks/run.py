"""Execute the notebooks and write their outputs: python docs/notebooks/run.py [NAME.ipynb …].

Needs the extra ``notebooks``. Each notebook has a kernel of its own and an empty working directory.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

HERE = Path(__file__).parent
NOTEBOOKS = sorted(HERE.glob("*.ipynb"))
MOST_SECONDS = 300  # per cell, on a busy machine


def read(path: Path) -> NotebookNode:
    """Read a notebook with its kept outputs."""
    return nbformat.read(path, as_version=4)


def execute(path: Path) -> NotebookNode:
    """Return the notebook as executed now; the file stays as it is.

    Raises:
      nbclient.exceptions.CellExecutionError: if a cell raises.
    """
    notebook = read(path)
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",  # one platform for all digits
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",  # a remark of debugpy
        "SOURCE_DATE_EPOCH": "0",  # the date in pictures
    }
    with tempfile.TemporaryDirectory() as directory:
        resources = {"metadata": {"path": directory}}
        client = NotebookClient(
            notebook,
            timeout=MOST_SECONDS,
            resources=resources,
            record_timing=False,
            extra_arguments=["--log-level=ERROR"],  # it warns of its own sockets
        )
        client.execute(env=environment)
    return notebook


def texts(notebook: NotebookNode, stream: str = "stdout") -> list[str]:
    """Return what each cell printed to a stream, and for stdout also the values it displayed."""
    return ["".join(_texts(cell, stream)) for cell in notebook.cells if cell.cell_type == "code"]


def _texts(cell: NotebookNode, stream: str) -> Iterator[str]:
    for output in cell.outputs:
        if output.output_type == "stream" and output.name == stream:
            yield output.text
        elif output.output_type == "execute_result" and stream == "stdout":
            yield output.data["text/plain"]


def _write(notebook: NotebookNode, path: Path) -> None:
    """Write without what depends on the machine."""
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for cell in notebook.cells:
        cell.metadata = {}
    nbformat.write(notebook, path)


def main(names: list[str]) -> None:
    for path in [HERE / Path(name).name for name in names] or NOTEBOOKS:
        start = time.perf_counter()
        notebook = execute(path)
        _write(notebook, path)
        size = path.stat().st_size // 1000
        print(f"{path.name}: {time.perf_counter() - start:.0f} s, {size} kB")
        print("".join(texts(notebook, "stderr")), end="", file=sys.stderr)


if __name__ == "__main__":
    main(sys.argv[1:])
