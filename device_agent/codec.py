"""Strict conversion between NamedTuples and the objects of JSON, driven by the types of the fields.

Fields may be str, int, float, bool, other NamedTuples, ``Tuple[X, ...]`` and ``Optional[X]``. A
NamedTuple may have a method ``problem()`` that says in a few words what is wrong with its values, or
gives "".
"""

import json
from typing import Any, Dict, Tuple, Type, Union, get_type_hints


class ProtocolError(ValueError):
    """A line or a message that is not of the protocol."""


def parse(line: Union[str, bytes]) -> Dict[str, Any]:
    """Reads one JSON object.

    Raises:
        ProtocolError: It is not JSON, no object, or has a field twice or a number beyond JSON.
    """
    try:
        text = line.decode("utf-8") if isinstance(line, bytes) else line
        fields = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_unique)
    except ProtocolError:
        raise
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError and JSONDecodeError among them
        raise ProtocolError("not a line of JSON: {}".format(error)) from None
    if not isinstance(fields, dict):
        raise ProtocolError("expected an object, got {}".format(_kind(fields)))
    return fields


def plain(value: Any) -> Any:
    """NamedTuples to dicts, tuples to lists, all the way down."""
    if hasattr(value, "_fields"):
        return {name: plain(getattr(value, name)) for name in value._fields}
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    return value


def build(value: Any, hint: Any, where: str) -> Any:
    """Turns decoded JSON into the type `hint`.

    Raises:
        ProtocolError: `value` does not fit; the message begins with `where` and the path below it.
    """
    if _is_record(hint):
        return _build_record(value, hint, where)
    origin = getattr(hint, "__origin__", None)
    if origin is Union:  # the only unions here are Optional
        return None if value is None else build(value, hint.__args__[0], where)
    if origin in (tuple, Tuple):
        if not isinstance(value, list):
            raise ProtocolError("{}: expected a list, got {}".format(where, _kind(value)))
        item_hint = hint.__args__[0]
        return tuple(build(item, item_hint, "{}[{}]".format(where, i)) for i, item in enumerate(value))
    return _scalar(value, hint, where)


def check(value: Any, hint: Any, where: str) -> None:
    """Holds a message that is about to be sent to the rules of `build`.

    Raises:
        ProtocolError: `value` is not of the type `hint`.
    """
    origin = getattr(hint, "__origin__", None)
    if _is_record(hint):
        _check_record(value, hint, where)
    elif origin is Union:
        if value is not None:
            check(value, hint.__args__[0], where)
    elif origin in (tuple, Tuple):
        if type(value) is not tuple:
            raise ProtocolError("{}: expected a tuple, got {}".format(where, _kind(value)))
        for index, item in enumerate(value):
            check(item, hint.__args__[0], "{}[{}]".format(where, index))
    else:
        _scalar(value, hint, where)


_HINTS: Dict[Type[Any], Dict[str, Any]] = {}


def _hints(cls: Type[Any]) -> Dict[str, Any]:
    """Field types of a record; kept, as resolving them takes longer than all else here."""
    if cls not in _HINTS:
        _HINTS[cls] = get_type_hints(cls)
    return _HINTS[cls]


def _is_record(hint: Any) -> bool:
    return isinstance(hint, type) and hasattr(hint, "_field_defaults")


def _build_record(value: Any, cls: Type[Any], where: str) -> Any:
    if not isinstance(value, dict):
        raise ProtocolError("{}: expected an object, got {}".format(where, _kind(value)))
    hints = _hints(cls)
    for name in value:
        if name not in hints:
            raise ProtocolError("{}: unknown field {!r}".format(where, name))
    for name in cls._fields:
        if name not in value and name not in cls._field_defaults:
            raise ProtocolError("{}: field {!r} is missing".format(where, name))
    record = cls(**{name: build(item, hints[name], where + "." + name) for name, item in value.items()})
    _check_values(record, where)
    return record


def _check_record(value: Any, cls: Type[Any], where: str) -> None:
    if type(value) is not cls:
        raise ProtocolError("{}: expected {}, got {}".format(where, cls.__name__, _kind(value)))
    for name, hint in _hints(cls).items():
        check(getattr(value, name), hint, where + "." + name)
    _check_values(value, where)


def _check_values(record: Any, where: str) -> None:
    problem = record.problem() if hasattr(record, "problem") else ""
    if problem:
        raise ProtocolError("{}: {}".format(where, problem))


def _scalar(value: Any, hint: Any, where: str) -> Any:
    allowed = (int, float) if hint is float else (hint,)
    if type(value) not in allowed:  # exact: True is no int here
        raise ProtocolError("{}: expected {}, got {}".format(where, hint.__name__, _kind(value)))
    if hint is not float:
        return value
    try:
        value = float(value)
    except OverflowError:
        raise ProtocolError("{}: number out of range".format(where)) from None
    if value - value != 0.0:
        raise ProtocolError("{}: not a finite number".format(where))
    return value


def _refuse_constant(name: str) -> Any:
    raise ProtocolError("{} is not a number of JSON".format(name))


def _unique(pairs: Any) -> Dict[str, Any]:
    fields: Dict[str, Any] = {}
    for key, value in pairs:
        if key in fields:
            raise ProtocolError("field {!r} is there twice".format(key))
        fields[key] = value
    return fields


def _kind(value: Any) -> str:
    return "null" if value is None else type(value).__name__
