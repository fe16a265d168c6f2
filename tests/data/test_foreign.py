from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from mstag.data import foreign
from mstag.data.shards import Foreign

NPY, NPZ = Foreign("mel.npy"), Foreign("npz", "mel")
MEL = np.arange(24, dtype=np.float32).reshape(4, 6)


def npy(array: np.ndarray, version: tuple[int, int] | None = None) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, array, version=version)
    return file.getvalue()


def npz(save: Callable[..., None] = np.savez, **arrays: Any) -> bytes:
    file = io.BytesIO()
    save(file, **arrays)
    return file.getvalue()


def zipped(name: str, content: bytes, method: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        archive.writestr(name, content)
    return file.getvalue()


@given(
    mel=npst.arrays(
        st.sampled_from([np.float16, np.float32, np.float64]),
        st.tuples(st.integers(1, 9), st.integers(1, 9)),
        elements=st.floats(-100, 100, width=16),
    ),
    leading=st.booleans(),
    version=st.sampled_from([(1, 0), (2, 0)]),
    kind=st.sampled_from(["npy", "savez", "savez_compressed"]),
)
def test_what_numpy_writes_is_read(
    mel: np.ndarray, leading: bool, version: tuple[int, int], kind: str
) -> None:
    stored = mel[None] if leading else mel
    if kind == "npy":
        found = foreign.decode_mel(npy(stored, version), NPY)
    else:
        found = foreign.decode_mel(npz(getattr(np, kind), other=MEL, mel=stored), NPZ)
    assert found.dtype == mel.dtype and np.array_equal(found, mel)


def test_a_memoryview_is_read_without_a_copy() -> None:
    memory = bytearray(npy(MEL))
    found = foreign.decode_mel(memoryview(memory), NPY)
    memory[-4:] = struct.pack("<f", -1.0)
    assert found[3, 5] == -1.0


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (MEL.astype(">f4"), "big-endian.*newbyteorder"),
        (np.asfortranarray(MEL), "Fortran order.*ascontiguousarray"),
        (np.array([[{}, {}]]), "Python objects.*pickle can run code"),
        (MEL[0], "no spectrogram"),
        (MEL.reshape(2, 2, 6), "no spectrogram"),
        (MEL.reshape(1, 1, 4, 6), "no spectrogram"),
        (MEL.astype(np.int32), "no spectrogram"),
        (MEL[:0], "no spectrogram"),
        (MEL.astype(np.complex64), "no type of plain numbers"),
        (MEL.astype(np.longdouble), "no type of plain numbers"),
        (np.zeros((2, 2), [("a", "<f4")]), "no type of plain numbers"),
        (np.array([["a"]]), "no type of plain numbers"),
    ],
)
def test_arrays_of_another_kind_are_refused(array: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        foreign.decode_mel(npy(array), NPY)
    with pytest.raises(ValueError, match=message):
        foreign.decode_mel(npz(mel=array), NPZ)


def header(text: bytes, version: bytes = b"\x01\x00") -> bytes:
    return b"\x93NUMPY" + version + struct.pack("<H", len(text)) + text


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (b"", "not an .npy file"),
        (b"PK\x03\x04" + bytes(40), "not an .npy file"),
        (npy(MEL)[:9], "not an .npy file"),
        (npy(MEL)[:40], "header cannot be read"),
        (npy(MEL)[:-1], r"float32 of shape \(4, 6\) takes 96 bytes, not 95"),
        (npy(MEL) + b"\0", "takes 96 bytes, not 97"),
        (npy(MEL, (3, 0)), "version 3.0"),
        (header(b"{'descr': '<f4', 'fortran_order': False, 'shape': (-1, -1)}\n"), "shape is"),
        (
            header(b"{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999, 9999999)}\n"),
            r"takes \d{10,} bytes, not 0",
        ),
        (header(b"[" * 900 + b"\n"), "header cannot be read"),
        (header(b"__import__('os').mkdir('hacked')\n"), "header cannot be read"),
        (header(b"{'descr': '|O', 'fortran_order': False, 'shape': (1, 1)}\n"), "pickle"),
        (b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**31), "header of 2147483660 bytes"),
    ],
)
def test_damaged_npy_files_are_refused(payload: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        foreign.decode_mel(payload, NPY)


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (b"", "not a sound .npz"),
        (npy(MEL), "not a sound .npz"),
        (npz(mel=MEL)[:-30], "not a sound .npz"),
        (npz(spec=MEL, tags=MEL), "no array 'mel' in the .npz; there are: spec, tags"),
        (zipped("mel.npy", npy(MEL), zipfile.ZIP_BZIP2), "compressed in a way"),
        (zipped("mel.npy", npy(MEL), zipfile.ZIP_LZMA), "compressed in a way"),
        (zipped("mel.npy", b"\x80\x04."), "not an .npy file"),
    ],
)
def test_damaged_npz_files_are_refused(payload: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        foreign.decode_mel(payload, NPZ)


def test_an_encrypted_npz_is_refused() -> None:
    payload = bytearray(npz(mel=MEL))
    for magic, flags_at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        payload[payload.index(magic) + flags_at] |= 1
    with pytest.raises(ValueError, match=r"not a sound .npz.*encrypted"):
        foreign.decode_mel(bytes(payload), NPZ)


def test_an_npz_that_unpacks_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = zipped("mel.npy", npy(np.zeros((1000, 1000), np.float32)), zipfile.ZIP_DEFLATED)
    assert len(bomb) < 10_000
    monkeypatch.setattr(foreign, "MAX_ARRAY_BYTES", 1_000_000)
    with pytest.raises(ValueError, match=r"takes 4000128 bytes, at most 1000000"):
        foreign.decode_mel(bomb, NPZ)
    # Lying about the size does not help: no more than that is unpacked, and then the CRC is off.
    lie = bomb.replace(struct.pack("<I", 4_000_128), struct.pack("<I", 900_000))
    assert lie != bomb
    with pytest.raises(ValueError, match=r"not a sound \.npz"):
        foreign.decode_mel(lie, NPZ)


@pytest.mark.filterwarnings("ignore")  # NumPy warns of headers that Python 2 might have written
@given(
    which=st.sampled_from([0, 1, 2]),
    place=st.integers(0, 10**6),
    how=st.one_of(st.integers(1, 255), st.just(0)),
)
def test_damage_anywhere_is_a_value_error_or_another_array(
    which: int, place: int, how: int
) -> None:
    payload = bytearray((npy(MEL), npz(mel=MEL), npz(np.savez_compressed, mel=MEL))[which])
    if how:
        payload[place % len(payload)] ^= how
    else:
        del payload[place % len(payload) :]
    try:
        found = foreign.decode_mel(bytes(payload), (NPY, NPZ, NPZ)[which])
    except ValueError:
        return
    assert found.ndim == 2 and found.dtype.kind == "f"
