"""Values of a file as columns of given types; those that do not fit harm their own row only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa

from jina_jax.data.lines import check_string, type_name

Fitted = tuple[pa.Array, dict[int, str]]
_UNFIT = (ValueError, TypeError, OverflowError)  # pyarrow's errors of values among them


def is_text(own: pa.DataType) -> bool:
    """Return whether a type can have texts: strings, bytes (in UTF-8), or nulls alone."""
    kinds = (
        *(pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_null),
        *(pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view),
    )
    return any(kind(own) for kind in kinds)


def fit_array(array: pa.Array, field: pa.Field) -> Fitted:
    """Cast an array.

    Returns:
      The array of the field's type, with nulls where values do not fit, and the reasons by index.
    """
    return _fit(array, field, _cast, lambda part, half: _halves(part, half))


def fit_values(values: Sequence[Any], field: pa.Field) -> Fitted:
    """Make an array of JSON values, as ``fit_array``."""
    return _fit(values, field, _convert, lambda part, half: (part[:half], part[half:]))


def _fit(
    values: Any,
    field: pa.Field,
    make: Callable[[Any, pa.Field], pa.Array],
    divide: Callable[[Any, int], tuple[Any, Any]],
) -> Fitted:
    try:
        return make(values, field), {}
    except _UNFIT as error:
        if len(values) == 1:
            reason = f"column {field.name!r}: {_reason(values[0], field, error)}"
            return pa.nulls(1, field.type), {0: reason}
    half = len(values) // 2
    parts = [_fit(part, field, make, divide) for part in divide(values, half)]
    reasons = parts[0][1] | {half + index: reason for index, reason in parts[1][1].items()}
    return pa.concat_arrays([array for array, _ in parts]), reasons


def _halves(array: pa.Array, half: int) -> tuple[pa.Array, pa.Array]:
    """Divide an array into copies: checks of a slice may look at all values of nested ones."""
    whole = list(range(len(array)))
    return array.take(pa.array(whole[:half])), array.take(pa.array(whole[half:]))


def _cast(array: pa.Array, field: pa.Field) -> pa.Array:
    if is_text(field.type) and is_text(array.type) and not pa.types.is_null(field.type):
        array = array.cast(pa.large_binary())  # the cast from bytes checks that they are UTF-8
    found = array.cast(field.type)
    if pa.types.is_nested(field.type):
        found.validate(full=True)
    return found


def _convert(values: Sequence[Any], field: pa.Field) -> pa.Array:
    found = pa.array(values, field.type)
    if not is_text(field.type) and _bare(found.to_pylist()) != _bare(values):
        raise ValueError(f"expected {field.type}")  # pyarrow cuts 1.5 to 1, and drops fields
    return found


def _bare(value: Any) -> Any:
    """Return a JSON value without the fields of objects that are null."""
    if isinstance(value, dict):
        return {name: _bare(own) for name, own in value.items() if own is not None}
    return [_bare(own) for own in value] if isinstance(value, list | tuple) else value


def _reason(value: Any, field: pa.Field, error: Exception) -> str:
    """Say why one value does not fit."""
    try:
        if is_text(field.type):
            if isinstance(value, pa.Scalar):
                value.cast(pa.binary()).as_py().decode()
            else:
                check_string(value, "value")
    except UnicodeDecodeError as found:
        return f"expected UTF-8 text, got {found.reason} at byte {found.start}"
    except ValueError as found:
        return str(found).removeprefix("value: ")
    if not isinstance(value, pa.Scalar):
        return f"expected {field.type}, got {type_name(value)} ({error})"
    return f"expected {field.type} ({error})"
