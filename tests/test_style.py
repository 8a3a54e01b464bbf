"""How the code is written: names of files, comprehensions, docstrings.

Ruff has no rule for these.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator

import pytest

from tests.conftest import PROJECT

FILES = sorted(PROJECT.glob("pipeline/**/*.py"))
Comprehension = ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
FRAGMENTS = ("Of ", "As given", "Told ", "To be ", "By ", "In ", "Where ")


@pytest.fixture(scope="module")
def trees() -> dict[str, ast.Module]:
    """Each file of the package, by its path in the project."""
    found = {}
    for file in FILES:
        name = file.relative_to(PROJECT).as_posix()
        found[name] = ast.parse(file.read_text(encoding="utf-8"))
    return found


def own_nodes(statement: ast.stmt) -> Iterator[ast.AST]:
    """Yield what a statement is made of, but for statements inside it."""
    for child in ast.iter_child_nodes(statement):
        if not isinstance(child, ast.stmt):
            yield child
            yield from own_nodes(child)  # type: ignore[arg-type]


def comprehensions_of(trees: dict[str, ast.Module]) -> Iterator[tuple[str, Comprehension]]:
    """Yield each comprehension with the place where it stands."""
    for name, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, COMPREHENSIONS):
                yield f"{name}:{node.lineno}", node


def test_a_comprehension_has_one_for(trees: dict[str, ast.Module]) -> None:
    found = list(comprehensions_of(trees))
    assert len(found) > 100
    assert [place for place, one in found if len(one.generators) > 1] == []


def test_a_comprehension_has_no_conditional_expression_inside(
    trees: dict[str, ast.Module],
) -> None:
    wrong = []
    for place, comprehension in comprehensions_of(trees):
        if any(isinstance(one, ast.IfExp) for one in ast.walk(comprehension)):
            wrong.append(place)
    assert wrong == []


def test_a_statement_has_one_comprehension(trees: dict[str, ast.Module]) -> None:
    wrong = []
    for name, tree in trees.items():
        for statement in ast.walk(tree):
            if isinstance(statement, ast.stmt):
                found = [one for one in own_nodes(statement) if isinstance(one, COMPREHENSIONS)]
                if len(found) > 1:
                    wrong.append(f"{name}:{statement.lineno}")
    assert wrong == []


def test_no_two_files_have_one_name_but_a_step_and_its_job() -> None:
    counts = Counter(file.name for file in FILES if file.name != "__init__.py")
    twice = {name for name, count in counts.items() if count > 1}
    steps = {file.name for file in PROJECT.glob("pipeline/steps/*.py")}
    jobs = {file.name for file in PROJECT.glob("pipeline/jobs/*.py")}
    assert twice <= steps & jobs
    assert max(counts.values()) == 2


def test_a_docstring_is_a_sentence(trees: dict[str, ast.Module]) -> None:
    wrong = []
    for file, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                wrong += [f"{file}: {text}" for text in fragments(ast.get_docstring(node) or "")]
    assert wrong == []


def fragments(docstring: str) -> list[str]:
    """Return the lines, and what is said of arguments, that begin as no sentence does."""
    found = []
    for line in docstring.splitlines():
        text = line.strip()
        name, colon, entry = text.partition(": ")
        if colon and name.isidentifier():
            text = entry
        if text.startswith(FRAGMENTS):
            found.append(text)
    return found
