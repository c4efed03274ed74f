"""The README's one table: a cell or two of each of the others, so that it cannot say anything else than they do."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from cells import table

LIVED_ON = "the other process lived on: of single kills; of many"


def summary(tables: Mapping[str, Callable[[], str]]) -> str:
    """One line a claim: what `synthetic` reaches with the default estimator, and what it is held against."""

    def cell(name: str, row: str, column: str) -> str:
        lines = [[part.strip() for part in line.strip("|").split("|")] for line in tables[name]().splitlines()]
        at = next(k for k, head in enumerate(lines[0]) if head.startswith(column))
        return next(line for line in lines if line[0].startswith(row))[at]

    def accuracy(row: str, layers: str) -> str:
        return cell("accuracy", row, layers)

    cifar = ("cifar_cnn", "default, 3 interfaces")
    gpt = ("char_gpt", "default, 3 interfaces")
    saved = {k.strip(): v for k, v in _memory(tables["memory_saved"]()).items()}
    rows = [
        ["dense net of 8 layers, 7 interfaces: accuracy, %", accuracy("default", "8"), accuracy("backprop", "8")],
        ["dense net of 16 layers, 15 interfaces", accuracy("default", "16"), accuracy("backprop", "16")],
        [
            "CNN on CIFAR-10, 3 interfaces",
            f"{cell(*cifar, 'test')} ({cell(*cifar, 'to back')})",
            cell("cifar_cnn", "backprop", "test"),
        ],
        [
            "small GPT, 3 interfaces: bits per character, lower is better",
            f"{cell(*gpt, 'bits')} ({cell(*gpt, 'to back')})",
            cell("char_gpt", "backprop", "bits"),
        ],
        [
            "the same in two processes that do not wait, half the text, by `corrected`",
            f"{cell('async_gpt', 'corrected', 'bits')} ({cell('async_gpt', 'corrected', 'to back')})",
            cell("async_gpt", "backprop", "bits"),
        ],
        ["activations kept, 8 stages of 4 layers", *saved["8"]],
        [
            "a step in one process, width 256 and 1024",
            " and ".join(_first(cell("step_time", "default", f"width {w}")) for w in ("256", "1024")) + " ×",
            "1 × (hand-written loop)",
        ],
        [
            "two processes, wide net: samples/s",
            _alone(tables["throughput"](), "synthetic"),
            f"{_count(cell('throughput', 'plain, 2 threads', 'wide, batch 128'))} (two threads), "
            f"{_count(cell('throughput', 'ddp', 'wide, batch 128'))} (DDP)",
        ],
        [
            "the same over 20 ms, 100 Mbit/s",
            cell("slow_link", "synthetic", "samples"),
            f"{_count(cell('throughput', 'plain, 1 thread', 'wide, batch 128'))} (one of the two, alone), "
            f"{cell('slow_link', 'gpipe', 'samples')} (GPipe), {cell('slow_link', 'ddp', 'samples')} (DDP)",
        ],
        [
            "LSTM, windows of 3 steps: longest copy solved",
            _count(cell("copying", "copy 3", "synthetic"), " "),
            _count(cell("copying", "copy 3", "plain"), " "),
        ],
        [
            "50 kills, resumed: tensors the same, bit for bit",
            _alone(tables["resume"](), "tensors of the model that are the same, bit for bit"),
            "all of them",
        ],
        [
            "one of two processes killed: seconds until both train on",
            _first(_alone(tables["faults"](), "seconds from a single kill until training goes on")),
            f"the other lived on: {_alone(tables['faults'](), LIVED_ON).split(';')[0]}",
        ],
    ]
    return table(["", "`synthetic`, default estimator", "back-propagation, or the rival named"], rows)


def _memory(text: str) -> dict[str, list[str]]:
    """Stages → what is kept with `synthetic` and with back-propagation, four layers a stage."""
    lines = [[part.strip() for part in line.strip("|").split("|")] for line in text.splitlines()[2:]]
    return {line[0]: [line[3], line[2]] for line in lines if line[1] == "4"}


def _first(text: str) -> str:
    return text.split(" ")[0]


def _count(text: str, until: str = ";") -> str:
    return text.split(until)[0]


def _alone(text: str, row: str) -> str:
    """The first figure of the row that is called exactly so."""
    lines = [[part.strip() for part in line.strip("|").split("|")] for line in text.splitlines()[2:]]
    return next(line for line in lines if line[0] == row)[1]
