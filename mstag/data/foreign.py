"""Arrays in somebody else's samples: the bytes of an .npy or .npz -> an array; never a pickle.

Nothing here trusts its input: sizes are checked before memory is taken, and whatever is wrong
ends as a ValueError that says what and, where the writer can help, how to write it instead.
"""

from __future__ import annotations

import contextlib
import functools
import io
import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mstag.data.shards import Foreign

MAX_ARRAY_BYTES = 1 << 28
"""Of one array, unpacked: what stands between an .npz of a few KB and all memory."""

_NPY_MAGIC = b"\x93NUMPY"
_HEADER_READERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
_MAX_HEADER_BYTES = 10_000  # np.load's own bound
# NumPy reads the header as a Python literal, with what that can end in.
_HEADER_ERRORS = (
    ValueError,
    TypeError,
    SyntaxError,
    OverflowError,
    MemoryError,
    RecursionError,
    tokenize.TokenError,
)


def decode_mel(payload: bytes | memoryview, layout: Foreign) -> NDArray[Any]:
    """The spectrogram in a member's bytes, as it is stored, a leading axis of one removed.

    Args:
        payload: the whole member; the array may go on using it.
        layout: says whether it is an .npy or an .npz, and the name of the array in it.

    Returns:
        float16, float32 or float64, (n_mels, num_frames).

    Raises:
        ValueError: not such a file, not such an array, an array that would need a pickle.
    """
    return as_mel(read_array(payload, layout.mel, layout.key))


def as_mel(array: NDArray[Any]) -> NDArray[Any]:
    """An array as a spectrogram, without a leading axis of one.

    Raises:
        ValueError: it is none, by shape or type.
    """
    mel = array[0] if array.ndim == 3 and array.shape[0] == 1 else array
    if mel.ndim != 2 or mel.dtype.kind != "f" or not mel.size:
        raise ValueError(
            f"{array.dtype} of shape {array.shape} is no spectrogram: floats of shape (n_mels, "
            "n_frames) or (1, n_mels, n_frames)"
        )
    return mel


def read_array(payload: bytes | memoryview, member: str, key: str = "") -> NDArray[Any]:
    """The array of an .npy, or the one called ``key`` of an .npz.

    Args:
        payload: the whole file; the array may go on using it.
        member: the file's name or extension.
        key: name of the array in an .npz.

    Raises:
        ValueError: see :func:`read_npy`; or no such array in the .npz.
    """
    return read_npy(_from_npz(payload, key) if is_npz(member) else payload)


def is_npz(member: str) -> bool:
    """Whether a file of this name or extension is an .npz."""
    return member.rpartition(".")[2] == "npz"


def read_npy(payload: bytes | memoryview) -> NDArray[Any]:
    """The array of an .npy file's bytes, which it goes on using.

    Returns:
        Numbers of 1 to 8 bytes, little-endian, in C order; read-only.

    Raises:
        ValueError: not an .npy file, cut, or an array of another kind.
    """
    fixed = bytes(payload[:12])
    if len(fixed) < 12 or fixed[:6] != _NPY_MAGIC:
        raise ValueError(r"not an .npy file: it does not begin with \x93NUMPY")
    is_first_version = fixed[6] == 1
    start = 10 if is_first_version else 12
    start += struct.unpack_from("<H" if is_first_version else "<I", fixed, 8)[0]
    if start > _MAX_HEADER_BYTES:
        raise ValueError(f"an .npy header of {start} bytes, at most {_MAX_HEADER_BYTES} are read")
    dtype, shape = _parse_header(bytes(payload[:start]))
    needed, found = math.prod(shape) * dtype.itemsize, len(payload) - start
    if needed != found:
        raise ValueError(
            f"cut or damaged: {dtype} of shape {shape} takes {needed} bytes, not {found}"
        )
    flat = np.frombuffer(payload, dtype, offset=start) if found else np.empty(0, dtype)
    return flat.reshape(shape)


# All samples of a set have the same header; reading it costs more than reading the numbers.
@functools.lru_cache(maxsize=256)
def _parse_header(head: bytes) -> tuple[np.dtype[Any], tuple[int, ...]]:
    file = io.BytesIO(head)
    try:
        version = np.lib.format.read_magic(file)
        if version not in _HEADER_READERS:
            raise ValueError(f"version {version[0]}.{version[1]}, known are 1.0 and 2.0")
        shape, is_fortran, dtype = _HEADER_READERS[version](file)
    except _HEADER_ERRORS as error:
        raise ValueError(f"its .npy header cannot be read ({error})") from None
    if dtype.hasobject:
        raise ValueError(
            "an array of Python objects: only a pickle restores it, and a pickle can run code; "
            "write an array of numbers"
        )
    if dtype.kind not in "biuf" or dtype.itemsize > 8:
        raise ValueError(f"{dtype} is no type of plain numbers of at most 8 bytes")
    if dtype.byteorder == ">":
        raise ValueError(
            f"big-endian numbers ({dtype.str}), the loader reads little-endian ones in place: "
            "write it as array.astype(array.dtype.newbyteorder('<'))"
        )
    if is_fortran and len(shape) > 1:
        raise ValueError(
            "in Fortran order, the loader reads C order in place: write it as "
            "np.ascontiguousarray(array)"
        )
    if min(shape, default=0) < 0:
        raise ValueError(f"its shape is {shape}")
    return dtype, shape


def npz_keys(payload: bytes | memoryview) -> list[str]:
    """Names of the arrays in an .npz.

    Raises:
        ValueError: not an .npz.
    """
    with _sound_npz(payload) as archive:
        names = archive.namelist()
    return [name.removesuffix(".npy") for name in names if name.endswith(".npy")]


def _from_npz(payload: bytes | memoryview, key: str) -> bytes:
    with _sound_npz(payload) as archive:
        try:
            info = archive.getinfo(f"{key}.npy")
        except KeyError:
            names = ", ".join(n.removesuffix(".npy") for n in archive.namelist()) or "none"
            raise ValueError(f"no array {key!r} in the .npz; there are: {names}") from None
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"compressed in a way that NumPy does not write: {info.compress_type}")
        # zipfile gives out no more than this, whatever the compressed stream goes on to hold.
        if info.file_size > MAX_ARRAY_BYTES:
            raise ValueError(
                f"array {key!r} takes {info.file_size} bytes, at most {MAX_ARRAY_BYTES} are read"
            )
        return archive.read(info)


@contextlib.contextmanager
def _sound_npz(payload: bytes | memoryview) -> Iterator[zipfile.ZipFile]:
    """An .npz as an archive; what zipfile raises on damaged ones becomes a ValueError.

    It raises RuntimeError for encrypted members and for versions of the format that it does
    not know.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(payload)) as archive:
            yield archive
    except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, RuntimeError) as error:
        raise ValueError(f"not a sound .npz ({error})") from None
