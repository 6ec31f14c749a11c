"""What a node writes into the directory about its experts: one record under each prefix of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from protocols.experts.messages import Stated, statement_bytes
from protocols.experts.uid import ExpertUID, Prefix
from protocols.ids import PeerID


class Announcements:
    """What is to be written, and what has been."""

    def __init__(self) -> None:
        self._wanted: dict[Prefix, bytes] = {}
        self._written: dict[Prefix, bytes] = {}

    @property
    def written(self) -> Mapping[Prefix, bytes]:
        """What the directory has of us, and writes again before it expires."""
        return {prefix: value for prefix, value in self._written.items() if value}

    def announce(
        self,
        experts: Mapping[ExpertUID, int],
        replicas: Mapping[ExpertUID, tuple[PeerID, ...]] | None = None,
    ) -> None:
        """State these from now on, with their epochs and who answers for them as well; the latest call counts."""
        self._wanted = {
            prefix: statement_bytes(stated)
            for prefix, stated in _by_prefix(experts, replicas or {}).items()
        }

    def forget(self) -> None:
        """Nothing is written any more: the directory is another one, or was closed meanwhile."""
        self._written = {}

    def found(self, prefix: Prefix) -> bool:
        """Our own record was found under a prefix. Returns whether it is one of an earlier life, to be withdrawn."""
        if prefix in self._written or prefix in self._wanted:
            return False
        self._written[prefix] = b""
        return True

    def changes(self) -> Sequence[tuple[Prefix, bytes | None]]:
        """Return what is to be written now; None: withdrawn. Each is reported by `wrote`."""
        found: list[tuple[Prefix, bytes | None]] = [
            (prefix, value)
            for prefix, value in self._wanted.items()
            if self._written.get(prefix) != value
        ]
        return found + [(p, None) for p in self._written if p not in self._wanted]

    def wrote(self, prefix: Prefix, value: bytes | None) -> None:
        """This is what the directory has of us there."""
        if value is None:
            self._written.pop(prefix, None)
        else:
            self._written[prefix] = value


def _by_prefix(
    experts: Mapping[ExpertUID, int], replicas: Mapping[ExpertUID, tuple[PeerID, ...]]
) -> dict[Prefix, Iterable[Stated]]:
    found: dict[Prefix, dict[int, Stated]] = {}
    for uid, epoch in experts.items():
        for prefix in uid.prefixes:
            coordinate = uid.place[len(prefix.place)]
            last = len(prefix.place) == len(uid.place) - 1
            line = (
                Stated(coordinate, epoch, replicas.get(uid, ())) if last else Stated(coordinate, 0)
            )
            found.setdefault(prefix, {})[coordinate] = line
    return {prefix: lines.values() for prefix, lines in found.items()}
