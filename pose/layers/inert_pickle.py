"""A pickle's instructions carried out without importing or calling anything: what it would call is written down.

Opcodes are those that torch's protocol 2 and later ones use; any other is refused.
"""

from __future__ import annotations

import pickletools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pose.errors import TrainingError


@dataclass(frozen=True)
class Name:
    """Something the file would import."""

    module: str
    name: str


@dataclass(eq=False)
class Call:
    """Something the file would call, and what it would then do to the result."""

    function: Any
    arguments: Any
    state: Any = None
    items: list[tuple[Any, Any]] = field(default_factory=list)

    @property
    def named(self) -> tuple[str, str] | None:
        """Module and name of the function, where it has them."""
        return (self.function.module, self.function.name) if isinstance(self.function, Name) else None


@dataclass(frozen=True)
class Stored:
    """A reference to a tensor's data in the archive."""

    key: Any


@dataclass(eq=False)
class Pairs:
    """A dictionary, whose keys may be anything."""

    items: list[tuple[Any, Any]] = field(default_factory=list)


def pairs(made: Any) -> list[tuple[Any, Any]]:
    """The pairs that an OrderedDict is made of."""
    if isinstance(made, Pairs):
        return made.items
    return [(pair[0], pair[1]) for pair in made or [] if len(pair) == 2]


def execute(code: bytes, path: Path) -> Any:
    """What a pickle describes: numbers, strings, lists, tuples, Pairs, Names, Calls and Stored.

    Nothing is imported or called. Raises TrainingError for instructions it does not know and for broken ones.
    """
    machine = _Machine()
    try:
        for opcode, argument, position in pickletools.genops(code):
            if opcode.name == "STOP":
                return machine.stack.pop()
            act = _ACTIONS.get(opcode.name)
            if act is None:
                raise TrainingError(
                    f"{path}: its pickle has the instruction {opcode.name} at byte {position}, which no torch "
                    "checkpoint needs; it is not read any further."
                )
            act(machine, argument)
    except (ValueError, IndexError, KeyError, TypeError, AttributeError) as error:
        raise TrainingError(f"{path}: its pickle is damaged ({type(error).__name__}: {error}).") from error
    raise TrainingError(f"{path}: its pickle ends before its last instruction; the file is damaged.")


class _Machine:
    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def group(self) -> list[Any]:
        """What lies above the latest mark, which goes too."""
        return self.last(len(self.stack) - self.marks.pop())

    def last(self, count: int) -> list[Any]:
        """The topmost values, removed."""
        if not 0 <= count <= len(self.stack):
            raise IndexError(f"{count} values are wanted from a stack of {len(self.stack)}")
        values = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return values

    def call(self) -> None:
        function, arguments = self.last(2)
        self.push(Call(function, arguments))

    def call_new(self) -> None:
        cls, arguments, named = self.last(3)
        self.push(Call(cls, arguments, items=pairs(named)))

    def build(self) -> None:
        state = self.stack.pop()
        top = self.stack[-1]
        if isinstance(top, Call):
            top.state = state

    def set_items(self, values: list[Any]) -> None:
        items = getattr(self.stack[-1], "items", None)
        if not isinstance(items, list):
            raise TypeError(f"entries are set in a {type(self.stack[-1]).__name__}")
        items += list(zip(values[::2], values[1::2], strict=True))

    def append(self, values: list[Any]) -> None:
        # Of anything but a list the entries hold no tensors of modules.
        if isinstance(self.stack[-1], list):
            self.stack[-1].extend(values)

    def keep(self, key: int) -> None:
        self.memo[key] = self.stack[-1]

    def load_global(self, text: str) -> None:
        module, _, name = text.partition(" ")
        self.push(Name(module, name))

    def stack_global(self) -> None:
        module, name = self.last(2)
        self.push(Name(str(module), str(name)))

    def pop(self) -> None:
        self.stack.pop()


def _pushes(*names: str) -> dict[str, Any]:
    return dict.fromkeys(names, lambda machine, argument: machine.push(argument))


_ACTIONS: dict[str, Any] = {
    **_pushes("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    **_pushes("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    **_pushes("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    **dict.fromkeys(("PROTO", "FRAME"), lambda machine, argument: None),
    "NONE": lambda machine, argument: machine.push(None),
    "NEWTRUE": lambda machine, argument: machine.push(True),
    "NEWFALSE": lambda machine, argument: machine.push(False),
    "MARK": lambda machine, argument: machine.marks.append(len(machine.stack)),
    "EMPTY_TUPLE": lambda machine, argument: machine.push(()),
    "EMPTY_LIST": lambda machine, argument: machine.push([]),
    "EMPTY_DICT": lambda machine, argument: machine.push(Pairs()),
    "EMPTY_SET": lambda machine, argument: machine.push([]),
    "TUPLE": lambda machine, argument: machine.push(tuple(machine.group())),
    "TUPLE1": lambda machine, argument: machine.push(tuple(machine.last(1))),
    "TUPLE2": lambda machine, argument: machine.push(tuple(machine.last(2))),
    "TUPLE3": lambda machine, argument: machine.push(tuple(machine.last(3))),
    "LIST": lambda machine, argument: machine.push(machine.group()),
    "FROZENSET": lambda machine, argument: machine.push(machine.group()),
    "APPEND": lambda machine, argument: machine.append(machine.last(1)),
    "APPENDS": lambda machine, argument: machine.append(machine.group()),
    "ADDITEMS": lambda machine, argument: machine.append(machine.group()),
    "SETITEM": lambda machine, argument: machine.set_items(machine.last(2)),
    "SETITEMS": lambda machine, argument: machine.set_items(machine.group()),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), _Machine.keep),
    "MEMOIZE": lambda machine, argument: machine.keep(len(machine.memo)),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda machine, key: machine.push(machine.memo[key])),
    "GLOBAL": _Machine.load_global,
    "STACK_GLOBAL": lambda machine, argument: machine.stack_global(),
    **dict.fromkeys(("REDUCE", "NEWOBJ"), lambda machine, argument: machine.call()),
    "NEWOBJ_EX": lambda machine, argument: machine.call_new(),
    "BUILD": lambda machine, argument: machine.build(),
    "BINPERSID": lambda machine, argument: machine.push(Stored(machine.stack.pop())),
    "POP": lambda machine, argument: machine.pop(),
    "POP_MARK": lambda machine, argument: machine.group() and None,
    "DUP": lambda machine, argument: machine.push(machine.stack[-1]),
}
