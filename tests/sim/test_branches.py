"""A branch that no seed takes is named, and fails the run; marking the cores changes nothing that they do."""

from __future__ import annotations

import hashlib
import importlib
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType

import pytest

import tests.sim.__main__ as command
from tests.sim.engine.branches import Branches, Recorder, begin_recording, find_branches
from tests.sim.engine.runner import Outcome, run_seed
from tests.sim.engine.subject import Measured, measured_of, subject_of

pytestmark = pytest.mark.sim
MEASURED = measured_of("pipeline")

SOURCE = """
from __future__ import annotations

class Core:
    def walk(self, things):
        for thing in things:
            if thing == "stop":
                break
            elif thing == "leap":
                continue
        while things and things[-1] == "more":
            things.pop()
        match things:
            case ["one"]:
                return 1
            case [_, *_] if len(things) > 1:
                return len(things)
            case _:
                return 0

def parse_untrusted(data):
    if data:
        return data
"""
ALL_OF_SOURCE = [
    "core.Core.walk: " + text
    for text in (
        "for thing in things: yes",
        "for thing in things: no",
        "if thing == 'stop': yes",
        "if thing == 'stop': no",
        "if thing == 'leap': yes",
        "if thing == 'leap': no",
        "while things and things[-1] == 'more': yes",
        "while things and things[-1] == 'more': no",
        "case _: yes",
        "case [_, *_] if len(things) > 1: yes",
        "case [_, *_] if len(things) > 1: no",
        "case ['one']: yes",
        "case ['one']: no",
    )
]


def marked_walk() -> tuple[Branches, list[int], Callable[[list[str]], int]]:
    """Return the branches of SOURCE, its marks, and its function."""
    branches = Branches()
    branches.add("a.core", SOURCE)
    marks = [0] * branches.marks
    module = ModuleType("core")
    vars(module)["_marks_"] = marks
    exec(compile(branches.trees["a.core"], "core.py", "exec"), vars(module))
    return branches, marks, module.Core().walk


def test_both_ways_of_each_statement_are_branches() -> None:
    branches, _, _ = marked_walk()
    assert sorted(branches.by_name) == sorted(ALL_OF_SOURCE)


@pytest.mark.parametrize(
    ("things", "result", "taken"),
    [
        ([], 0, {1, 7, 8, 10, 12}),
        (["one"], 1, {0, 1, 3, 5, 7, 11}),
        (["stop", "more"], 0, {0, 2, 6, 7, 8, 10, 12}),
        (["leap", "leap"], 2, {0, 1, 3, 4, 7, 9, 12}),
    ],
)
def test_what_is_taken_is_marked_and_nothing_else(
    things: list[str], result: int, taken: set[int]
) -> None:
    branches, marks, walk = marked_walk()
    assert walk(things) == result
    assert set(branches.taken(marks)) == {ALL_OF_SOURCE[index] for index in taken}


def test_branches_that_look_alike_have_names_of_their_own() -> None:
    branches = Branches()
    branches.add("core", "def f(x):\n  if x: g()\n  if x: h()\n")
    assert list(branches.by_name) == [
        "core.f: if x: yes",
        "core.f: if x: no",
        "core.f: if x: yes (2)",
        "core.f: if x: no (2)",
    ]


def test_cores_that_were_imported_unmarked_are_noticed() -> None:
    importlib.import_module("protocols.ledger.lead")
    with pytest.raises(RuntimeError, match=r"protocols\.ledger\.lead"):
        Recorder(MEASURED.modules).install()


def outcome(seed: int) -> Outcome:
    return Outcome(seed, 0, 0.0, 0, (), None, None, None)


def run_command(
    monkeypatch: pytest.MonkeyPatch, *, spare: set[str], excused: dict[str, str], seeds: int
) -> int:
    """Run `python -m tests.sim` with runs that take every branch but those to spare."""
    branches = find_branches(MEASURED.modules)
    marks = bytearray([1] * branches.marks)
    for name in spare:
        for mark in branches.by_name[name].marks:
            marks[mark] = 0

    def run_all(mode: str, asked: Sequence[int]) -> Iterator[tuple[Outcome, bytes]]:
        yield from ((outcome(seed), bytes(marks)) for seed in asked)

    monkeypatch.setattr(command, "run_all", run_all)
    measured = Measured(MEASURED.modules, excused)
    monkeypatch.setattr(command, "measured_of", lambda mode: measured)
    return command.main(["--seeds", str(seeds), "--json"])


SOME = "pulse.Pulse.down: if peer in self._heard_s: no"


def test_a_missed_branch_fails_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    enough = command.SEEDS_FOR_BRANCHES
    assert run_command(monkeypatch, spare=set(), excused={}, seeds=enough) == 0
    assert run_command(monkeypatch, spare={SOME}, excused={SOME: "because"}, seeds=enough) == 0
    capsys.readouterr()
    assert run_command(monkeypatch, spare={SOME}, excused={}, seeds=enough) == 1
    printed = capsys.readouterr()
    assert '"branches_missed": 1' in printed.out
    assert f"branch missed: {SOME}" in printed.err


def test_an_excuse_for_nothing_fails_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_command(monkeypatch, spare=set(), excused={SOME: "because"}, seeds=1) == 1
    assert run_command(monkeypatch, spare=set(), excused={"no such": "because"}, seeds=1) == 1


def test_few_seeds_prove_nothing_about_rare_branches(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_command(monkeypatch, spare={SOME}, excused={}, seeds=1) == 0


def digest_of_trace(seed: int) -> str:
    world = run_seed(subject_of("pipeline"), seed, detailed=True)
    return hashlib.sha256("\n".join(world.trace).encode()).hexdigest()


def marked_digest(seed: int) -> str:
    """Run in a process whose cores are marked."""
    from protocols.ledger import lead

    assert "_marks_" in vars(lead)
    return digest_of_trace(seed)


def test_marks_change_nothing() -> None:
    seed = 11
    with multiprocessing.get_context("spawn").Pool(1, begin_recording, ("pipeline",)) as pool:
        assert pool.apply(marked_digest, (seed,)) == digest_of_trace(seed)
