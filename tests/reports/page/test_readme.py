"""README's table of verdicts against the records, and the files that it names."""

import json
import re
from pathlib import Path

import pandas as pd
import pytest

import harness
from reports.claims.files import claims_folder, load_claims
from reports.claims.judge import judge_claims
from reports.data.sources import discover

ROOT = Path(harness.__file__).resolve().parents[1]
FILES = ("README.md", "results/README.md", "results/gefen_quality.md")
ROW = re.compile(r"^\| ([^|]*)\| ([^|]+) \| (reproduced|refuted|inconclusive) \| [^|]+ \|$", re.M)


def test_the_table_of_verdicts_is_what_the_records_say() -> None:
    """Every verdict but "not tested", word by word; what has none at all is named below it."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    told, claim = {}, ""
    for first, subject, verdict in ROW.findall(text):
        named = re.search(r"\(`(\w+)`\)", first)
        claim = named[1] if named else claim  # an empty first column continues the row above
        assert (claim, subject) not in told
        told[claim, subject] = verdict
    judged = judge_claims(load_claims(claims_folder()), discover([ROOT / "results"]))
    claims = [item for item in judged if item.claim.role == "claim"]
    found = {(item.claim.id, item.subject): item.verdict.verdict for item in claims}
    assert told == {key: verdict for key, verdict in found.items() if verdict != "not tested"}
    for name in {name for name, _ in found} - {name for name, _ in told}:
        assert f"`{name}`" in text


@pytest.mark.parametrize("name", FILES)
def test_folders_files_and_links_that_are_named_exist(name: str) -> None:
    path = ROOT / name
    text = path.read_text(encoding="utf-8")
    links = {link for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text) if "://" not in link}
    assert [link for link in links if not (path.parent / link).exists()] == []
    named = set(re.findall(r"`((?:results|configs|tests|harness|reports|scripts)/[\w./]+)`", text))
    assert [item for item in named if not (ROOT / item).exists()] == []


def test_published_reports_show_the_plans_beside_them() -> None:
    """A report built before the last `gefen-plan --check results --save` is out of date."""
    plans = sorted((ROOT / "results").glob("*/plan.json"))
    assert plans
    for path in plans:
        said = {cell["id"]: cell["verdict"] for cell in json.loads(path.read_text())["cells"]}
        shown = pd.read_csv(path.parent / "report" / "plans.csv", dtype=str)
        assert dict(zip(shown["id"], shown["verdict"], strict=True)) == said, path
