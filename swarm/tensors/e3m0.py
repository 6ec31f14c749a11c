"""E3M0: numbers in four bits, a sign and three bits of exponent, with a scale per block. No mantissa: powers of two.

A block of 128 numbers has one byte of scale, the exponent of its largest number; the eight codes are 0 and the seven powers
of two up to that. Rounding is to the nearest of them, ties away from zero, so the error is at most a third of a number, or a
128th of the block's largest. What is decoded is exact in float32: adding it up is where float32 is needed.

On the wire: the scales, one byte per block, then two numbers per byte, the first in the low half.

Source: outer gradients in Streaming DiLoCo (Douillard et al. 2025, arXiv:2501.18512, section 3.3), which leaves the scale open.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from protocols.errors import RemoteProtocolError
from swarm.hosting.errors import NonFiniteError

BLOCK: Final = 128
"""Numbers that share a scale: it costs a sixteenth of a bit for each."""
VALUE_MAX: Final = 2.0**49
"""Larger numbers are in nobody's honest vector, and so many of them as there are peers can be summed in float32."""
_BIAS: Final = 127
_MANTISSA_BITS: Final = 23
_HALF: Final = 1 << (_MANTISSA_BITS - 1)
_SCALE_MAX: Final = _BIAS + 49
_CODES: Final = 7
"""Powers of two in a block; code 0 is zero."""


def byte_count(elements: int) -> int:
    """Return how many bytes so many numbers take."""
    return -(-elements // BLOCK) + -(-elements // 2)


@torch.no_grad()
def encode(vector: Tensor) -> Tensor:
    """Pack a vector.

    Args:
      vector: (n,) float32, on any device.
    Returns:
      (byte_count(n),) uint8, on the CPU.
    Raises:
      NonFiniteError: a number is not finite, or over VALUE_MAX.
    """
    elements = vector.numel()
    blocks = -(-elements // BLOCK)
    padded = torch.zeros(blocks * BLOCK, dtype=torch.float32)
    padded[:elements] = vector.detach().cpu()
    bits = padded.view(torch.int32).view(blocks, BLOCK)
    magnitude = bits & 0x7FFFFFFF
    largest = magnitude.amax(
        dim=1, keepdim=True
    )  # (blocks, 1); the order of bits is that of numbers
    if blocks and int(largest.max()) > _SCALE_MAX << _MANTISSA_BITS:
        raise NonFiniteError(f"a number to be packed is not finite, or over {VALUE_MAX:.3g}")
    # Half a mantissa added carries into the exponent from 1.5 times a power of two on: the nearest power.
    exponent = (magnitude + _HALF) >> _MANTISSA_BITS  # (blocks, BLOCK), biased
    top = (largest + _HALF) >> _MANTISSA_BITS  # (blocks, 1)
    smallest = ((top - _CODES).clamp_(min=0)) << _MANTISSA_BITS  # half of the smallest power
    codes = (exponent - top + _CODES).clamp_(min=1)
    codes.masked_fill_((magnitude < smallest) | (magnitude == 0), 0)
    codes |= (bits < 0).int() << 3
    nibbles = codes.view(-1)[: 2 * -(-elements // 2)].to(torch.uint8)
    return torch.cat([top.view(-1).to(torch.uint8), nibbles[::2] | nibbles[1::2] << 4])


@torch.no_grad()
def decode_untrusted(packed: Tensor, elements: int) -> Tensor:
    """Unpack a vector that a peer sent. Raises RemoteProtocolError only.

    Args:
      packed: (byte_count(elements),) uint8.
    Returns:
      (elements,) float32; every number is finite, and none is over VALUE_MAX.
    """
    if packed.dtype != torch.uint8 or packed.shape != (byte_count(elements),):
        raise RemoteProtocolError(
            f"{elements} numbers in four bits take {byte_count(elements)} bytes, not {list(packed.shape)} of {packed.dtype}"
        )
    blocks = -(-elements // BLOCK)
    top = packed[:blocks].int()[:, None]  # (blocks, 1)
    if blocks and int(top.max()) > _SCALE_MAX:
        raise RemoteProtocolError("a block of numbers in four bits has a scale out of bounds")
    nibbles = torch.zeros(blocks * BLOCK, dtype=torch.uint8)
    half = packed[blocks:]
    nibbles[: 2 * half.numel() : 2] = half & 15
    nibbles[1 : 2 * half.numel() : 2] = half >> 4
    codes = nibbles.view(blocks, BLOCK).int()
    power = codes & 7
    exponent = top - _CODES + power  # biased
    bits = exponent << _MANTISSA_BITS
    bits.masked_fill_(
        (power == 0) | (exponent < 1), 0
    )  # zero, and what float32 has no normal number for
    bits |= (codes >> 3) << 31
    return bits.view(torch.float32).view(-1)[:elements]
