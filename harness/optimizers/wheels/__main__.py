"""Fetch published packages: `python -m harness.optimizers.wheels [NAME [VERSION]]`."""

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from harness.errors import UserError, exit_code
from harness.optimizers.wheels.packages import (
    LIBRARIES,
    PACKAGES,
    libraries_folder,
    package_folder,
)

_PIP = (sys.executable, "-P", "-m", "pip", "--disable-pip-version-check")


def _pip(*arguments: str) -> None:
    """Run pip; UserError with its last line where it fails."""
    done = subprocess.run([*_PIP, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"pip {' '.join(arguments)} failed: {last.rstrip('.')}.")


def fetch(name: str, version: str) -> Path:
    """Unpack the wheel of that version, and the libraries it needs, once; returns its folder.

    Nothing is installed into the environment. Raises UserError where pip fails.
    """
    package = PACKAGES[name]
    target = package_folder(package, version)
    if not target.is_dir():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            wheel = f"{package.name}=={version}"
            _pip("download", "--no-deps", "--only-binary=:all:", "--dest", scratch, wheel)
            (archive,) = Path(scratch).glob("*.whl")
            unpacked = Path(scratch) / "unpacked"
            with zipfile.ZipFile(archive) as contents:
                contents.extractall(unpacked)
            unpacked.rename(target)
    if not libraries_folder().is_dir():
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            installed = Path(scratch) / "installed"
            _pip("install", "--no-deps", "--target", str(installed), *LIBRARIES)
            installed.rename(libraries_folder())
    return target


def main(arguments: list[str]) -> int:
    """Fetch the named package, or the first version of each; exits 0, or 2 for a mistake."""
    return exit_code("harness.optimizers.wheels", lambda: _fetch_all(arguments))


def _fetch_all(arguments: list[str]) -> int:
    if arguments and arguments[0] not in PACKAGES:
        raise UserError(f"{arguments[0]} is unknown; allowed: {', '.join(PACKAGES)}.")
    for name in arguments[:1] or PACKAGES:
        version = arguments[1] if len(arguments) > 1 else PACKAGES[name].versions[0]
        print(fetch(name, version))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
