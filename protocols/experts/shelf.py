"""Which snapshots a node keeps of experts that others host: of each expert one, the newest of the host that the directory names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias

from protocols.experts.messages import SnapshotOffer
from protocols.experts.uid import ExpertUID
from protocols.experts.view import Claim

Verdict: TypeAlias = Literal["fetch", "kept", "old", "overtaken"]
"""`fetch`: it is wanted. `kept`: it is here. `old`: a newer one is here. `overtaken`: the directory names another host, or
does not name this one yet."""


class Shelf:
    """What is kept. Signatures are checked before."""

    def __init__(self) -> None:
        self._offers: dict[ExpertUID, SnapshotOffer] = {}

    @property
    def offers(self) -> Mapping[ExpertUID, SnapshotOffer]:
        return self._offers

    def judge(self, uid: ExpertUID, offer: SnapshotOffer, claims: Sequence[Claim]) -> Verdict:
        """Say what to do about a snapshot that its host wants kept.

        Anybody can sign for any epoch. So only the host that the directory names is heard, though somebody else's seems newer;
        and, while it names none, the one of what is here in the same epoch. Whoever asks us later may take it for a host's.

        Args:
          claims: the expert's hosts, as far as is known, the rightful one first.
        """
        kept = self._offers.get(uid)
        if kept is not None and kept.root == offer.root:
            return "kept"
        named = Claim(offer.epoch, offer.host) in claims[:1]
        goes_on = kept is not None and (kept.host, kept.epoch) == (offer.host, offer.epoch)
        if not named and (claims or not goes_on):
            return "overtaken"
        # Named in another epoch, older or newer: the expert may have begun anew.
        newer = kept is None or not goes_on or offer.version > kept.version
        return "fetch" if newer else "old"

    def put(self, uid: ExpertUID, offer: SnapshotOffer, claims: Sequence[Claim]) -> bool:
        """Keep one that was fetched, unless something better has come meanwhile."""
        if self.judge(uid, offer, claims) != "fetch":
            return False
        self._offers[uid] = offer
        return True

    def put_own(self, uid: ExpertUID, offer: SnapshotOffer) -> bool:
        """Keep the last snapshot of an expert that we gave up to a better claim, unless a newer one is here."""
        kept = self._offers.get(uid)
        if kept is not None and kept.age >= offer.age:
            return False
        self._offers[uid] = offer
        return True
