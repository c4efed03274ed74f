"""Models of `transformers` as they come, where that package is installed: cut, exact at λ = 1, and trained."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import pytest
from tests._support.loading import load
from tests._support.snippets import blocks

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("transformers")

ROOT = Path(__file__).resolve().parents[2]
FAMILIES = ROOT / "benchmarks" / "families"
#: a layer on either side of the cut; what is recorded takes seconds by the layer, in every process
LAYERS = 2


@pytest.fixture(scope="module")
def families() -> tuple[Any, dict[str, Any]]:
    """The benchmark's functions, and its models by name and cut."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run = load(FAMILIES / "main.py")
        return run, {f"{each.name} {each.cut}": each for each in run.families(LAYERS)}


NAMES = [
    "GPT2LMHeadModel transformer.h.1",
    "LlamaForCausalLM model.layers.1",
    "BertForSequenceClassification bert.encoder.layer.1",
    "ViTForImageClassification vit.layers.1",
    "T5ForConditionalGeneration encoder.block.1",
    "T5ForConditionalGeneration decoder.block.1",
    "WhisperForConditionalGeneration model.decoder.layers.1",
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NAMES)
def test_a_model_trains_as_it_comes_and_is_exact(families: tuple[Any, dict[str, Any]], name: str) -> None:
    run, models = families
    _, deviation = run.deviation(models[name])
    assert deviation < 1e-12
    assert run.trains(models[name])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.distributed
@pytest.mark.timeout(900)  # each of them is recorded in three processes, twice
def test_two_workers_end_where_one_process_does(families: tuple[Any, dict[str, Any]]) -> None:
    run, models = families
    found = run.differences([models[name] for name in NAMES], LAYERS)
    assert found == [0.0] * len(NAMES)


@pytest.mark.filterwarnings("ignore")
def test_the_dozen_of_the_page_train() -> None:
    pytest.importorskip("peft")
    page = (ROOT / "docs" / "own-model.md").read_text(encoding="utf-8")
    (block,) = [each for each in blocks(page) if each.language == "python" and each.skip]
    namespace: dict[str, Any] = {"__name__": "__main__"}
    exec(block.text, namespace)
    assert len(namespace["examples"]) == 12


@pytest.mark.filterwarnings("ignore")
def test_the_run_of_the_page_goes_from_text_to_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tqdm import tqdm
    from transformers import GPT2LMHeadModel

    monkeypatch.setattr(tqdm, "monitor_interval", 0)  # a thread that would outlive the bars of transformers
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RANK", raising=False)
    Path("my.txt").write_bytes(b"def word(of, text): return text\n" * 200)
    page = (ROOT / "docs" / "transformers.md").read_text(encoding="utf-8")
    (block,) = [each for each in blocks(page) if each.language == "python" and each.skip]
    run: dict[str, Any] = {"__name__": "__main__"}
    exec(block.text, run)
    assert "bits per character\ndef " in capsys.readouterr().out
    plain = GPT2LMHeadModel.from_pretrained("trained").eval()
    ((tokens, following),) = run["test"]
    value = run["loss"](plain(tokens), following).item()
    assert value == pytest.approx(run["history"].epochs[-1].metrics["loss"], rel=1e-5)
    assert run["history"].value == pytest.approx(value / math.log(2), rel=1e-5)
