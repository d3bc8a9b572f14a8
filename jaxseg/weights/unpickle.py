"""Pickles read an instruction at a time, none of which does more than make plain containers.

A pickle is a program for a small machine, and Python's own reader lets it call what it names. This one admits the
instructions below and hands names, calls and states to its subclasses, which stand for none but their own functions.
"""

import pickle
from typing import Any, NoReturn

__all__ = ["Name", "PlainUnpickler", "UnsafePickle", "is_key", "sizes"]

# Everything that containers of numbers, strings and tensors need. INST, OBJ and EXT, which also call things, are not
# among them, nor LONG4, whose numbers may be of millions of digits.
OPCODES = frozenset(
    """
    PROTO FRAME STOP MARK POP POP_MARK GLOBAL STACK_GLOBAL REDUCE BUILD BINPERSID NONE NEWTRUE NEWFALSE
    INT BININT BININT1 BININT2 LONG LONG1 FLOAT BINFLOAT UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8
    BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST LIST
    APPEND APPENDS EMPTY_DICT DICT SETITEM SETITEMS BINPUT LONG_BINPUT MEMOIZE BINGET LONG_BINGET PUT GET DUP
    """.split()  # noqa: SIM905
)
NAMES = {getattr(pickle, name)[0]: name for name in (*OPCODES, "NEWOBJ")}


class UnsafePickle(ValueError):
    """The file asks for something that is neither a tensor nor a plain container; nothing of it was run."""


class Name:
    """What stands for a name in a pickle: nothing in it can change this."""

    __slots__ = ("value",)
    value: Any

    def __init__(self, value: Any):
        object.__setattr__(self, "value", value)

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise UnsafePickle(f"it sets the attribute {name}")


def is_key(key: Any) -> bool:
    """Whether it may be a key of a dict: the hash of a tuple takes as long as its parts, however often they are one."""
    return isinstance(key, str | int | float | bool | bytes | None)


def sizes(value: Any) -> tuple[int, ...]:
    """The sizes, strides or offsets of an array; ValueError where they are none, whose product may take a century."""
    few = isinstance(value, tuple | list) and len(value) <= 64
    if not few or not all(type(n) is int and 0 <= n < 2**48 for n in value):
        raise ValueError("an array has an impossible size, stride or offset")
    return tuple(value)


def _refuse(reader: "PlainUnpickler") -> NoReturn:
    raise UnsafePickle("it uses an instruction that no tensor needs")


Base: Any = pickle._Unpickler  # the one in Python, whose instructions can be chosen


class PlainUnpickler(Base):
    """Reads one pickle from `file`, which may hold more after it; `size` bytes are the most that it can have.

    Whatever calls make besides what stands in the pickle is at most as much (`take`): a call can be repeated in a
    byte or two, and its result be as large as the file.
    """

    OPCODES = OPCODES

    def __init_subclass__(cls) -> None:
        admitted = {code: function for code, function in cls.dispatch.items() if NAMES.get(code) in cls.OPCODES}
        own = {"REDUCE": cls._reduce, "BUILD": cls._build, "SETITEM": cls._setitem, "SETITEMS": cls._setitems}
        own |= {"DICT": cls._dict, "APPEND": cls._append, "APPENDS": cls._appends}
        own |= {"NEWOBJ": cls._newobj} if "NEWOBJ" in cls.OPCODES else {}
        cls.dispatch = {code: own.get(NAMES.get(code, ""), admitted.get(code, _refuse)) for code in range(256)}

    def __init__(self, file: Any, size: int, encoding: str = "utf-8"):
        super().__init__(file, encoding=encoding)
        self._room = size

    def take(self, count: int) -> None:
        """Notes that a call makes `count` elements or bytes; raises ValueError for more than the file can hold."""
        self._room -= count
        if self._room < 0:
            raise ValueError("it repeats what it holds beyond its own size")

    def find_class(self, module: str, name: str) -> Name:
        """What stands for the name; raises UnsafePickle for one that is not admitted."""
        raise UnsafePickle(f"it asks for {module[:80]}.{name[:80]}")

    def persistent_load(self, pid: Any) -> Any:
        raise UnsafePickle("it asks for a persistent object")

    def build(self, made: Any, state: Any) -> None:
        """Sets the state of an object."""
        raise UnsafePickle("it sets the state of a tensor or a function")

    def make(self, kind: Any, arguments: Any) -> Any:
        """A new object of a class."""
        raise UnsafePickle("it makes an object")

    def _newobj(self) -> None:
        arguments, kind = self.stack.pop(), self.stack.pop()
        self.append(self.make(kind, arguments))

    def _reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if not isinstance(function, Name) or not callable(function.value) or not isinstance(arguments, tuple):
            raise UnsafePickle("it calls what is no function")
        self.append(function.value(self, *arguments))

    def _build(self) -> None:
        state = self.stack.pop()
        self.build(self.stack[-1], state)

    def _put(self, target: Any, items: list[Any]) -> None:
        if not isinstance(target, dict) or len(items) % 2 or not all(map(is_key, items[::2])):
            raise UnsafePickle("it holds a dict whose keys are neither strings nor numbers")
        target.update(zip(items[::2], items[1::2], strict=True))

    def _setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._put(self.stack[-1], [key, value])

    def _setitems(self) -> None:
        items = self.pop_mark()
        self._put(self.stack[-1], items)

    def _dict(self) -> None:
        made: dict[Any, Any] = {}
        self._put(made, self.pop_mark())
        self.append(made)

    def _append(self) -> None:
        item = self.stack.pop()
        self._extend([item])

    def _appends(self) -> None:
        self._extend(self.pop_mark())

    def _extend(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is not list:
            raise UnsafePickle("it appends to what is no list")
        self.stack[-1].extend(items)
