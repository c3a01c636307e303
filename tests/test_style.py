"""What the house asks of every file: names that say something, and a docstring on whatever others may use."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("kernels", "baselines", "profiling", "suites", "plots", "integrations")
NAMED = (*PACKAGES, "tests")
GENERIC = {"found", "mine", "one", "said", "told", "usual", "theirs", "main"}
KEPT = {
    ("suites/cli.py", "main"),  # the command line in one process, as tests call it
    ("suites/__main__.py", "main"),  # the entry point of pyproject.toml
    ("suites/doctor.py", "found"),  # a column of `doctor`, and a key of `doctor --json`
}
Function = ast.FunctionDef | ast.AsyncFunctionDef


@cache
def trees(package: str) -> dict[str, ast.Module]:
    """The syntax of each file by its path from the root."""
    paths = sorted((ROOT / package).rglob("*.py"))
    return {str(path.relative_to(ROOT)): ast.parse(path.read_text()) for path in paths}


def bound_names(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Names that a file gives to anything, attributes included, and their lines."""
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name, ctx=ast.Store()) | ast.arg(arg=name) | ast.ExceptHandler(name=str(name)):
                yield name, node.lineno
            case ast.Attribute(attr=name, ctx=ast.Store()) | ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                yield name, node.lineno
            case ast.alias(asname=str(name)):
                yield name, node.lineno


@pytest.mark.parametrize("package", NAMED)
@pytest.mark.slow
def test_names_say_what_they_hold(package: str) -> None:
    generic = [
        f"{path}:{line}: {name}"
        for path, tree in trees(package).items()
        for name, line in bound_names(tree)
        if name.strip("_") in GENERIC and (path, name) not in KEPT
    ]
    assert generic == [], "name the thing itself"


def is_public(node: ast.AST) -> bool:
    return isinstance(node, Function | ast.ClassDef) and not node.name.startswith("_")


def members(node: ast.ClassDef | ast.Module) -> Iterator[Function | ast.ClassDef]:
    """Public functions and classes right inside, those under an `if` too."""
    for child in node.body:
        for part in child.body if isinstance(child, ast.If) else [child]:
            if is_public(part):
                assert isinstance(part, Function | ast.ClassDef)
                yield part


def is_stub(node: ast.AST) -> bool:
    """Whether a function's body is `...`: a protocol's, which its class describes."""
    return isinstance(node, Function) and ast.unparse(node.body[0]) == "..."


@cache
def classes() -> dict[str, ast.ClassDef]:
    """Every class of the packages by its name."""
    nodes = [node for package in PACKAGES for tree in trees(package).values() for node in ast.walk(tree)]
    return {node.name: node for node in nodes if isinstance(node, ast.ClassDef)}


def says(node: ast.ClassDef, method: str) -> bool:
    """Whether a class, or one that it derives from, has a docstring for a method."""
    if any(part.name == method and ast.get_docstring(part) for part in members(node)):
        return True
    bases = (ast.unparse(base).split("[")[0].rpartition(".")[2] for base in node.bases)
    return any(says(classes()[base], method) for base in bases if base in classes() and base != node.name)


def undescribed(tree: ast.Module) -> Iterator[str]:
    if not ast.get_docstring(tree):
        yield "the module"
    for node in members(tree):
        if not ast.get_docstring(node):
            yield node.name
        for method in members(node) if isinstance(node, ast.ClassDef) else ():
            assert isinstance(node, ast.ClassDef)
            if not is_stub(method) and not says(node, method.name):
                yield f"{node.name}.{method.name}"


@pytest.mark.parametrize("package", PACKAGES)
def test_whatever_is_public_has_a_docstring(package: str) -> None:
    lacking = [f"{path}: {name}" for path, tree in trees(package).items() for name in undescribed(tree)]
    assert lacking == []


def test_the_checks_see_what_they_forbid() -> None:
    tree = ast.parse(
        "def main(one):\n    for found in one:\n        self.said = found\n\n\nclass A:\n    def b(self): pass"
    )
    assert {name for name, _ in bound_names(tree)} >= {"main", "one", "found", "said"}
    assert list(undescribed(tree)) == ["the module", "main", "A", "A.b"]
