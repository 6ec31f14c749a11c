"""How the numbers of a chunk travel. All sums are in float32, whatever travels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

import torch
from torch import Tensor

from protocols.errors import RemoteProtocolError
from protocols.frames import TensorSpec
from swarm.calls import WireTensor
from swarm.tensors import e3m0
from swarm.tensors.wire import from_wire, to_wire

BLOCK: Final = 1024
"""Numbers that share one scale in `int8`: 0.4 % more bytes, and a large number coarsens no more than these."""
_FLOAT16_MAX: Final = 65504.0


class Codec(Protocol):
    """Turns float32 into what travels, and back. Used on a codec thread."""

    name: str
    direct: bool
    """Its numbers travel as they lie in memory."""

    def specs(self, elements: int) -> tuple[TensorSpec, ...]:
        """Say which tensors travel for so many numbers."""
        ...

    def encode(self, values: Tensor) -> tuple[WireTensor, ...]:
        """Encode (n,) float32. May share its memory."""
        ...

    def decode(self, tensors: Sequence[WireTensor], elements: int) -> Tensor:
        """Return (n,) float32 of tensors that have these specs. Values that are not finite stay so."""
        ...


class Plain:
    """Each number as a float of one dtype; too large ones become the largest that it has."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.name = str(dtype).removeprefix("torch.")
        self._dtype = dtype
        self.direct = dtype == torch.float32

    def specs(self, elements: int) -> tuple[TensorSpec, ...]:
        return (TensorSpec(self.name, (elements,)),)

    def encode(self, values: Tensor) -> tuple[WireTensor, ...]:
        if self._dtype == torch.float16:
            values = values.clamp(-_FLOAT16_MAX, _FLOAT16_MAX)
        return (to_wire(values.to(self._dtype)),)

    def decode(self, tensors: Sequence[WireTensor], elements: int) -> Tensor:
        return from_wire(tensors[0]).to(torch.float32)


class Int8:
    """Blocks of whole numbers from -127 to 127, each block with its own scale: off by at most 1/254 of its largest number."""

    name = "int8"
    direct = False

    def specs(self, elements: int) -> tuple[TensorSpec, ...]:
        return TensorSpec("int8", (elements,)), TensorSpec("float32", (_blocks(elements),))

    def encode(self, values: Tensor) -> tuple[WireTensor, ...]:
        elements = values.numel()
        whole = elements // BLOCK * BLOCK
        quantized = torch.empty(elements, dtype=torch.int8)
        scales = torch.empty(_blocks(elements))
        for start, end, rows in _pieces(elements, whole):
            block = values[start:end].view(rows, -1)
            first = start // BLOCK
            scale = torch.maximum(block.amax(1), -block.amin(1)).div_(127.0)
            scales[first : first + rows] = scale
            # A block of zeros has scale 0: divided by something else it stays zeros.
            inverse = torch.where(scale > 0, scale.reciprocal(), 0.0).nan_to_num_(posinf=0.0)
            # By way of int16: ten times as fast as float32 to int8 in one step.
            rounded = torch.mul(block, inverse[:, None]).round_().to(torch.int16)
            quantized[start:end].view(rows, -1).copy_(rounded)
        return to_wire(quantized), to_wire(scales)

    def decode(self, tensors: Sequence[WireTensor], elements: int) -> Tensor:
        quantized, scales = from_wire(tensors[0]), from_wire(tensors[1])
        values = quantized.to(torch.float32)
        whole = elements // BLOCK * BLOCK
        for start, end, rows in _pieces(elements, whole):
            first = start // BLOCK
            values[start:end].view(rows, -1).mul_(scales[first : first + rows, None])
        return values


class E3M0:
    """Four bits for each number, see `swarm.tensors.e3m0`; too large ones become the largest that it has."""

    name = "e3m0"
    direct = False

    def specs(self, elements: int) -> tuple[TensorSpec, ...]:
        return (TensorSpec("uint8", (e3m0.byte_count(elements),)),)

    def encode(self, values: Tensor) -> tuple[WireTensor, ...]:
        return (to_wire(e3m0.encode(values.clamp(-e3m0.VALUE_MAX, e3m0.VALUE_MAX))),)

    def decode(self, tensors: Sequence[WireTensor], elements: int) -> Tensor:
        return e3m0.decode_untrusted(from_wire(tensors[0]), elements)


def _blocks(elements: int) -> int:
    return -(-elements // BLOCK)


def _pieces(elements: int, whole: int) -> list[tuple[int, int, int]]:
    """Return (start, end, blocks) of the whole blocks, and of the rest."""
    pieces = [(0, whole, whole // BLOCK)] if whole else []
    return pieces + ([(whole, elements, 1)] if whole < elements else [])


CODECS: Final[dict[str, Codec]] = {
    codec.name: codec
    for codec in (Plain(torch.float32), Plain(torch.float16), Plain(torch.bfloat16), Int8(), E3M0())
}


def codec_of_means(codec: Codec) -> Codec:
    """Return how means travel. The errors of many members' numbers cancel out, that of their mean does not: four bits are too few."""
    return CODECS["int8"] if codec.name == E3M0.name else codec


def decode_untrusted(codec: Codec, tensors: Sequence[WireTensor], elements: int) -> Tensor:
    """Check what a peer sent for these numbers, and decode it. Raises RemoteProtocolError only."""
    specs = tuple(tensor.spec for tensor in tensors)
    if specs != codec.specs(elements):
        raise RemoteProtocolError(f"a chunk of {elements} numbers in {codec.name} has another form")
    values = codec.decode(tensors, elements)
    if not is_finite(values):
        raise RemoteProtocolError("a chunk has values that are not finite")
    return values


def is_finite(values: Tensor) -> bool:
    """Tell whether no value is infinite or NaN.

    One pass: such a value makes the sum so. A sum of finite numbers that overflows is looked at more closely.
    """
    return bool(torch.isfinite(values.sum())) or bool(torch.isfinite(values).all())
