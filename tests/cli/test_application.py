"""The table of subcommands: what it says of each is true, and asking for it costs next to nothing."""

from __future__ import annotations

import inspect
import resource
import subprocess
import sys

import pytest
from tests.cli.command import outcome

from wanspec.cli.application import LAB, PRODUCT, subcommand

HEAVY = ("numpy", "pydantic", "matplotlib", "wanspec.core.policy.adaptive", "wanspec.lab")
TRIALS = 5


@pytest.mark.parametrize("name", PRODUCT | LAB)
def test_the_table_has_the_first_sentence_of_each_commands_help(name: str) -> None:
    assert inspect.cleandoc(subcommand(name).help).partition("\n\n")[0].replace("\n", " ") == (PRODUCT | LAB)[name]


def test_help_lists_what_people_run_apart_from_the_lab() -> None:
    status, output = outcome("--help")
    product, lab = output.partition("Commands:")[2].split("Lab commands:")
    assert status == 0
    assert [name for name in PRODUCT | LAB if f"  {name} " in product] == list(PRODUCT)
    assert [name for name in PRODUCT | LAB if f"  {name} " in lab] == list(LAB)


def test_a_misspelt_command_is_answered_with_the_nearest() -> None:
    status, output = outcome("serv")
    assert (status, "Did you mean 'serve'?" in output) == (2, True)


def imported_by(*arguments: str) -> set[str]:
    """Which of the heavy modules `wanspec ARGUMENTS` imports."""
    program = f"""
import sys
from wanspec.__main__ import main
sys.argv[0] = "wanspec"
try:
    main()
finally:
    print(*[name for name in {HEAVY} if name in sys.modules], file=sys.stderr)
"""
    child = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True)
    return set(child.stderr.split())


def test_help_imports_nothing_heavy() -> None:
    assert imported_by("--help") == set()


@pytest.mark.parametrize("name", [name for name in PRODUCT if name != "demo"])
def test_a_product_commands_help_waits_for_neither_numpy_nor_the_lab(name: str) -> None:
    assert imported_by(name, "--help") <= {"pydantic"}  # typer's own


def cpu_s(*arguments: str) -> float:
    """CPU time of one child."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_help_takes_hardly_longer_than_importing_what_prints_it() -> None:
    pairs = [(cpu_s("-m", "wanspec", "--help"), cpu_s("-c", "import typer, rich.console")) for _ in range(TRIALS)]
    ours, least = (min(times) for times in zip(*pairs, strict=True))
    assert ours <= 2.2 * least
