"""No figure in a page is typed by hand: every marked table says what its results file says."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
spec = importlib.util.spec_from_file_location("tables", ROOT / "benchmarks" / "tables.py")
assert spec is not None
assert spec.loader is not None
tables = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tables)
sys.path.pop(0)


@pytest.mark.parametrize("page", tables.PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_pages_say_what_was_measured(page: Path) -> None:
    text = page.read_text()
    assert tables.filled(text) == text, "run python benchmarks/tables.py"


def test_the_word_on_slow_links_is_the_one_that_was_measured() -> None:
    readme = " ".join((ROOT / "README.md").read_text().split())
    assert " ".join(tables.tables_processes.slow_link_word().split()) in readme


def test_every_table_stands_somewhere() -> None:
    used = {mark[1] for page in tables.PAGES for mark in tables.MARK.findall(page.read_text())}
    assert used == set(tables.TABLES)


def test_every_claim_has_a_readme_and_results_with_their_environment() -> None:
    claims = sorted(path.parent for path in (ROOT / "benchmarks").glob("*/main.py"))
    assert len(claims) >= 4
    for claim in claims:
        readme = (claim / "README.md").read_text()
        for heading in ("## Result", "## Environment", "## To reproduce"):
            assert heading in readme, f"{claim.name}: {heading}"
        results = list((claim / "results").glob("*.json"))
        assert results, claim.name
        for path in results:
            environment = json.loads(path.read_text())["environment"]
            assert {"cpu", "cores", "torch", "python"} <= environment.keys()
