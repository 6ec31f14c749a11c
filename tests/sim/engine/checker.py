"""What watches a run: checkers, one promise each, and the one place through which they see what happens.

All that crosses the edge of a core is shown by its type: every event that a core takes, every effect that it returns, every
message that is cast. A mode's shell may add notes of its own, small classes for what no core says. A checker's method says
with `on` which types it wants to see; types that nobody wants cost a look into a dictionary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

if TYPE_CHECKING:
    from tests.sim.engine.world import World

MethodT = TypeVar("MethodT", bound=Callable[..., None])
_KINDS = "_sees_"


class ViolationError(AssertionError):
    """A promise was broken; the message says which and how."""

    def __init__(self, promise: str, text: str) -> None:
        super().__init__(f"{promise}: {text}")
        self.promise = promise
        self.text = text

    def __reduce__(self) -> tuple[type[ViolationError], tuple[str, str]]:
        return type(self), (self.promise, self.text)


def on(*kinds: type) -> Callable[[MethodT], MethodT]:
    """Have a checker's method called as `method(peer, what)` with all of these types, not of their subclasses.

    It sees an event before the core takes it, an effect before it is done, a message before it is cast.
    """

    def mark(method: MethodT) -> MethodT:
        setattr(method, _KINDS, kinds)
        return method

    return mark


class Checker:
    """Watches one promise in one world, and changes nothing of it. Its constructor may not look into the world yet."""

    promise: ClassVar[str] = ""

    def __init__(self, world: World[Any]) -> None:
        self.world = world

    def broken(self, text: str) -> ViolationError:
        """Build the error to raise."""
        return ViolationError(self.promise, text)

    def looked(self) -> None:
        """Called every few seconds: look at whatever is there."""

    def ended(self) -> None:
        """The run is over, some time after all faults were healed."""


class Progress(Checker):
    """Liveness, for a mode to name: once faults end, the run reaches its goal in time, unless the world knows what was lost."""

    def ended(self) -> None:
        world = self.world
        if world.progress < world.goal and world.lost() is None:
            raise self.broken(
                f"stuck at {world.progress} {world.unit} {world.healed_for_s:.0f} s after healing"
            )


class Watch:
    """Shows each checker what it wants to see, in the order of the checkers."""

    def __init__(self, checkers: Iterable[Checker]) -> None:
        self.checkers = tuple(checkers)
        looks: dict[type, list[Callable[..., None]]] = {}
        for checker in self.checkers:
            for method in _methods(checker):
                for kind in getattr(method, _KINDS):
                    looks.setdefault(kind, []).append(method)
        self._looks = {kind: tuple(methods) for kind, methods in looks.items()}
        self._nobody: tuple[Callable[..., None], ...] = ()

    def see(self, peer: object, what: object) -> None:
        """A peer takes an event, returns an effect, casts a message; or its shell notes something."""
        for look in self._looks.get(type(what), self._nobody):
            look(peer, what)

    def looked(self) -> None:
        for checker in self.checkers:
            checker.looked()

    def ended(self) -> None:
        for checker in self.checkers:
            checker.ended()


def _methods(checker: Checker) -> Iterator[Callable[..., None]]:
    """Return the methods that want to see something, in the order of their names."""
    for name in dir(checker):
        if hasattr(getattr(type(checker), name, None), _KINDS):
            yield getattr(checker, name)
