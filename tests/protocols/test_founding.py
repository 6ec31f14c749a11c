"""Who begins a run: for every set of nodes that is named, of every answer, at most one, and never a run that goes on."""

from __future__ import annotations

import itertools

from protocols.founding import Founding, founder_of, founding
from protocols.ids import PeerID

A, B, C, D = (PeerID(bytes([0, index])) for index in range(1, 5))
NAMED = (C, A, D, B)


def test_whatever_they_hear_of_each_other_one_alone_may_begin() -> None:
    for answers in itertools.product((None, False, True), repeat=len(NAMED)):
        for was_with_others in (False, True):
            begins = []
            for me in NAMED:
                heard = {
                    peer: answer
                    for peer, answer in zip(NAMED, answers, strict=True)
                    if answer is not None and peer != me
                }
                if founding(me, NAMED, heard, was_with_others=was_with_others) is not Founding.JOIN:
                    begins.append(me)
            assert begins in ([], [A])


def test_nobody_who_was_not_named_begins() -> None:
    assert founding(D, (A, B), {}, was_with_others=False) is Founding.JOIN
    assert founding(A, (), {}, was_with_others=False) is Founding.JOIN
    assert founder_of(()) is None


def test_a_run_that_somebody_is_in_is_joined() -> None:
    for was_with_others in (False, True):
        heard = {B: False, C: True, D: False}
        assert founding(A, NAMED, heard, was_with_others=was_with_others) is Founding.JOIN


def test_who_never_was_in_the_run_waits_for_nobody() -> None:
    assert founding(A, NAMED, {}, was_with_others=False) is Founding.BEGIN


def test_who_was_in_it_with_others_begins_anew_only_when_all_of_them_have_lost_it_too() -> None:
    assert founding(A, NAMED, {B: False, C: False}, was_with_others=True) is Founding.WAIT
    heard = {B: False, C: False, D: False}
    assert founding(A, NAMED, heard, was_with_others=True) is Founding.BEGIN
