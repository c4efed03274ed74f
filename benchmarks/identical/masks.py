"""What may differ from one run to the next without anything being wrong: times, memory, the machine, the commit."""

from __future__ import annotations

import re
from typing import Any

MASK = "·"

#: keys of plain data whose values are times, memory or the machine, wherever they stand
KEYS = {
    *("train_s", "started_s", "step_s", "step_ratio", "step_split", "samples_per_s", "seconds", "spans", "created"),
    *("time_to_target_s", "time_to_target_spread", "time_to_target_ratio", "reached", "peak_memory_bytes"),
    *("placement", "bytes_sent"),  # by measured cost; and with it control messages that hold a time
    *("environment", "verdict", "host", "pid", "version", "torch", "python", "commit", "waited_s", "idle"),
}
#: (key of the mapping that it stands in, key) of lists of [epoch, seconds, value]
POINTS = {("", "points"), ("metric", "history"), ("", "train_loss")}

SECONDS = re.compile(r"\b\d[\d,]*\.?\d*(?:e[-+]?\d+)? (?:ms|µs|s|min|h)\b")
#: of a row of a comparison's table: a step's milliseconds and their ratio, before the bytes kept
STEP = re.compile(r" +(?:[\d.,]+|–) +(?:[\d.,]+|–)(?= +(?:[\d.,]+ (?:[KMG]i)?B|–))")
#: the paragraph after which a comparison's verdict comes, which goes by times
MACHINE = re.compile(r"\bPython \d")


def masked(value: Any, key: str = "", above: str = "") -> Any:
    """Plain data with a mask in place of what may differ."""
    if key in KEYS:
        return None if value is None else MASK
    if isinstance(value, dict):
        return {str(name): masked(each, str(name), key) for name, each in value.items()}
    if isinstance(value, list | tuple):
        if (above if above == "metric" else "", key) in POINTS:
            return [[each[0], MASK, *each[2:]] for each in value]
        return [masked(each) for each in value]
    return value


def printed(text: str) -> str:
    """What a command prints with a mask in place of the seconds."""
    return SECONDS.sub(f"{MASK} s", text)


def compared(text: str) -> str:
    """What a comparison prints: the table without step times, and of what comes after the machine that it is there."""
    made = []
    several = "samples/s" in text.partition("\n")[0]
    for paragraph in printed(text).split("\n\n"):
        made.append(
            "\n".join(metric(line) if several else STEP.sub(f" {MASK} {MASK}", line) for line in paragraph.split("\n"))
        )
        if MACHINE.search(" ".join(paragraph.split())):
            made.append(f"verdict: {MASK}")
            break
    return "\n\n".join(made)


def metric(line: str) -> str:
    """A row of a comparison over several processes: the row's name and its metric, as all else are figures of speed."""
    return "─" if line.startswith("─") else "  ".join(re.split(" {2,}", line)[:2])
