"""Why a hosted stage did not do what it was asked. In every case nothing was counted and the stage is as before."""

from __future__ import annotations


class BusyError(Exception):
    """The queue is full: the caller may try later or elsewhere. It never grows instead."""


class NonFiniteError(Exception):
    """The result is NaN or infinite: the numbers that were sent are finite, but too large for this stage."""


class WrongStepError(Exception):
    """The call belongs to another step than the one this stage works on. Raise one of the two subclasses."""

    def __init__(self, *, asked: int, here: int) -> None:
        super().__init__(f"the call is for step {asked}, this stage works on step {here}")
        self.asked = asked
        self.here = here


class StepPassedError(WrongStepError):
    """The step is committed here already."""


class StepAheadError(WrongStepError):
    """This stage has not reached that step yet."""


class ClosedError(Exception):
    """The compute thread is shutting down and takes nothing new."""
