"""What the base commit has left in an earlier run, so that the next one need not make it again."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).parent
#: files of this folder that have no say in what a scenario leaves
BESIDE = {"main.py", "dispatch.py", "checkout.py", "differences.py", "expected.py", "reuse.py"}


class Reuse:
    """A folder of outcomes by commit, scenarios' code, PyTorch and processor: with any other the bits may differ.

    folder: None for nothing kept, and nothing found.
    """

    def __init__(self, folder: str | None, commit: str) -> None:
        self.folder = Path(folder).resolve() / f"{commit[:12]}-{self._code()}" if folder else None

    def has(self, slug: str, out: Path) -> bool:
        """Whether the scenario's outcome is there; it then stands in `out`."""
        if self.folder is None or not (self.folder / slug).is_dir():
            return False
        shutil.copytree(self.folder / slug, out)
        return True

    def keep(self, slug: str, out: Path) -> None:
        """Keep it, whole or not at all."""
        if self.folder is None or not out.is_dir():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        new = self.folder / f".{slug}-{os.getpid()}"
        shutil.copytree(out, new)
        try:
            new.rename(self.folder / slug)
        except OSError:  # somebody else was first
            shutil.rmtree(new)

    def _code(self) -> str:
        made = hashlib.sha256()
        for file in sorted(HERE.glob("*.py")):
            if file.name not in BESIDE:
                made.update(file.read_bytes())
        info = Path("/proc/cpuinfo")
        lines = info.read_text().splitlines() if info.is_file() else [platform.processor()]
        model = next((line for line in lines if line.startswith("model name")), lines[0])
        made.update(f"{version('torch')} {version('numpy')} {platform.python_version()} {model}".encode())
        return made.hexdigest()[:12]
