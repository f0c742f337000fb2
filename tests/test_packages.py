"""What pyproject.toml says of packages, held against what the code imports."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest
from tests.lowest import PYPROJECT, lowest

SOURCE = PYPROJECT.parent / "src"
PROJECT = tomllib.loads(PYPROJECT.read_text("utf-8"))["project"]
EXTRAS = {name: group for name, group in PROJECT["optional-dependencies"].items() if name not in {"all", "test", "clients", "dev", "docs"}}
USED = [*PROJECT["dependencies"], *(requirement for group in EXTRAS.values() for requirement in group)]
DISTRIBUTIONS = {"google": "protobuf", "grpc": "grpcio", "llama_cpp": "llama-cpp-python", "pydantic_core": "pydantic"}
"""Where an imported name is not the package's own; pydantic names the one pydantic-core that it works with."""
INTERNAL = {"h11": "h11", "prometheus_client.utils": "prometheus-client", "typer.core": "typer", "uvicorn.protocols": "uvicorn"}
"""Modules whose authors do not promise to keep what we use of them, with their packages."""


@cache
def imported(*rooms: str) -> frozenset[str]:
    """Every module that the code imports, or that of some rooms, as `uvicorn.protocols.http.h11_impl`."""
    found = set()
    for node in nodes(*rooms):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module or "")
    return frozenset(found)


@cache
def named() -> frozenset[str]:
    """The same, and `typer.core` of `import typer`."""
    dotted = (node for node in nodes() if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name))
    return imported() | {f"{node.value.id}.{node.attr}" for node in dotted if isinstance(node.value, ast.Name)}


@cache
def nodes(*rooms: str) -> tuple[ast.AST, ...]:
    folders = [SOURCE / "wanspec" / room for room in rooms or ("",)]
    return tuple(node for folder in folders for path in folder.rglob("*.py") for node in ast.walk(ast.parse(path.read_text("utf-8"))))


def name_of(requirement: str) -> str:
    return re.split(r"[^\w.-]", requirement)[0].lower().replace("_", "-")


def packages_imported(*rooms: str) -> set[str]:
    tops = {name.partition(".")[0] for name in imported(*rooms)} - set(sys.stdlib_module_names) - {"wanspec"}
    return {DISTRIBUTIONS.get(name, name.replace("_", "-")) for name in tops}


def test_what_is_imported_is_declared() -> None:
    assert packages_imported() >= {"grpcio", "numpy", "uvicorn"}
    assert packages_imported() - {name_of(requirement) for requirement in USED} == set()


def test_what_everybody_installs_is_imported() -> None:
    assert {name_of(requirement) for requirement in PROJECT["dependencies"]} - packages_imported() == set()


def test_the_product_imports_nothing_but_what_everybody_installs() -> None:
    base = {name_of(requirement) for requirement in PROJECT["dependencies"]}
    assert packages_imported("core", "transport", "engines/bundled", "telemetry", "serving", "cli") - base == set()


def test_all_is_every_extra_for_users_but_those_that_bring_an_engine_of_their_own() -> None:
    (everything,) = PROJECT["optional-dependencies"]["all"]
    assert set(re.findall(r"\w+", everything)) - {"wanspec"} == EXTRAS.keys() - {"deploy", "train", "vllm"}


@pytest.mark.parametrize("requirement", USED)
def test_every_package_has_a_lower_bound(requirement: str) -> None:
    assert "==" in requirement or lowest(requirement)


@pytest.mark.parametrize(("module", "package"), INTERNAL.items())
def test_a_package_whose_internals_are_used_has_an_upper_bound(module: str, package: str) -> None:
    assert any(f"{name}.".startswith(f"{module}.") for name in named()), f"nobody imports {module} any more: take it off this list"
    (requirement,) = (requirement for requirement in USED if name_of(requirement) == package)
    assert "<" in requirement


def test_no_private_module_of_another_package_is_imported() -> None:
    assert not [name for name in imported() if re.search(r"\._[a-z]", name) and not name.startswith("wanspec.")]


def test_the_oldest_version_is_the_lower_bound() -> None:
    assert lowest("typer>=0.19,<0.30") == "typer==0.19"
    with pytest.raises(ValueError, match=r"'typer<1' has no lower bound; write one: name>=version"):
        lowest("typer<1")


def test_the_environments_are_made_of_extras_that_there_are() -> None:
    asked = re.findall(r"'\.\[([\w,]+)\]'", Path(PYPROJECT.parent / "Makefile").read_text("utf-8"))
    assert set(",".join(asked).split(",")) - set(PROJECT["optional-dependencies"]) == set()
