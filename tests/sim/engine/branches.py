"""Which branches of the cores no seed takes. A branch that is never taken is a branch the simulator proves nothing about.

The cores are imported with a mark at the beginning of each branch: an assignment to a list, so cheap that every seed is
measured. Those that no seed can take are excused by name in `EXCUSED`, each with its reason; every other one that is
missed is a fault or a case that the simulator lacks, or dead code.
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
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from tests.sim.engine.outcome import Outcome

ROOT: Final = Path(__file__).parents[3]
SHELL_ONLY: Final = ("__init__", "calls")
"""Modules used by the shells alone: the wire form of calls."""
_MARKS: Final = "_marks_"

_TOO_MANY: Final = "needs thousands of peers; a unit test has a smaller limit"
_MANY: Final = "only from 128 members on, as in tests.sim.scale; a unit test has a smaller limit"
_LYING_LEAD: Final = (
    "an honest lead asks all members first, see checkers.all_prepared; the rest is a unit test"
)
EXCUSED: Final = {
    "lead.Lead._propose_view: if len(members) < MEMBERS_MAX: no": _TOO_MANY,
    "leases.Leases.renew: if trainer not in self._held and len(self._held) >= TRAINERS_MAX: yes": _TOO_MANY,
    "patience.Patience.let_in: if len(self._let_in) > _PEERS_MAX: yes": _TOO_MANY,
    "pulse.Pulse.heard: if len(self._heard_s) > PEERS_MAX: yes": _TOO_MANY,
    "lead.Lead._review: if self._hold_back(now_s, urgent=True): yes": _MANY,
    "lead.Lead._review: if self._hold_back(now_s, urgent=bool(gone)): yes": _MANY,
    "lead.Lead._plan_changes: if self.phase is not Phase.DEALING or self._changed_at_s == -math.inf: no": _MANY,
    "wiring.Wiring.update: if known + missing < len(everybody): yes": "only with more replicas of a stage than runs of many seeds have; there is a unit test",
    "lead.Lead._conclude: if not self._coverage.complete: yes":
        "a claim that comes so late is fenced at once, but by a lead that hears too few and is then told all at one blow",
    "member.Ledger._learn: if self.me in record.view: yes": _LYING_LEAD,
}  # fmt: skip
"""Name of a branch -> why no seed can take it."""


def cores() -> dict[str, Path]:
    """Return the modules whose branches count, by name."""
    ledger = sorted((ROOT / "protocols" / "ledger").glob("*.py"))
    return {f"protocols.ledger.{path.stem}": path for path in ledger if path.stem not in SHELL_ONLY}


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


def find_branches() -> Branches:
    """Read all cores."""
    branches = Branches()
    for module, path in cores().items():
        branches.add(module, path.read_text(encoding="utf-8"))
    return branches


class Recorder:
    """Imports the cores with their marks, and tells which were set."""

    def __init__(self, branches: Branches) -> None:
        self._marks = [0] * branches.marks
        self._branches = branches

    def install(self) -> None:
        """Take over the import of the cores. Raises RuntimeError when one of them has been imported already."""
        early = self._branches.trees.keys() & sys.modules.keys()
        if early:
            raise RuntimeError(f"imported before it could be marked: {sorted(early)}")
        sys.meta_path.insert(0, _Importer(self._branches.trees, self._marks))

    def take(self) -> bytes:
        """Return the marks set since the last time, a byte for each."""
        marks = bytes(self._marks)
        self._marks[:] = [0] * len(marks)
        return marks


_recorders: list[Recorder] = []
"""One in a process that was told to begin recording."""


def begin_recording() -> None:
    """Call before anything else in a process whose seeds are to be recorded."""
    recorder = Recorder(find_branches())
    recorder.install()
    _recorders.append(recorder)


def recorded(seed: int) -> tuple[Outcome, bytes]:
    """Run one seed; return what it came to, and the marks it set."""
    from tests.sim.engine.outcome import outcome_of  # which imports the cores

    outcome = outcome_of(seed)
    return outcome, _recorders[0].take()


class _Importer(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the cores, and runs their marked form."""

    def __init__(self, trees: dict[str, ast.Module], marks: list[int]) -> None:
        self._trees = trees
        self._marks = marks

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in self._trees:
            return None
        return importlib.util.spec_from_file_location(name, cores()[name], loader=self)

    def exec_module(self, module: ModuleType) -> None:
        setattr(module, _MARKS, self._marks)
        name = module.__name__
        code = compile(self._trees[name], str(cores()[name]), "exec", dont_inherit=True)
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
