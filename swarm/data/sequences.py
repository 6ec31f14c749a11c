"""Microbatch i of step t as a pure function of the run: nobody deals out data, everybody computes the same.

Every sequence starts where a hash of (seed, purpose, step, microbatch, sequence) says, so there is no generator state
to save, a microbatch costs the same at any step, and a node that joins late needs no history. No torch here.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from typing import Final

from protocols.frames import TensorSpec
from swarm.data.errors import DataError

_COUNTER: Final = struct.Struct("<QQQ")


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """One batch of bytes. The buffers are the caller's own and writable, ready to be sent or wrapped."""

    spec: TensorSpec
    """uint8 (sequences, context): of `inputs` and of `targets`."""
    inputs: bytearray
    targets: bytearray
    """The byte that follows each input byte."""


class Dataset:
    """The run's text, split into a training part and a held-out part at its end that is never trained on."""

    def __init__(
        self, text: bytes, *, seed: int, sequences: int, context: int, held_out: float
    ) -> None:
        """
        Args:
          sequences: in a batch.
          context: tokens in a sequence.
          held_out: share of the text, at its end.
        """
        self._text = text
        self._seed = seed.to_bytes(8, "little")
        self._sequences = sequences
        self._context = context
        held_out_bytes = int(len(text) * held_out)
        self.training_range = range(len(text) - held_out_bytes)
        self.held_out_range = range(len(text) - held_out_bytes, len(text))
        if min(held_out_bytes, len(self.training_range)) <= self._context:
            raise DataError(
                f"{len(text)} bytes of text are too few: the held-out part ({held_out_bytes} bytes) and the rest "
                f"must each be longer than model.context ({self._context})"
            )

    def training_batch(self, step: int, index: int) -> TokenBatch:
        """Return microbatch `index` of optimizer step `step`, both counted from 0."""
        return self._batch(b"training", self.training_range, step, index)

    def held_out_batch(self, index: int) -> TokenBatch:
        """Return held-out microbatch `index`: the same ones at every step, so that losses can be compared."""
        return self._batch(b"held-out", self.held_out_range, 0, index)

    def _batch(self, purpose: bytes, part: range, step: int, index: int) -> TokenBatch:
        context = self._context
        inputs, targets = bytearray(), bytearray()
        for sequence in range(self._sequences):
            start = part.start + self._hash(purpose, step, index, sequence) % (len(part) - context)
            inputs += self._text[start : start + context]
            targets += self._text[start + 1 : start + context + 1]
        return TokenBatch(TensorSpec("uint8", (self._sequences, context)), inputs, targets)

    def _hash(self, purpose: bytes, step: int, index: int, sequence: int) -> int:
        counter = _COUNTER.pack(step, index, sequence)
        digest = hashlib.blake2b(counter, digest_size=8, key=self._seed, person=purpose).digest()
        return int.from_bytes(digest, "little")
