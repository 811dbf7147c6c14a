"""What names the project elsewhere: version, citation, third parties, the script of CI."""

import os
import re
import subprocess
import tomllib
from itertools import chain
from pathlib import Path

import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]


def test_ci_runs_check_then_every_test() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert script.read_text().startswith("#!/usr/bin/env bash\n")
    assert "set -euo pipefail" in script.read_text()
    assert re.search(r"for target in check test test-slow;", script.read_text())
    subprocess.run(["bash", "-n", str(script)], check=True)


def test_one_version_everywhere() -> None:
    version = (ROOT / "VERSION").read_text().strip()
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert re.fullmatch(r"\d+\.\d+\.\d+", version)
    assert citation["version"] == version
    assert PROJECT["dynamic"] == ["version"]
    assert PYPROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"file": "VERSION"}


def test_citation_names_the_paper() -> None:
    paper = yaml.safe_load((ROOT / "CITATION.cff").read_text())["preferred-citation"]
    assert paper["title"].startswith("LLM2Vec: Large Language Models Are Secretly Powerful")
    assert paper["authors"][0]["family-names"] == "BehnamGhader"
    assert len(paper["authors"]) == 6
    assert paper["year"] == 2024
    assert "2404.05961" in paper["url"]


def test_third_party_names_every_direct_dependency_and_wheel() -> None:
    from llm2vec.assets import ASSETS

    text = (ROOT / "THIRD_PARTY.md").read_text()
    named = [*PROJECT["dependencies"], *chain(*PROJECT["optional-dependencies"].values())]
    names = {Requirement(text).name for text in named}
    names |= {asset.package.replace("==", " ") for asset in ASSETS.values()}
    assert {name for name in names if name not in text} == set()


def test_third_party_names_every_model_of_the_registry() -> None:
    from llm2vec.registry import MODELS

    text = (ROOT / "THIRD_PARTY.md").read_text()
    assert {m.hub_id for m in MODELS.values() if m.hub_id not in text} == set()
