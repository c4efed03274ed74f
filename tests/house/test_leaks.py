"""The check in conftest.py that every other test rests on, run against tests that do leave something behind."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

LEAKING = """
import os, subprocess, sys, threading, time

import pytest
import torch

def test_thread():
    threading.Thread(target=time.sleep, args=(30,), daemon=True, name="forgotten").start()

def test_process():
    test_process.child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(30)"])

def test_environment():
    os.environ["SYNGRAD_LEFT"] = "1"

def test_default_dtype():
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(2)

def test_clean_after_all_of_them(monkeypatch):
    assert "SYNGRAD_LEFT" not in os.environ
    assert torch.get_default_dtype() is torch.float32
    assert torch.get_num_threads() == 1
    assert torch.initial_seed() == 0
    assert test_process.child.wait() != 0
    monkeypatch.setenv("SYNGRAD_PUT_BACK", "1")
    thread = threading.Thread(target=time.sleep, args=(0.2,))
    thread.start()
"""


def test_a_test_that_leaves_something_behind_fails_and_the_next_one_does_not(tmp_path: Path) -> None:
    source = (Path(__file__).parents[1] / "conftest.py").read_text(encoding="utf-8")
    (tmp_path / "conftest.py").write_text(source.replace("GRACE_S = 3.0", "GRACE_S = 0.5"), encoding="utf-8")
    (tmp_path / "test_leaking.py").write_text(LEAKING, encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-rA", "-p", "no:cacheprovider", f"--rootdir={tmp_path}", str(tmp_path)]
    # Narrower, pytest would cut the reasons short; the conftest imports what the tests share.
    environment = os.environ | {"COLUMNS": "200", "PYTHONPATH": os.pathsep.join(sys.path)}
    output = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment).stdout

    failed = dict(re.findall(r"^ERROR \S+::(\w+) - Failed: the test left behind: (.*)$", output, re.MULTILINE))
    assert failed.keys() == {"test_thread", "test_process", "test_environment"}, output
    assert failed["test_thread"] == "thread 'forgotten'"
    assert failed["test_process"].startswith("process ")
    assert failed["test_environment"] == "environment variable SYNGRAD_LEFT"
    assert "5 passed, 3 errors" in output, output
