"""Somebody else's samples -> rows of a batch: decoded, and stored as float16."""

from __future__ import annotations

import os

import numpy as np
import xxhash

from mstag.data.foreign import decode_mel
from mstag.data.rows import ReadRow
from mstag.data.shards import Foreign


def make_read_row(mel: str, key: str, shape: tuple[int, int]) -> ReadRow:
    """How a sample of this layout becomes a row (see rows.ReadRow).

    Args:
        mel: extension of the member that holds the spectrogram.
        key: name of the array in an .npz.
        shape: (n_mels, num_frames) of the spectrogram.
    """
    layout = Foreign(mel, key)
    mel_bytes = 2 * shape[0] * shape[1]

    def read_row(row: memoryview, handle: int, start: int, num_bytes: int, checksum: int) -> bool:
        payload = os.pread(handle, num_bytes, start)
        if len(payload) != num_bytes or xxhash.xxh3_64_intdigest(payload) != checksum:
            return False
        into = np.frombuffer(row[:mel_bytes], np.float16).reshape(shape)
        into[:] = decode_mel(payload, layout)
        return True

    return read_row
