"""Which branches of the cores no seed takes. A branch that is never taken is a branch the simulator proves nothing about.

The cores are imported with a mark at the beginning of each branch: an assignment to a list, so cheap that every seed is
measured. A mode says which modules are its cores, and excuses by name, with a reason, what no seed can take; every other
branch that is missed is a fault or a case that the simulator lacks, or dead code.
"""

from __future__ import annotations

import ast
import importlib.abc
import importlib.util
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Final

from tests.sim.engine.subject import measured_of

_MARKS: Final = "_marks_"


@dataclass(frozen=True, slots=True)
class Branch:
    """One way on from a statement of a core."""

    line: int
    marks: tuple[int, ...]
    """Any of them set says that it was taken."""


class Branches:
    """The branches of some modules, by name, and the modules with a mark in each.

    Branches are those of statements: the two ways of `if`, `while` and `for`, the cases of `match`. Left out is what
    cannot be taken by construction: what mypy proves unreachable (`assert_never`, a match that falls through), and the
    functions that decode what the network sends (`_untrusted`): the simulator sends messages, not bytes.
    """

    def __init__(self) -> None:
        self.by_name: dict[str, Branch] = {}
        self.trees: dict[str, ast.Module] = {}
        self.marks = 0

    def add(self, module: str, source: str) -> None:
        """Put marks into one module."""
        self.trees[module] = _Marker(self, module.rpartition(".")[2]).visit(ast.parse(source))

    def taken(self, marks: Sequence[int]) -> list[str]:
        """Name the branches that these marks prove."""
        return [n for n, branch in self.by_name.items() if any(marks[m] for m in branch.marks)]

    def missed(self, seeds: Mapping[str, int], excused: Collection[str]) -> list[str]:
        """Say which branches no seed takes and nothing excuses. `seeds`: how many take each."""
        return [
            f"{name} (line {branch.line})"
            for name, branch in self.by_name.items()
            if not seeds.get(name) and name not in excused
        ]

    def stale(self, seeds: Mapping[str, int], excused: Collection[str]) -> list[str]:
        """Say which excuses are of no use: their branch is taken, or is not there."""
        return [
            f"{name} ({f'{seeds[name]} seeds take it' if name in seeds else 'there is no such branch'})"
            for name in excused
            if seeds.get(name) or name not in self.by_name
        ]


def find_branches(modules: Mapping[str, Path]) -> Branches:
    """Read these modules, by name."""
    branches = Branches()
    for module, path in modules.items():
        branches.add(module, path.read_text(encoding="utf-8"))
    return branches


class Recorder:
    """Imports the cores with their marks, and tells which were set."""

    def __init__(self, modules: Mapping[str, Path]) -> None:
        self._modules = modules
        self._branches = find_branches(modules)
        self._marks = [0] * self._branches.marks

    def install(self) -> None:
        """Take over the import of the cores. Raises RuntimeError when one of them has been imported already."""
        early = self._branches.trees.keys() & sys.modules.keys()
        if early:
            raise RuntimeError(f"imported before it could be marked: {sorted(early)}")
        sys.meta_path.insert(0, _Importer(self._modules, self._branches.trees, self._marks))

    def take(self) -> bytes:
        """Return the marks set since the last time, a byte for each."""
        marks = bytes(self._marks)
        self._marks[:] = [0] * len(marks)
        return marks


_recorders: dict[str, Recorder] = {}
"""By mode: one in a process that was told to begin recording."""


def begin_recording(mode: str) -> None:
    """Call before anything else in a process whose seeds are to be recorded."""
    recorder = Recorder(measured_of(mode).modules)
    recorder.install()
    _recorders[mode] = recorder


def marks_of(mode: str) -> bytes:
    """Return the marks that were set in this process since the last time."""
    return _recorders[mode].take()


class _Importer(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the cores, and runs their marked form."""

    def __init__(
        self, modules: Mapping[str, Path], trees: dict[str, ast.Module], marks: list[int]
    ) -> None:
        self._modules = modules
        self._trees = trees
        self._marks = marks

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in self._trees:
            return None
        return importlib.util.spec_from_file_location(name, self._modules[name], loader=self)

    def exec_module(self, module: ModuleType) -> None:
        setattr(module, _MARKS, self._marks)
        name = module.__name__
        code = compile(self._trees[name], str(self._modules[name]), "exec", dont_inherit=True)
        exec(code, module.__dict__)


class _Marker(ast.NodeTransformer):
    """Inserts the marks and notes what they prove."""

    def __init__(self, branches: Branches, file: str) -> None:
        self._branches = branches
        self._where = [file]

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        return self._inside(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        return node if node.name.endswith("_untrusted") else self._inside(node)

    def _inside(self, node: ast.ClassDef | ast.FunctionDef) -> ast.AST:
        self._where.append(node.name)
        self.generic_visit(node)
        self._where.pop()
        return node

    def visit_If(self, node: ast.If) -> ast.AST:
        return self._two_ways(node, f"if {ast.unparse(node.test)}")

    def visit_While(self, node: ast.While) -> ast.AST:
        return self._two_ways(node, f"while {ast.unparse(node.test)}")

    def visit_For(self, node: ast.For) -> ast.AST:
        return self._two_ways(node, f"for {ast.unparse(node.target)} in {ast.unparse(node.iter)}")

    def _two_ways(self, node: ast.If | ast.While | ast.For, text: str) -> ast.AST:
        if len(self._where) == 1:
            return node  # decided on import, once
        self._note(f"{text}: yes", node.lineno, self._mark(node.body, node))
        self._note(f"{text}: no", node.lineno, self._mark(node.orelse, node))
        return self.generic_visit(node)

    def visit_Match(self, node: ast.Match) -> ast.AST:
        later: tuple[int, ...] = ()
        for case in reversed(node.cases):
            if _never(case.body):
                continue
            line, text = case.pattern.lineno, f"case {ast.unparse(case.pattern)}"
            if case.guard is not None:
                text += f" if {ast.unparse(case.guard)}"
            mark = self._mark(case.body, node)
            self._note(f"{text}: yes", line, mark)
            if later:
                self._note(f"{text}: no", line, *later)
            later = (*later, mark)
        return self.generic_visit(node)

    def _mark(self, body: list[ast.stmt], parent: ast.stmt) -> int:
        """Set a new mark at the beginning of these statements."""
        mark = self._branches.marks
        self._branches.marks += 1
        cell = ast.Subscript(ast.Name(_MARKS, ast.Load()), ast.Constant(mark), ast.Store())
        statement = ast.copy_location(ast.Assign([cell], ast.Constant(1)), (body or [parent])[0])
        body.insert(0, ast.fix_missing_locations(statement))
        return mark

    def _note(self, text: str, line: int, *marks: int) -> None:
        base = name = f"{'.'.join(self._where)}: {text}"
        number = 1
        while name in self._branches.by_name:
            number += 1
            name = f"{base} ({number})"
        self._branches.by_name[name] = Branch(line, marks)


def _never(body: list[ast.stmt]) -> bool:
    """Tell whether mypy proves that this is not reached."""
    return ast.unparse(body[0]).startswith("assert_never(")
