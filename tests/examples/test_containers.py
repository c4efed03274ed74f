"""The compose file for containers: its commands are the guide's, and what they call takes them."""

from __future__ import annotations

import importlib
import importlib.util
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
from torch.distributed.run import get_args_parser

from syngrad.cli import main
from syngrad.replicas.place import place

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples" / "containers"
COMPOSE = (FOLDER / "compose.yaml").read_text()


def read() -> dict[str, dict[str, Any]]:
    """The services, of which every entry is a line; Syngrad needs no package that reads all of YAML."""
    found: dict[str, dict[str, Any]] = {}
    for line in COMPOSE.partition("\nservices:\n")[2].splitlines():
        if service := re.fullmatch(r"  ([\w-]+):", line):
            found[service[1]] = {}
        elif entry := re.fullmatch(r"    (\w+): (.+)", line):
            pairs = re.findall(r'(\w+): "?([^",}]+)"?', entry[2]) if entry[2].startswith("{") else None
            found[list(found)[-1]][entry[1]] = entry[2] if pairs is None else dict(pairs)
    return found


services = read()
REPLICAS = [name for name in services if name.startswith("replica")]


@pytest.mark.parametrize("name", services)
def test_the_guide_shows_the_command(name: str) -> None:
    assert f"\n{services[name]['command']}\n" in (ROOT / "docs" / "replicas.md").read_text()


@pytest.mark.parametrize("name", REPLICAS)
def test_a_replica_knows_its_place_and_its_command_is_taken(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, value in services[name]["environment"].items():
        monkeypatch.setenv(variable, value)
    found = place()
    assert found is not None
    assert (found.index, found.count) == (REPLICAS.index(name), len(REPLICAS))
    assert found.lighthouse == "http://lighthouse:29510"
    program, *words = shlex.split(services[name]["command"])
    assert program == "torchrun"
    parsed = get_args_parser().parse_args(words)
    assert (parsed.module, parsed.training_script, parsed.nproc_per_node) == (True, "syngrad", "2")
    taken: list[dict[str, Any]] = []

    def run(options: dict[str, Any], resume: bool) -> int:
        taken.append(options)
        return 0

    monkeypatch.setattr(sys.modules["syngrad.cli.train"], "run", run)
    assert main(parsed.training_script_args) == 0
    assert [(each["experiment"], each["replicas"]) for each in taken] == [("fashion-mlp", len(REPLICAS))]


def test_it_is_yaml() -> None:
    assert set(services) == {"lighthouse", "replica-0", "replica-1"}
    if importlib.util.find_spec("yaml") is not None:
        whole = importlib.import_module("yaml").safe_load(COMPOSE)["services"]
        for name, service in services.items():
            assert {key: whole[name][key] for key in ("command", "image")} == {
                key: service[key] for key in ("command", "image")
            }
            assert whole[name].get("environment") == service.get("environment")


def test_the_lighthouse_listens_where_the_replicas_look() -> None:
    program, *words = shlex.split(services["lighthouse"]["command"])
    assert program == "torchft_lighthouse"
    assert dict(zip(words[::2], words[1::2], strict=True)) == {
        "--bind": "0.0.0.0:29510",
        "--min_replicas": "1",
        "--join_timeout_ms": "30000",
    }


def test_the_image_copies_what_there_is() -> None:
    lines = [line.split() for line in (FOLDER / "Dockerfile").read_text().splitlines()]
    copied = [name for words in lines if words[:1] == ["COPY"] for name in words[1:-1]]
    assert copied
    assert all((ROOT / name).exists() for name in copied)
    version = next(words[1] for words in lines if words[:1] == ["FROM"]).partition(":")[2]
    assert tuple(map(int, version.partition("-")[0].split("."))) >= (3, 11)
