"""Pickles of published networks, read without executing anything in them.

A pickle is a program. Here it can only build containers, numbers, strings and inert records for the few
names in `_RECORDS`; it calls no function, neither its own nor NumPy's. `published` says what they mean.
"""

import io
import pickle
import pickletools

from ssdn_tf.errors import UserError

MAX_BYTES = 256 * 2**20
_MAX_INSTRUCTIONS = 10_000  # the largest published network has 3,000; nesting cannot be deeper either
# What protocols 2 to 4 write for containers, numbers, strings, bytes and objects. Left out: persistent
# identifiers, the extension registry, other ways to call something, and buffers outside the file.
_INSTRUCTIONS = set(
    "PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE SHORT_BINUNICODE "
    "BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8 EMPTY_DICT EMPTY_LIST EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 "
    "APPEND APPENDS SETITEM SETITEMS BINGET LONG_BINGET BINPUT LONG_BINPUT MEMOIZE GLOBAL STACK_GLOBAL REDUCE NEWOBJ "
    "BUILD".split()
)


class _Record:
    """Stands for an object or a call that the file asks for: keeps the arguments and does nothing.

    Nor can a file set attributes of these classes: BUILD on a class finds `__setstate__`, and fails.
    """

    __slots__ = ("arguments", "state")

    def __new__(cls, *arguments):
        record = super().__new__(cls)
        record.arguments, record.state = arguments, None
        return record

    def __setstate__(self, state):
        self.state = state


Network, Array, ArrayType, DType, Scalar, Encoded = (
    type(name, (_Record,), {"__slots__": ()})
    for name in ("network", "array", "array type", "dtype", "scalar", "encoded string")
)
_RECORDS = {
    "dnnlib.tflib.network Network": Network,
    "dnnlib.util EasyDict": dict,
    "numpy ndarray": ArrayType,
    "numpy dtype": DType,
    "numpy.core.multiarray _reconstruct": Array,
    "numpy.core.multiarray scalar": Scalar,
    "numpy._core.multiarray _reconstruct": Array,
    "numpy._core.multiarray scalar": Scalar,
    "_codecs encode": Encoded,  # protocol 2 writes bytes as a string and its encoding
}


class _Reader(pickle.Unpickler):
    def find_class(self, module, name):
        allowed = _RECORDS.get(f"{module} {name}")
        expect(allowed, "nothing but a network and its arrays", f"{module}.{name}")
        return allowed


def load(path):
    """The object in a pickle file, made of records.

    Raises:
        UserError: the file cannot be read, is damaged, or contains anything else than a published network needs.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise UserError(f"expected a published network file of at most {MAX_BYTES} bytes, received a larger one.")
        _check_instructions(data)
        return _Reader(io.BytesIO(data)).load()
    except UserError:
        raise
    except Exception as error:  # a damaged pickle can raise almost anything
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise UserError(f"expected a published network file, received one that cannot be read ({reason}).") from error


def _check_instructions(data):
    """Refuses instructions that no published file needs, or that take much memory, before anything is built."""
    size = 0
    for count, (instruction, argument, position) in enumerate(pickletools.genops(data)):
        name, size = instruction.name, position + 1
        expect(name in _INSTRUCTIONS, "a published network file, a pickle of protocol 2 to 4", name)
        place = argument if name.endswith("BINPUT") else 0
        if max(count, place) >= _MAX_INSTRUCTIONS:
            raise UserError(f"expected a pickle of at most {_MAX_INSTRUCTIONS} instructions, received a longer one.")
    expect(size == len(data), f"one object, of {size} bytes", len(data))


def expect(condition, expected, received):
    """Raises UserError "expected ..., received ..." unless the condition holds."""
    if not condition:
        raise UserError(f"expected {expected}, received {shown(received)}.")


def shown(value):
    """Any value as a short phrase on one line, for an error."""
    if type(value) is tuple and len(value) <= 8 and tuple not in map(type, value):
        return f"({', '.join(map(shown, value))})"
    if type(value) is str:
        return repr(value[:80])
    if type(value) is bool or (type(value) is int and abs(value) < 10**9):
        return str(value)
    return "none" if value is None else f"a value of type {type(value).__name__}"
