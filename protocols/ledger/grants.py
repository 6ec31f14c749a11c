"""What a trainer shows with every request to count, settle or claim: the lease by which it may, signed by the lead.

Without, any stranger could have its own inventions counted, or close everybody's leases with one claim of a high
generation. A grant is bound to its run, its trainer and its microbatches, so a copied one is of no use.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Final, TypeAlias

import msgpack

from protocols.ids import PeerID, RunID
from protocols.ledger.view import IdSet
from protocols.schema import Natural, Size

_DOMAIN: Final = "murmura lease"
"""So that nothing else this key signs can be taken for a lease."""

Signature = Annotated[bytes, Size(0, 64)]


@dataclass(frozen=True, slots=True)
class Grant:
    """A lead's word that a trainer may work on these microbatches of a step."""

    lead: PeerID
    step: Natural
    generation: Natural
    ids: IdSet
    signature: Signature = b""
    """By the lead, of `statement`."""


def statement(run: RunID, trainer: PeerID, grant: Grant) -> bytes:
    """Return what the lead signs."""
    said = (_DOMAIN, bytes(run), trainer, grant.lead, grant.step, grant.generation, grant.ids)
    return bytes(msgpack.packb(said))


Verify: TypeAlias = Callable[[PeerID, bytes, bytes], bool]


class Verifier:
    """Checks each grant's signature once: it comes with every request."""

    _CHECKED_MAX: Final = 4096
    """More than trainers have in flight at one member; what is forgotten is checked again, in 140 microseconds."""

    def __init__(self, run: RunID, verify: Verify) -> None:
        self._run = run
        self._verify = verify
        self._checked: dict[tuple[PeerID, Grant], bool] = {}

    def is_signed(self, trainer: PeerID, grant: Grant) -> bool:
        """Tell whether the lead it names has given it to this trainer."""
        key = trainer, grant
        valid = self._checked.get(key)
        if valid is None:
            valid = self._verify(grant.lead, statement(self._run, trainer, grant), grant.signature)
            if len(self._checked) >= self._CHECKED_MAX:
                del self._checked[next(iter(self._checked))]
            self._checked[key] = valid
        return valid
