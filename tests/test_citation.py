"""How to cite: the file says what the package says, in a form that its readers know."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import yaml

from wanspec import __version__

CITATION = Path(__file__).parents[1] / "CITATION.cff"


def test_the_citation_is_of_this_version() -> None:
    assert yaml.safe_load(CITATION.read_text("utf-8"))["version"] == __version__


def test_the_citation_keeps_the_rules_of_its_format() -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.citation-file-format", str(CITATION)]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr
