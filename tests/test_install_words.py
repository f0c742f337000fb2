"""What people are told to install is there: an extra of the folder, not a name on an index that nobody owns."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from wanspec.extras import how_to_install

ROOT = Path(__file__).parents[1]
TOLD = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("src/wanspec/**/*.py"))]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]


@pytest.mark.parametrize("file", TOLD, ids=[str(file.relative_to(ROOT)) for file in TOLD])
def test_nobody_is_told_to_install_from_an_index_what_is_on_none(file: Path) -> None:
    text = file.read_text("utf-8")
    assert not re.search(r"pip install[^\n]*[ '\"]wanspec", text)
    extras = re.findall(r"pip install '\.\[(\w+)\]'", text)
    extras += re.findall(r"how_to_install\([\"'](\w+)", text) + re.findall(r"check_installed\(.*extra=\"(\w+)", text)
    assert set(extras) <= set(EXTRAS)


def test_the_programs_own_words_are_the_docs() -> None:
    assert how_to_install("hf") == "pip install '.[hf]' in WANSpec's folder"
