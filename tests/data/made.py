"""Small sets in the layouts of the real ones, a web server on this machine, and package clients that only pretend."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import io
import json
import re
import struct
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
from PIL import Image

from syngrad.data.books import BOOKS
from syngrad.data.image_folders import IDX_FILES
from syngrad.data.sets import SETS, DataSet, Mirror, Part

TRAIN, TEST = 30, 20


def idx(values: np.ndarray) -> bytes:
    return bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()


def random_bytes(seed: int, *shape: int, below: int = 256) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, below, shape, dtype=np.uint8)


def idx_files(packed: bool = True) -> dict[str, bytes]:
    shapes = [(TRAIN, 28, 28), (TRAIN,), (TEST, 28, 28), (TEST,)]
    files = {}
    for seed, (name, shape) in enumerate(zip(IDX_FILES, shapes, strict=True)):
        content = idx(random_bytes(seed, *shape, below=256 if len(shape) == 3 else 10))
        files[f"{name}.gz" if packed else name] = gzip.compress(content, mtime=0) if packed else content
    return files


def cifar() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Five training batches of six images and a test batch of twenty."""
    batches = {}
    for seed in range(6):
        count = TEST if seed == 5 else TRAIN // 5
        name = "test_batch" if seed == 5 else f"data_batch_{seed + 1}"
        batches[name] = (random_bytes(seed, count, 3, 32, 32), random_bytes(seed + 10, count, below=10))
    return batches


def cifar_binary() -> dict[str, bytes]:
    return {
        f"{name}.bin": np.concatenate([labels[:, None], images.reshape(len(images), -1)], axis=1).tobytes()
        for name, (images, labels) in cifar().items()
    }


def cifar_pictures(mode: str = "RGB") -> dict[str, bytes]:
    files, listed = {}, {"train": [], "test": []}
    for name, (images, labels) in cifar().items():
        out = io.BytesIO()
        rows = images.transpose(0, 2, 3, 1).reshape(len(images), 1024, 3)
        Image.fromarray(rows).convert(mode).save(out, format="PNG")
        files[f"{name}.png"] = out.getvalue()
        listed["test" if name == "test_batch" else "train"] += labels.tolist()
    return files | {f"{part}_lables.json": json.dumps(labels).encode() for part, labels in listed.items()}


def books() -> dict[str, bytes]:
    return {name: f"[{name}]\r\n\r\nIn {name}, caf\xe9.\r\n".encode("latin-1") for name in BOOKS}


def lay(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def tgz(files: dict[str, bytes], folder: str = "package/") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(folder + name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return gzip.compress(out.getvalue(), mtime=0)  # no time in it: tests are named after their bytes


def zipped(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(f"gutenberg/{name}"), content, zipfile.ZIP_DEFLATED)
    return out.getvalue()


LAYOUTS = {"mnist": idx_files, "fashion-mnist": idx_files, "cifar10": cifar_binary, "gutenberg": books}


def web_files(name: str) -> dict[str, bytes]:
    """What the set's usual place would serve, by path."""
    if name == "cifar10":
        return {"/cifar-10-binary.tar.gz": tgz(cifar_binary(), "cifar-10-batches-bin/")}
    if name == "gutenberg":
        return {"/gutenberg.zip": zipped(books())}
    return {f"/{file}": content for file, content in idx_files().items()}


def small(name: str, folder: Path, *bases: str) -> DataSet:
    """The set of that name with few samples, as the table would have it, and published at `bases`."""
    real = SETS[name]
    contents = real.read(lay(folder / f"layout-{name}", LAYOUTS[name]()))
    parts = {
        part: Part(array.shape, hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest())
        for part, array in contents.items()
    }
    mirrors = tuple(Mirror(base, real.mirrors[0].files, real.mirrors[0].limit_bytes) for base in bases)
    return dataclasses.replace(real, parts=parts, mirrors=mirrors)


class Web:
    """What the server serves, how it misbehaves, and what it was asked."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files, self.ranges, self.lengths = files, True, True
        self.cut_at: list[int] = []
        """After how many bytes each of the next answers breaks off."""
        self.stall = threading.Event()
        self.stalls = False
        self.asked: list[tuple[str, str | None]] = []
        self.base = ""


@contextmanager
def serving(files: dict[str, bytes]) -> Iterator[Web]:
    web = Web(files)

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: object) -> None: ...

        def do_GET(self) -> None:
            wanted = self.headers["Range"]
            web.asked.append((self.path, wanted))
            content = web.files.get(self.path)
            if content is None:
                return self.send_error(404)
            start = int(re.findall(r"\d+", wanted)[0]) if wanted and web.ranges else 0
            if start and start >= len(content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(content)}")
                self.send_header("Content-Length", "0")
                return self.end_headers()
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            if web.lengths:
                self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            body = content[start:]
            self.wfile.write(body[: web.cut_at.pop(0)] if web.cut_at else body)
            if web.stalls:
                self.wfile.flush()
                web.stall.wait(30)
            return None

    server = HTTPServer(("127.0.0.1", 0), Handler)
    web.base = f"http://127.0.0.1:{server.server_port}/"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield web
    finally:
        web.stall.set()
        server.shutdown()
        thread.join()
        server.server_close()


def clients(folder: Path, archive: bytes, *, fails: str = "") -> Path:
    """A folder for PATH with an npm, an apt-get and a dpkg-deb that hand out `archive`, and write down how often."""
    folder.mkdir()
    (folder / "archive").write_bytes(archive)
    give = f"echo '{fails}' >&2; exit 1" if fails else f'cp "{folder}/archive" "$PWD/$FILE"'
    for name, script in {
        "npm": f"FILE=some-1.0.0.tgz\n{give}",
        "apt-get": f"FILE=some_1_all.deb\n{give}",
        "dpkg-deb": 'gzip -dc "$2"',
    }.items():
        (folder / name).write_text(f'#!/bin/sh\necho "{name} $*" >> "{folder}/asked"\n{script}\n')
        (folder / name).chmod(0o755)
    return folder


def asked(folder: Path) -> list[str]:
    return (folder / "asked").read_text().splitlines() if (folder / "asked").is_file() else []
