"""`syngrad compare --answer`: one process, as many workers as there are cores, other links; one answer at the end.

Each part is printed when it is done. One that fails leaves its error and the others' results.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from syngrad.checks import check_whole
from syngrad.cli.options import complain, instead
from syngrad.cli.running import check_files, documented, finish, shown
from syngrad.errors import SyngradError
from syngrad.startup import INTERRUPTED

if TYPE_CHECKING:
    from syngrad.report.three_parts import Parts

#: options that only a comparison of rows that the user has chosen takes
REFUSED = ("methods", "link", "memory", "queue_depth", "message_dtype", "trace")
#: rows over workers: the best of each kind of rival, and ours
ROWS = ("alone", "alone(threads)", "ddp", "1f1b", "delayed", "synthetic:local", "synthetic")
#: workers that the plan lays out where there is one core: links between two machines are asked about all the same
LEAST = 2


def answer(options: Mapping[str, Any], config: Mapping[str, Any], command: str) -> int:
    """All three parts, and what follows from them.

    Args:
        options: of the command, resolved.
        config: the same, as results files keep it.
        command: what to type to repeat it.
    """
    from syngrad.compare.base import WHICH_IS_BETTER, check_target, metric_named
    from syngrad.compare.over_workers import MOST
    from syngrad.experiments import load
    from syngrad.report.three_parts import Parts

    check_files(options, ("json", "html"))
    experiment = load(options["experiment"], **instead(options))
    stages = len(experiment.cuts) + 1 if experiment.cuts else int(experiment.stages or 1)
    asked = options["workers"]
    workers = min(cores(), stages) if asked is None else check_whole("workers", asked, LEAST, MOST)
    check_target(options["target"], *metric_named(experiment), WHICH_IS_BETTER)
    parts, failures, code = Parts(), list[BaseException](), 0
    if workers < LEAST:
        one_stage = f"{experiment.name} is one stage; --stages 2 cuts it"
        why = "this machine has one core" if cores() < LEAST else one_stage
        parts.left_out.append(f"Several workers were left out: {why}.")
    steps: dict[str, Callable[[], int]] = {"In one process": lambda: _in_one_process(parts, options, config)}
    if workers >= LEAST:
        steps[f"Over {workers} workers"] = lambda: _over_workers(parts, workers, options, config)
    steps["Other links"] = lambda: _other_links(parts, max(workers, LEAST), options)
    for k, (title, step) in enumerate(steps.items(), 1):
        print(f"{k}. {title}\n", flush=True)
        try:
            code = step()
        except KeyboardInterrupt:
            complain("interrupted")
            code = INTERRUPTED
        except (Exception, SystemExit) as error:
            failures.append(error)
            parts.left_out.append(f"{title}: it failed.")
            if isinstance(error, SyngradError) and len(failures) > 1:
                complain(f"error: {error}")
        print(flush=True)
        if code:
            parts.left_out.append("It was interrupted: what had not been run is missing.")
            break
    if parts.said or parts.plan is not None:
        _publish(parts, options, config, command)
    if failures:
        raise failures[0]
    return code


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _in_one_process(parts: Parts, options: Mapping[str, Any], config: Mapping[str, Any]) -> int:
    from syngrad.compare import ROWS as ROWS_OF_ONE
    from syngrad.compare import Comparison
    from syngrad.experiments import load
    from syngrad.report.table import table

    common = {name: options[name] for name in ("estimator", "seed", "seeds", "threads", "target")}
    comparison = Comparison(load(options["experiment"], **instead(options)), ROWS_OF_ONE, **common)

    def publish() -> None:
        own = {**config, "answer": None, "workers": None, "methods": comparison.labels}
        parts.documents["one_process"], parts.one, parts.said["one"] = documented(comparison, own)
        print("\n".join(table(parts.one)))

    return finish(comparison, options["progress"], publish)


def _over_workers(parts: Parts, workers: int, options: Mapping[str, Any], config: Mapping[str, Any]) -> int:
    from syngrad.compare.over_workers import WorkersComparison
    from syngrad.report.table import table

    common = {name: options[name] for name in ("estimator", "seed", "seeds", "threads", "target")}
    traced = {"trace": True} if options["html"] is not None else {}
    comparison = WorkersComparison(
        options["experiment"], workers, ROWS, instead=instead(options), options=traced, **common
    )
    first = len(parts.one.lines) if parts.one is not None else 0

    def publish() -> None:
        own = {**config, "answer": None, "workers": workers, "methods": comparison.labels}
        made = documented(comparison, own, comparison.accounts, None, first)
        parts.documents["workers"], parts.workers, parts.said["workers"] = made
        print("\n".join(table(parts.workers)))

    return finish(comparison, options["progress"], publish)


def _other_links(parts: Parts, workers: int, options: Mapping[str, Any]) -> int:
    from syngrad.planner import plan
    from syngrad.report.three_parts import links_table

    given = {name: value for name, value in instead(options).items() if value is not None}
    with shown(options["progress"]) as observer:
        observer.begin(1)
        observer.note("a plan: measuring the model and the machine")
        parts.plan = plan(options["experiment"], workers, instead=given)
        observer.advance()
    print("\n".join(links_table(parts.plan, parts.measured)))
    return 0


def _publish(parts: Parts, options: Mapping[str, Any], config: Mapping[str, Any], command: str) -> None:
    """Write the files first: what is printed can be lost."""
    from syngrad import results
    from syngrad.report.table import machine_line
    from syngrad.report.three_parts import answer_text, answered, wrapped

    made, environment = answered(parts), results.environment(options["threads"])
    try:
        if options["json"] is not None:
            document = {
                "config": dict(config),
                "environment": environment,
                "verdict": made.to_dict(),
                **{name: results.finite(each) for name, each in parts.documents.items()},
                "plan": None if parts.plan is None else parts.plan.to_dict(),
            }
            results.write_text(options["json"], json.dumps(document, indent=1, ensure_ascii=False) + "\n")
        if options["html"] is not None:
            from syngrad.report.three_parts_page import answer_page

            results.write_text(options["html"], answer_page(parts, made, command, environment))
    finally:
        print("\n".join(["The answer\n", *answer_text(made), "", *wrapped(machine_line(environment))]))
    if options["html"] is not None:
        print(f"\nthe report: {options['html']}")


__all__ = ["REFUSED", "answer"]
