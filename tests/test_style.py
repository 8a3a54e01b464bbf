"""How the code is written: names of files, comprehensions, docstrings.

Ruff has no rule for these.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import PROJECT

FILES = sorted(PROJECT.glob("pipeline/**/*.py"))
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
FRAGMENTS = ("Of ", "As given", "Told ", "To be ", "By ", "In ", "Where ")


def id_of(file: Path) -> str:
    return file.relative_to(PROJECT).as_posix()


@pytest.fixture(params=FILES, ids=id_of)
def tree(request: pytest.FixtureRequest) -> ast.Module:
    return ast.parse(request.param.read_text(encoding="utf-8"))


def own_nodes(statement: ast.stmt) -> Iterator[ast.AST]:
    """Yield what a statement is made of, but for statements inside it."""
    for child in ast.iter_child_nodes(statement):
        if not isinstance(child, ast.stmt):
            yield child
            yield from own_nodes(child)  # type: ignore[arg-type]


def comprehensions(node: ast.AST) -> list[ast.AST]:
    return [one for one in ast.walk(node) if isinstance(one, COMPREHENSIONS)]


def test_a_comprehension_has_one_for(tree: ast.Module) -> None:
    wrong = [one.lineno for one in comprehensions(tree) if len(one.generators) > 1]
    assert wrong == []


def test_a_comprehension_has_no_conditional_expression_inside(tree: ast.Module) -> None:
    wrong = []
    for comprehension in comprehensions(tree):
        if any(isinstance(one, ast.IfExp) for one in ast.walk(comprehension)):
            wrong.append(comprehension.lineno)
    assert wrong == []


def test_a_statement_has_one_comprehension(tree: ast.Module) -> None:
    wrong = []
    for statement in ast.walk(tree):
        if isinstance(statement, ast.stmt):
            found = [one for one in own_nodes(statement) if isinstance(one, COMPREHENSIONS)]
            if len(found) > 1:
                wrong.append(statement.lineno)
    assert wrong == []


def test_no_two_files_have_one_name_but_a_step_and_its_job() -> None:
    counts = Counter(file.name for file in FILES if file.name != "__init__.py")
    twice = {name for name, count in counts.items() if count > 1}
    steps = {file.name for file in PROJECT.glob("pipeline/steps/*.py")}
    jobs = {file.name for file in PROJECT.glob("pipeline/jobs/*.py")}
    assert twice <= steps & jobs
    assert max(counts.values()) == 2


def test_a_docstring_is_a_sentence(tree: ast.Module) -> None:
    wrong = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            for line in (ast.get_docstring(node) or "").splitlines():
                text = line.strip()
                name, colon, entry = text.partition(": ")
                if colon and name.isidentifier():
                    text = entry
                if text.startswith(FRAGMENTS):
                    wrong.append(text)
    assert wrong == []
