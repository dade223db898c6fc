"""The list of mutants is kept: each names one place, and what caught it is recorded."""

import re
from pathlib import Path

import pytest

from .mutants import MUTANTS, ROOT, Mutant


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_names_one_place(mutant: Mutant) -> None:
    assert (ROOT / mutant.file).read_text().count(mutant.old) == 1
    assert mutant.old != mutant.new
    assert all((ROOT / "tests" / f"{file}.py").exists() for file in mutant.tests.split())


def test_what_caught_each_is_recorded(project_root: Path) -> None:
    recorded = re.findall(r"^\| [1-8] \| (.+?) \| `(test_\w+)\.py::", (project_root / "tests" / "README.md").read_text(), re.M)
    assert {name for name, _ in recorded} == {mutant.name for mutant in MUTANTS}
    assert len(recorded) == len(MUTANTS)
