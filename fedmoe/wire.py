"""The wire between server and clients: named arrays packed into one, so that a message holds a single array.

Flower sends each array of a message as objects of its own, and its server spends far more on an object than on its
bytes. Packed arrays are, with all numbers little-endian:

    8 bytes   "FedMoE" and the version of the format, uint16
    4 bytes   the length of the header, uint32
    header    JSON: for each array its name, dtype and shape
    values    of each array in C order, each beginning at a multiple of 16 bytes
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedmoe.errors import FedMoEError

if TYPE_CHECKING:  # packing itself does without Flower
    from flwr.app import ArrayRecord

VERSION = 1
STYPE = "fedmoe.wire"  # tells, in Flower's record, that an array's bytes are packed arrays
ROWS = "/rows"  # NAME/rows are the ids of the rows that travel of a table NAME, where not all of them do
PACKED = "packed"  # of that array
_BEGIN = struct.Struct("<6sHI")
_MAGIC = b"FedMoE"
_ALIGNMENT = 16
_LONGEST_HEADER = 2**20  # bytes; parsed JSON takes up to thirty times its size
_MOST_DIMENSIONS = 32
_DTYPES = {kind: np.dtype(kind) for kind in "|b1 |i1 |u1 <i2 <u2 <i4 <u4 <i8 <u8 <f2 <f4 <f8 <c8 <c16".split()}
_SAME = "install the same version of FedMoE on the server and on the clients"

NamedArrays = dict[str, NDArray[Any]]
Packed = bytes | NamedArrays
Layout = Sequence[tuple[str, np.dtype[Any], Sequence[int]]]  # name, dtype and shape of each array


def pack(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Return arrays as bytes, in their order. FedMoEError: an array of objects, texts or times."""
    header, offsets, size = _plan([(name, array.dtype, array.shape) for name, array in arrays.items()])
    parts: list[bytes | memoryview] = [header]
    end = len(header)
    for offset, array in zip(offsets, arrays.values(), strict=True):
        values = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).data
        parts += [bytes(offset - end), values]
        end = offset + values.nbytes
    return b"".join(parts)


def packed_size(layout: Layout) -> int:
    """Return how many bytes arrays take in the record that ``to_record`` makes, as Flower counts them."""
    return len(PACKED) + _plan(layout)[2]


def unpack(data: bytes | bytearray) -> NamedArrays:
    """Return the arrays that were packed, as views of ``data``: to be read only, unless that is a bytearray.

    Raises FedMoEError for bytes of another kind or version, and for damaged ones; ``data`` may come from anybody.
    """
    offset, arrays = 0, {}
    header, offset = _header(data)
    for entry in header:
        name, dtype, shape = _entry(entry)
        if name in arrays:
            raise _damaged(f"array '{name}' comes twice")
        offset = _aligned(offset)
        end = offset + dtype.itemsize * prod(shape)
        if end > len(data):
            raise _damaged(f"array '{name}' {shape} ends after {end} bytes, and {len(data)} came")
        try:
            arrays[name] = np.ndarray(shape, dtype, data, offset)
        except ValueError as error:  # nothing times more than there are addresses
            raise _damaged(f"array '{name}' has the impossible shape {shape}") from error
        offset = end
    if offset != len(data):
        raise _damaged(f"{len(data) - offset} bytes follow the last array")
    return arrays


def to_record(arrays: Mapping[str, NDArray[Any]]) -> ArrayRecord:
    """Return arrays as a record of one packed array, which is what a message holds."""
    from flwr.app import Array, ArrayRecord

    data = pack(arrays)
    record = ArrayRecord()
    record[PACKED] = Array(dtype="uint8", shape=(len(data),), stype=STYPE, data=data)
    return record


def is_packed(record: ArrayRecord) -> bool:
    """Return whether a record comes from ``to_record``."""
    return len(record) == 1 and next(iter(record.values())).stype == STYPE


def packed_bytes(record: ArrayRecord) -> bytes:
    """Return the packed arrays of a record. FedMoEError: its arrays came one by one."""
    if not is_packed(record):
        raise FedMoEError(f"the other side's version of FedMoE does not pack its arrays: {_SAME}")
    data: bytes = next(iter(record.values())).data
    return data


def packed_in(record: ArrayRecord) -> Packed:
    """Return what a record holds; FedMoEError as ``packed_bytes``.

    Within a simulation these are the arrays themselves, to be read only: nothing has packed them (see
    ``simulation.flower_runtime.Unpacked``).
    """
    arrays: NamedArrays | None = getattr(next(iter(record.values()), None), "unpacked", None)
    return packed_bytes(record) if arrays is None else arrays


def size_of(record: ArrayRecord) -> int:
    """Return how many bytes a record takes, as Flower counts them; what is not packed yet stays so."""
    if is_packed(record):
        return sum(len(name) + int(array.shape[0]) for name, array in record.items())
    size: int = record.count_bytes()
    return size


def _plan(layout: Layout) -> tuple[bytes, list[int], int]:
    """Return all that precedes the values, the place of each array's first value, and the size of the whole."""
    about = []
    for name, dtype, shape in layout:
        kind = dtype.newbyteorder("<").str
        if kind not in _DTYPES:
            raise FedMoEError(f"array '{name}' has dtype {dtype}: numbers alone can be sent")
        about.append([name, kind, list(shape)])
    header = json.dumps(about, separators=(",", ":")).encode()
    offsets, end = [], _BEGIN.size + len(header)
    for _, dtype, shape in layout:
        offsets.append(_aligned(end))
        end = offsets[-1] + dtype.itemsize * prod(shape)
    return _BEGIN.pack(_MAGIC, VERSION, len(header)) + header, offsets, end


def _header(data: bytes | bytearray) -> tuple[list[Any], int]:
    """Return the header and where it ends."""
    if len(data) < _BEGIN.size:
        raise _damaged(f"only {len(data)} bytes came")
    magic, version, length = _BEGIN.unpack_from(data)
    if magic != _MAGIC:
        raise _damaged("they do not begin as packed arrays do")
    if version != VERSION:
        raise FedMoEError(f"the arrays are packed in version {version} of the format, here it is {VERSION}: {_SAME}")
    end = _BEGIN.size + length
    if length > _LONGEST_HEADER or end > len(data):
        raise _damaged(f"the header has {length} bytes, and {len(data)} came in all")
    try:
        header = json.loads(bytes(data[_BEGIN.size : end]))
    except (ValueError, RecursionError) as error:
        raise _damaged("the header is no JSON") from error
    if not isinstance(header, list):
        raise _damaged("the header is no list of arrays")
    return header, end


def _entry(entry: Any) -> tuple[str, np.dtype[Any], tuple[int, ...]]:
    """Return name, dtype and shape of an array as the header has them."""
    if not (isinstance(entry, list) and len(entry) == 3 and isinstance(entry[0], str) and isinstance(entry[1], str)):
        raise _damaged("the header does not give each array a name, a dtype and a shape")
    name, kind, shape = entry
    if kind not in _DTYPES:
        raise _damaged(f"array '{name}' has the unknown dtype '{kind[:20]}'")
    sizes = isinstance(shape, list) and all(type(size) is int and 0 <= size < 2**63 for size in shape)
    if not sizes or len(shape) > _MOST_DIMENSIONS:
        raise _damaged(f"array '{name}' has no shape")
    return name, _DTYPES[kind], tuple(shape)


def _aligned(offset: int) -> int:
    return -(-offset // _ALIGNMENT) * _ALIGNMENT


def _damaged(fault: str) -> FedMoEError:
    return FedMoEError(f"the packed arrays are damaged: {fault}")
