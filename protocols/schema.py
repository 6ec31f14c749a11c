"""Typed data in, typed data out: one checker for messages from the network and for files people write.

A shape is a frozen dataclass; its annotations are the schema. `decode` builds one from plain data (what msgpack or
TOML give) and `encode` returns plain data. Nothing is coerced except int to float; unknown and missing keys are
errors that name the path. Decoders are compiled once per class, so a message costs a few microseconds.

Supported: bool, int, float, str, bytes and their subclasses (PeerID, RunID), None, Literal, unions of those,
tuple[X, ...], dict[str, X] (also int and bytes keys), nested dataclasses, unions of dataclasses told apart by their field `kind`, and `Annotated[X, Range | Size]` bounds.
Every str, bytes, tuple and dict has a length bound, `SIZE_DEFAULT` unless it states its own.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal, TypeAlias, TypeVar, Union

SIZE_DEFAULT: Final = 4096
"""Items or bytes. Anything that needs more says so with Size and so shows it has been thought about."""

T = TypeVar("T")
Decoder: TypeAlias = Callable[[Any, str], Any]


class SchemaError(ValueError):
    """Data does not have its shape. `path` is where (`model.layers`), `problem` is what and what would be right."""

    def __init__(self, path: str, problem: str, hint: str = "") -> None:
        """`hint` says how to put it right, when there is a guess."""
        super().__init__(f"{path or 'the top level'}: {problem}")
        self.path = path
        self.problem = problem
        self.hint = hint


@dataclass(frozen=True, slots=True)
class Range:
    """Inclusive bounds of a number. Floats are always finite."""

    low: float = -math.inf
    high: float = math.inf


@dataclass(frozen=True, slots=True)
class Size:
    """Inclusive bounds of a length: bytes, characters or items."""

    low: int = 0
    high: int = SIZE_DEFAULT


Natural: TypeAlias = Annotated[int, Range(0, 2**63 - 1)]
Positive: TypeAlias = Annotated[int, Range(1, 2**63 - 1)]
Fraction: TypeAlias = Annotated[float, Range(0.0, 1.0)]


def decode(shape: type[T], data: Any, path: str = "") -> T:
    """Build a `shape` (a dataclass) from plain data. Raises SchemaError."""
    return typing.cast("T", _decoder(typing.cast("Any", shape))(data, path))


_PLAIN: Final = frozenset((bool, int, float, str, bytes, type(None)))


def encode(value: Any) -> Any:
    """Return plain data for a dataclass: maps, tuples and scalars, ready for msgpack."""
    kind = type(value)
    if kind in _PLAIN:
        return value
    names = _field_names(typing.cast("Any", kind))
    if names is not None:  # a message may have no fields at all
        return {name: encode(getattr(value, name)) for name in names}
    if isinstance(value, tuple | list):
        return [encode(item) for item in value]
    if isinstance(value, dict):
        return {key: encode(item) for key, item in value.items()}
    if isinstance(value, bytes):
        return bytes(value)
    return value


@functools.cache
def _field_names(shape: type) -> tuple[str, ...] | None:
    """Name the fields of a dataclass; None for any other type."""
    if not dataclasses.is_dataclass(shape):
        return None
    return tuple(field.name for field in dataclasses.fields(shape))


@functools.cache
def _decoder(shape: Any) -> Decoder:
    """Compile the checker of one annotation."""
    origin = typing.get_origin(shape)
    if origin is Annotated:
        inner, *bounds = typing.get_args(shape)
        return _bounded(inner, bounds)
    if origin is Literal:
        return _literal(typing.get_args(shape))
    if origin in (Union, types.UnionType):
        return _union(typing.get_args(shape))
    if origin is tuple or origin is dict:
        return _bounded(shape, [])
    if shape is None or shape is type(None):
        return _none
    if dataclasses.is_dataclass(shape):
        return _dataclass(typing.cast("type", shape))
    if isinstance(shape, type) and issubclass(shape, str | bytes):
        return _bounded(shape, [])
    if shape in (bool, int, float):
        return _bounded(shape, [])
    raise TypeError(f"schema cannot check {shape!r}")


def _none(data: Any, path: str) -> None:
    if data is not None:
        raise SchemaError(path, f"must be absent, not {_name(data)}")


def _bounded(shape: Any, bounds: list[Any]) -> Decoder:
    span = next((bound for bound in bounds if isinstance(bound, Range)), Range())
    size = next((bound for bound in bounds if isinstance(bound, Size)), Size())
    origin = typing.get_origin(shape)
    if (
        origin is Annotated
    ):  # an alias that already carries bounds: the outer ones are added to them
        inner, *inner_bounds = typing.get_args(shape)
        return _bounded(inner, [*bounds, *inner_bounds])
    if origin is tuple:
        return _tuple(typing.get_args(shape)[0], size)
    if origin is dict:
        key_shape, item_shape = typing.get_args(shape)
        return _dict(key_shape, item_shape, size)
    if shape is bool:
        return _bool
    if shape is int or shape is float:
        return functools.partial(_number, shape, span)
    return functools.partial(_text, shape, size)


def _bool(data: Any, path: str) -> bool:
    if not isinstance(data, bool):
        raise SchemaError(path, f"must be true or false, not {_name(data)}")
    return data


def _number(shape: type, span: Range, data: Any, path: str) -> float:
    if isinstance(data, bool) or not isinstance(data, (int, float) if shape is float else int):
        wanted = "a number" if shape is float else "a whole number"
        raise SchemaError(path, f"must be {wanted}, not {_name(data)}")
    if not span.low <= data <= span.high:  # false for NaN as well
        raise SchemaError(path, f"must be {_span_text(span)}, not {data}")
    if shape is float and not math.isfinite(data):
        raise SchemaError(path, "must be finite")
    return float(data) if shape is float else data


def _text(shape: type, size: Size, data: Any, path: str) -> Any:
    base = str if issubclass(shape, str) else bytes
    if not isinstance(data, base):
        raise SchemaError(path, f"must be {'text' if base is str else 'bytes'}, not {_name(data)}")
    _check_size(len(data), size, "characters" if base is str else "bytes", path)
    if shape is base:
        return data
    try:
        return shape(data)
    except ValueError as error:
        raise SchemaError(path, str(error)) from error


def _tuple(item_shape: Any, size: Size) -> Decoder:
    item_decoder = _decoder(item_shape)

    def decode_tuple(data: Any, path: str) -> tuple[Any, ...]:
        if not isinstance(data, list | tuple):
            raise SchemaError(path, f"must be a list, not {_name(data)}")
        _check_size(len(data), size, "items", path)
        return tuple(item_decoder(item, f"{path}[{index}]") for index, item in enumerate(data))

    return decode_tuple


def _dict(key_shape: Any, item_shape: Any, size: Size) -> Decoder:
    key_decoder, item_decoder = _decoder(key_shape), _decoder(item_shape)

    def decode_dict(data: Any, path: str) -> dict[Any, Any]:
        if not isinstance(data, dict):
            raise SchemaError(path, f"must be a table, not {_name(data)}")
        _check_size(len(data), size, "items", path)
        return {
            key_decoder(key, f"{path} (a key)"): item_decoder(item, _join(path, _key_text(key)))
            for key, item in data.items()
        }

    return decode_dict


def _literal(choices: tuple[Any, ...]) -> Decoder:
    def decode_literal(data: Any, path: str) -> Any:
        for choice in choices:
            if type(data) is type(choice) and data == choice:
                return choice
        wanted = " or ".join(repr(choice) for choice in choices)
        raise SchemaError(path, f"must be {wanted}, not {_name(data)}")

    return decode_literal


def _union(choices: tuple[Any, ...]) -> Decoder:
    named = [choice for choice in choices if choice is not type(None)]
    if len(named) > 1 and all("kind" in (_field_names(choice) or ()) for choice in named):
        return _tagged_union(named, optional=len(named) < len(choices))
    decoders = [_decoder(choice) for choice in choices if choice is not type(None)]
    optional = type(None) in choices

    def decode_union(data: Any, path: str) -> Any:
        if data is None and optional:
            return None
        problem: SchemaError | None = None
        for decoder in decoders:
            try:
                return decoder(data, path)
            except SchemaError as error:
                problem = problem or error
        raise problem or SchemaError(path, f"must be absent, not {_name(data)}")

    return decode_union


def _tagged_union(choices: list[type], *, optional: bool) -> Decoder:
    """Choose by the text under `kind`; without one the first choice is meant.

    A choice whose `kind` is any text, not a Literal, takes the kinds that no other choice has.
    """
    by_kind: dict[str, Decoder] = {}
    others: Decoder | None = None
    for choice in choices:
        hint = typing.get_type_hints(choice, include_extras=True)["kind"]
        if typing.get_origin(hint) is Literal:
            by_kind |= dict.fromkeys(typing.get_args(hint), _decoder(choice))
        else:
            others = _decoder(choice)
    default = next(iter(by_kind))

    def decode_tagged(data: Any, path: str) -> Any:
        if data is None and optional:
            return None
        if not isinstance(data, dict):
            raise SchemaError(path, f"must be a table, not {_name(data)}")
        kind = data.get("kind", default)
        decoder = by_kind.get(kind, others) if isinstance(kind, str) else None
        if decoder is None:
            raise SchemaError(_join(path, "kind"), f"must be one of {', '.join(by_kind)}")
        return decoder(data, path)

    return decode_tagged


def _dataclass(shape: type) -> Decoder:
    hints = typing.get_type_hints(shape, include_extras=True)
    fields = dataclasses.fields(shape)
    decoders = {field.name: _decoder(hints[field.name]) for field in fields}
    required = [
        field.name
        for field in fields
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]

    def decode_dataclass(data: Any, path: str) -> Any:
        if not isinstance(data, dict):
            raise SchemaError(path, f"must be a table, not {_name(data)}")
        for key in data:
            if key not in decoders:
                raise unknown_key(key, tuple(decoders), path)
        for name in required:
            if name not in data:
                raise SchemaError(_join(path, name), "is required but missing")
        values = {name: decoders[name](item, _join(path, name)) for name, item in data.items()}
        try:
            return shape(**values)
        except SchemaError as error:
            raise SchemaError(_join(path, error.path), error.problem, error.hint) from error
        except ValueError as error:
            raise SchemaError(path, str(error)) from error

    return decode_dataclass


def unknown_key(key: Any, known: tuple[str, ...], path: str = "") -> SchemaError:
    """Return the error for a key that is none of `known`; a guess helps more than listing all of them."""
    close = difflib.get_close_matches(_key_text(key), known, n=1)
    hint = f"did you mean {close[0]}?" if close else f"known here: {', '.join(known)}"
    return SchemaError(_join(path, _key_text(key)), "unknown key", hint)


def _check_size(length: int, size: Size, unit: str, path: str) -> None:
    if not size.low <= length <= size.high:
        wanted = f"{size.low}" if size.low == size.high else f"{size.low} to {size.high}"
        raise SchemaError(path, f"must have {wanted} {unit}, not {length}")


def _span_text(span: Range) -> str:
    if span.low == -math.inf:
        return f"at most {span.high}"
    if span.high in (math.inf, 2**63 - 1):
        return f"at least {span.low}"
    return f"{span.low} to {span.high}"


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path and name else path or name


def _key_text(key: Any) -> str:
    """Keys may come from the network: keep them short and printable."""
    return repr(key)[:40] if not isinstance(key, str) or not key.isidentifier() else key[:40]


def _name(data: Any) -> str:
    """Say what was found in the words of the file, never the content itself."""
    names: dict[type, str] = {
        bool: "true/false",
        int: "a whole number",
        float: "a number",
        str: "text",
    }
    names |= {
        bytes: "bytes",
        list: "a list",
        tuple: "a list",
        dict: "a table",
        type(None): "nothing",
    }
    return names.get(type(data), type(data).__name__)
