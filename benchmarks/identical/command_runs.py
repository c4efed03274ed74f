"""What the command line prints and writes: help, training and comparing on small settings, and what it refuses."""

from __future__ import annotations

import contextlib
import json
import os
import re
import runpy
import sys
from pathlib import Path
from typing import Any

import masks

FILE = str(Path(__file__).with_name("own_experiments.py"))
RINGS, HALVES, ECHO = "{file}:rings", "{file}:halves", "{file}:echo"
ROWS = "backprop,synthetic,synthetic:linear,mixed(0.5),delayed(1),zero"
#: words, and how many processes that takes; {folder} is the run's own
COMMANDS: dict[str, tuple[list[str], int]] = {
    "train": (f"train {RINGS} --json {{folder}}/r.json --save {{folder}}/run --validate-every 7".split(), 1),
    "train, many options": (
        f"train {RINGS} --json {{folder}}/r.json --method mixed(0.5) --estimator linear --warmup 3 --clip-norm 1 "
        "--group *.bias:weight_decay=0.1 --freeze 0.weight --batch-size 16 --optimizer sgd(lr=0.1) --guard 5 "
        "--early-stopping 2 --seed 4 --estimator-lr 0.5".split(),
        1,
    ),
    "train, inputs": (
        f"train {RINGS} --json {{folder}}/r.json --inputs linear --feedback-delay 2 --epochs 2".split(),
        1,
    ),
    "train, two workers": (
        f"train {RINGS} --json {{folder}}/r.json --workers 2 --place 1,2 --feedback-delay 1 --no-progress "
        "--save {folder}/run --save-every 7".split(),
        2,
    ),
    "compare": (f"compare {RINGS} --methods {ROWS} --json {{folder}}/r.json --epochs 2 --seeds 2".split(), 1),
    "compare, recurrent": (f"compare {ECHO} --json {{folder}}/r.json".split(), 1),
    "compare, two workers": (
        f"compare {HALVES} --workers 2 --methods delayed(1),gpipe --epochs 2 --json {{folder}}/r.json "
        "--no-progress".split(),
        2,
    ),
    "data list": (["data", "list", "--root", "{folder}"], 1),
    "version": (["--version"], 1),
}
BAD: dict[str, list[str]] = {
    "command": ["compere"],
    "option": ["compare", "--epoch-count", "3"],
    "extra": ["compare", "fashion-mlp", "fashion-cnn"],
    "experiment": ["compare", "fashion-mpl"],
    "no Python file": ["compare", "{folder}/good:good"],
    "file missing": ["compare", "{folder}/none.py:f"],
    "no function named": ["compare", "{folder}/good.py"],
    "function missing": ["compare", "{folder}/good.py:bad"],
    "no functions": ["compare", "{folder}/empty.py:f"],
    "syntax error": ["compare", "{folder}/broken.py:f"],
    "import raises": ["compare", "{folder}/raises.py:f"],
    "import exits": ["compare", "{folder}/exits.py:f"],
    **{name: ["compare", f"{{file}}:{name}"] for name in (
        "raises", "exits", "modelexits", "dataexits", "onelist", "nothing", "needs", "wrong", "badcut", "odd")},
    **{f"compare {option} {value}": ["compare", RINGS, option, value] for option, value in (
        ("--methods", "backprop,sintetic"), ("--methods", ","), ("--methods", "zero,zero"), ("--estimator", "liner"),
        ("--methods", "synthetic:mpl"), ("--methods", "mixed(1.5)"), ("--methods", "backprop:linear"),
        ("--epochs", "-1"), ("--epochs", "ten"), ("--batch-size", "0"), ("--threads", "-1"), ("--threads", "99999"),
        ("--seed", "-1"), ("--seed", "2147483649"), ("--seeds", "0"), ("--seeds", "99999"), ("--target", "2"),
        ("--methods", "delayed(9999)"), ("--methods", "delayed(1e30)"), ("--json", "{folder}"), ("--cuts", ""),
        ("--json", "{folder}/none/r.json"), ("--optimizer", "sgdd"), ("--optimizer", "sgd(lrr=1)"), ("--stages", "0"),
        ("--stages", "99"), ("--queue-depth", "3"), ("--link", "10ms"), ("--message-dtype", "int8"),
        ("--trace", "{folder}/t.json"), ("--config", "{folder}/none.toml"), ("--config", "{folder}/odd.toml"),
        ("--workers", "1"), ("--workers", "99"))},
    "compare --cuts and --stages": ["compare", RINGS, "--cuts", "2", "--stages", "2"],
    "compare --workers, method": ["compare", RINGS, "--workers", "2", "--methods", "gpipee"],
    "compare, recurrent, method": ["compare", ECHO, "--methods", "bptt,onlin"],
    "compare, recurrent, cuts": ["compare", ECHO, "--cuts", "2"],
    "compare, recurrent, workers": ["compare", ECHO, "--workers", "2"],
    "train, recurrent": ["train", ECHO],
    **{f"train {option} {value}": ["train", RINGS, "--no-progress", option, value] for option, value in (
        ("--method", "sintetic"), ("--estimator", "liner"), ("--feedback", "real"), ("--feedback-every", "0"),
        ("--feedback-delay", "-1"), ("--warmup", "-1"), ("--inputs", "conv"), ("--clip-norm", "0"), ("--guard", "0.5"),
        ("--clip-scope", "layer"), ("--group", "*.bias"), ("--group", "*: lrr=1"), ("--freeze", "nothing"),
        ("--device", "warp"), ("--autocast", "float8"), ("--workers", "0"), ("--workers", "65"), ("--place", "2,1"),
        ("--restarts", "2"), ("--queue-depth", "3"), ("--link-key", "nowhere.key"), ("--early-stopping", "0"),
        ("--save-every", "3"), ("--resume", "{folder}/none"))},
    "train --workers --place": ["train", RINGS, "--workers", "2", "--place", "1,x"],
    "train --workers --message-dtype": ["train", RINGS, "--workers", "2", "--message-dtype", "float64"],
    "train --resume --save": ["train", "--resume", "{folder}", "--save", "{folder}"],
    "data fetch": ["data", "fetch", "mnits"],
    "data fetch --source": ["data", "fetch", "mnist", "--source", "ftp"],
    "data fetch --from": ["data", "fetch", "mnist", "--from", "{folder}/none", "--root", "{folder}"],
}  # fmt: skip
FILES = {
    "good.py": "from own_experiments import rings\ndef good():\n    return rings()\ndef other():\n    return rings()\n",
    "broken.py": "def f():\n    return (\n\ndef g(:\n",
    "raises.py": "x = 1\nx.nothing\ndef f():\n    pass\n",
    "exits.py": "import sys\nsys.exit('bye')\ndef f():\n    pass\n",
    "empty.py": "",
    "odd.toml": "epoch = 3\n",
}


def run(scenario: dict[str, Any], scratch: Path) -> Any:
    if scenario["kind"] == "help":
        return helps(scratch)
    if scenario["kind"] == "bad commands":
        for name, text in FILES.items():
            (scratch / name).write_text(text)
        found = {}
        preload()
        for name, words in BAD.items():
            if not name.startswith(tuple(scenario["first"])):
                continue
            code, out, err = syngrad(words, scratch)
            found[name] = {"code": code, "out": masks.printed(out), "err": masks.printed(err)}
        return found
    code, out, err = syngrad(scenario["words"], scratch)
    file = scratch / "r.json"
    document = json.loads(file.read_text()) if file.exists() else None
    text = json.dumps(masks.masked(document), ensure_ascii=False)
    text = text.replace(str(scratch), "{folder}").replace(FILE, "{file}")
    mask = masks.compared if scenario["words"][0] == "compare" else masks.printed
    saved = {str(path.relative_to(scratch)): tensors(path) for path in sorted(scratch.glob("run/*/model.safetensors"))}
    return {"code": code, "out": mask(out), "err": masks.printed(err), "file": json.loads(text), "saved": saved}


def preload() -> None:
    """Commands that come to nothing, in this process: what they load no fork has to load again."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        for words in (
            ["--version"],
            ["compare", FILE + ":raises"],
            ["train", FILE + ":raises"],
            ["data", "fetch", "x"],
        ):
            sys.argv = ["syngrad", *words]
            with contextlib.suppress(SystemExit):
                runpy.run_module("syngrad", run_name="__main__", alter_sys=True)


def tensors(path: Path) -> Any:
    from safetensors.torch import load_file

    return load_file(path)


def helps(scratch: Path) -> dict[str, str]:
    """The help of every command, found from the one above it."""
    found: dict[str, str] = {}
    waiting: list[list[str]] = [[]]
    preload()
    while waiting:
        words = waiting.pop()
        _, out, err = syngrad([*words, "--help"], scratch)
        found[" ".join(["syngrad", *words])] = out + err
        _, _, listed = out.partition("\nCommands:\n")
        waiting += [[*words, name] for name in re.findall(r"^  (\S+)", listed, re.MULTILINE)]
    return found


def syngrad(words: list[str], scratch: Path) -> tuple[int, str, str]:
    """`python -m syngrad` with these words, in a fork: its code, what it prints, and its errors."""
    given = [word.replace("{folder}", str(scratch)).replace("{file}", FILE) for word in words]
    files = [scratch / f".{name}" for name in ("out", "err")]
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            for number, file in enumerate(files, 1):
                os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), number)
            os.environ |= {"COLUMNS": "80", "LINES": "40", "TERMINAL_WIDTH": "80", "NO_COLOR": "1"}
            sys.argv = ["syngrad", *given]
            runpy.run_module("syngrad", run_name="__main__", alter_sys=True)
            code = 0
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 0 if ended.code is None else 1
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    said = [file.read_text().replace(str(scratch), "{folder}").replace(FILE, "{file}") for file in files]
    return code, said[0], said[1]
