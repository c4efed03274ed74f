"""The command before it can do anything: interrupted while it imports, with streams that are closed or not UTF-8."""

from __future__ import annotations

import faulthandler
import io
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from syngrad import startup
from syngrad.cli import main

#: a torch that interrupts whoever imports it
TORCH = "import os, signal, time\nfor _ in range({times}):\n    os.kill(os.getpid(), signal.SIGINT)\ntime.sleep(30)\n"


def syngrad(*arguments: str, redirect: str = "", **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        ["sh", "-c", f'exec "$0" "$@" {redirect}', sys.executable, "-m", "syngrad", *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_while_pytorch_is_imported(times: int, tmp_path: Path) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text(TORCH.format(times=times))
    done = syngrad("--version", PYTHONPATH=os.pathsep.join([str(tmp_path), *sys.path]))
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"interrupted\n")


def test_a_program_that_imports_syngrad_handles_ctrl_c_itself(tmp_path: Path) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text(TORCH.format(times=1))
    code = "try:\n    import syngrad\nexcept KeyboardInterrupt:\n    print('mine')"
    path = os.pathsep.join([str(tmp_path), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, capture_output=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, b"mine\n")


def printed(encoding: str, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[int, bytes, bytes]:
    """The exit code of a command, and what it prints to streams of that encoding."""
    streams = [io.TextIOWrapper(io.BytesIO(), encoding) for _ in range(2)]
    monkeypatch.setattr(sys, "stdout", streams[0])
    monkeypatch.setattr(sys, "stderr", streams[1])
    code = main(arguments)
    for stream in streams:
        stream.flush()
    out, err = (stream.buffer.getvalue() for stream in streams)  # type: ignore[attr-defined]
    return code, out, err


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "ascii"])
def test_a_console_that_is_not_utf_8_gets_all_lines(encoding: str, small: str, monkeypatch: pytest.MonkeyPatch) -> None:
    compare = ["compare", small, "--methods", "backprop,zero"]
    whole = printed("utf-8", monkeypatch, *compare)
    done = printed(encoding, monkeypatch, *compare)
    assert (done[0], done[2]) == (whole[0], whole[2]) == (0, b"")
    assert done[1].count(b"\n") == whole[1].count(b"\n") > 5
    code, out, err = printed(encoding, monkeypatch, "train", "ξ größe")
    assert (code, out) == (2, b"")
    assert err.startswith("error: unknown experiment '? größe'".encode(encoding, "replace"))
    assert err.count(b"\n") == 1


@pytest.mark.parametrize("closed", ["stdout", "stderr"])
def test_a_stream_that_is_closed(
    closed: str, small: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, closed, None)
    results = tmp_path / "results.json"
    assert main(["compare", small, "--methods", "backprop,zero", "--json", str(results), "--progress"]) == 0
    assert results.read_text().startswith("{")
    assert main(["compare", "nonsense"]) == 2
    shown = capsys.readouterr()
    if closed == "stdout":
        assert shown.out == ""
        assert "error: unknown experiment 'nonsense'" in shown.err
    else:
        assert "error" not in shown.out + shown.err


def test_a_closed_stream_keeps_its_number(tmp_path: Path) -> None:
    """Nothing that is printed may end up in a file that has taken it."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text(
        "import os\nopen(os.environ['TOLD'], 'w').write(str(os.open('/dev/null', 0)))\nraise SystemExit(0)\n"
    )
    told, path = tmp_path / "told", os.pathsep.join([str(tmp_path), *sys.path])
    syngrad("--version", redirect="0<&- 1>&- 2>&-", PYTHONPATH=path, TOLD=str(told))
    assert int(told.read_text()) > 2


def test_which_signals_are_taken_over(monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(startup.handled(number) for number in startup.SIGNALS)
    before = {number: signal.getsignal(number) for number in startup.SIGNALS}
    try:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as under nohup
        assert not startup.handled(signal.SIGHUP)

        def own(*_: Any) -> None:
            """A user's."""

        signal.signal(signal.SIGTERM, own)
        signal.signal(signal.SIGUSR1, own)
        assert startup.handled(signal.SIGTERM)
        assert not startup.handled(signal.SIGUSR1)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")
def test_a_handler_that_python_does_not_know_of_stays() -> None:
    with open(os.devnull, "w") as sink:  # it has to have a descriptor
        faulthandler.register(signal.SIGUSR1, file=sink)
        try:
            assert not startup.handled(signal.SIGUSR1)
        finally:
            faulthandler.unregister(signal.SIGUSR1)
    assert startup.handled(signal.SIGUSR1)
