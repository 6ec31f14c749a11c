"""torch tensors as wire bytes and back, sharing memory both ways.

Ownership: whoever holds the buffer may write it. A sender must leave a tensor alone until its call is done; a receiver
owns what it got.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from protocols.errors import RemoteProtocolError
from protocols.frames import DTYPE_BYTES, TensorSpec
from swarm.calls.messages import WireTensor

_DTYPES: Final[dict[str, torch.dtype]] = {name: getattr(torch, name) for name in DTYPE_BYTES}
_NAMES: Final = {dtype: name for name, dtype in _DTYPES.items()}


def spec_of(tensor: Tensor) -> TensorSpec:
    """Describe a tensor. Raises KeyError for a dtype that has no wire form."""
    return TensorSpec(_NAMES[tensor.dtype], tuple(tensor.shape))


def bytes_of(tensor: Tensor) -> memoryview:
    """Return the tensor's own memory, format "B", C order; copies only what is not contiguous or not on the CPU.

    The wire is little-endian, and so is every machine torch runs on.
    """
    flat = tensor.detach().to("cpu").contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data


def to_wire(tensor: Tensor) -> WireTensor:
    """Wrap a tensor for sending, sharing its memory."""
    return WireTensor(spec_of(tensor), bytes_of(tensor))


def from_wire(wire: WireTensor) -> Tensor:
    """Wrap received bytes as a tensor, sharing their memory (copied first if they are read-only)."""
    spec = wire.spec
    dtype = _DTYPES[spec.dtype]
    if not spec.byte_count:
        return torch.empty(spec.shape, dtype=dtype)
    data = memoryview(bytearray(wire.data)) if wire.data.readonly else wire.data
    return torch.frombuffer(data, dtype=dtype).view(spec.shape)


def tensor_untrusted(wire: WireTensor, expected: TensorSpec, what: str) -> Tensor:
    """Check dtype and shape, then the values, and wrap. Raises RemoteProtocolError only.

    Args:
      what: names the tensor in the error, such as `grad_y`.
    """
    if wire.spec != expected:
        raise RemoteProtocolError(
            f"{what} must be {expected.dtype} of shape {list(expected.shape)}, "
            f"not {wire.spec.dtype} of shape {list(wire.spec.shape)}"
        )
    if wire.data.nbytes != expected.byte_count:
        raise RemoteProtocolError(
            f"{what} must have {expected.byte_count} bytes, not {wire.data.nbytes}"
        )
    tensor = from_wire(wire)
    check_finite_untrusted(tensor, what)
    return tensor


def check_finite_untrusted(tensor: Tensor, what: str) -> None:
    """Refuse NaN and infinity. Raises RemoteProtocolError only."""
    if tensor.is_floating_point() and not torch.isfinite(tensor).all():
        raise RemoteProtocolError(f"{what} has values that are not finite")
