"""Spectrograms in somebody else's samples: .npy or .npz bytes -> an array; never a pickle."""

from __future__ import annotations

import io
import zipfile
import zlib
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from mstag.data.shards import Foreign, parse_npy


def decode_mel(payload: bytes, layout: Foreign) -> NDArray[Any]:
    """The spectrogram in a member's bytes, as it is stored, a leading axis of one removed.

    Args:
        payload: the whole member.
        layout: says whether it is an .npy or an .npz, and the name of the array in it.

    Returns:
        Floating point, (n_mels, num_frames).

    Raises:
        ValueError: not such a file, not such an array, an array that would need a pickle.
    """
    if layout.mel.endswith("npz"):
        payload = _member_of_npz(payload, layout.key)
    mel = parse_npy(payload, Path(layout.mel))
    if mel.ndim == 3 and mel.shape[0] == 1:
        mel = mel[0]
    if mel.ndim != 2 or mel.dtype.kind != "f":
        raise ValueError(f"{mel.dtype} of shape {mel.shape} is no spectrogram (2-D, floats)")
    return mel


def _member_of_npz(payload: bytes, key: str) -> bytes:
    try:
        with zipfile.ZipFile(io.BytesIO(payload)) as archive:
            return archive.read(f"{key}.npy")
    except (zipfile.BadZipFile, zlib.error, KeyError, NotImplementedError, EOFError) as error:
        raise ValueError(f"no array {key!r} can be read from the .npz ({error})") from None
