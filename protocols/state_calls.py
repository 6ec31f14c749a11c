"""What peers ask of each other's state: the service `state`. A piece of a model that one node holds is a *part*, by name.

| part | what it is |
|---|---|
| `stage/2` | a pipeline's stage: parameters and optimizer state |
| `model` | the whole model of one peer |
| `expert/ffn.3.17` | one expert |
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Final, TypeAlias, TypeVar

from protocols.errors import RemoteProtocolError
from protocols.schema import Natural, SchemaError, Size, decode

T = TypeVar("T")

STATE_SERVICE: Final = "state"
PartName: TypeAlias = Annotated[str, Size(1, 128)]
Root: TypeAlias = Annotated[bytes, Size(32, 32)]


@dataclass(frozen=True, slots=True, kw_only=True)
class StateCall:
    """Give me the manifest of a part's state (`chunk` None) or one chunk of it.

    Tensors of the reply: uint8, flat. `version` None asks for the state as it is now, for an export.
    """

    part: PartName
    version: Natural | None
    chunk: Natural | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StateReply:
    version: Natural
    root: Root
    """Hash of the manifest."""


def state_call_untrusted(shape: type[T], data: Any) -> T:
    """Check and build a message of this file. Raises RemoteProtocolError only."""
    try:
        return decode(shape, data)
    except SchemaError as error:
        raise RemoteProtocolError(f"not a {shape.__name__}: {error.problem}") from error
