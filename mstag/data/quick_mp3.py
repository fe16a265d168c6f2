"""Sound mp3 files, decoded the short way.

libsndfile reads an mp3 file in steps of one frame. Where each step is a call back into Python,
1,600 of them take a tenth of the time that decoding 29 s takes; hence the file's descriptor is
handed over here. Whatever is not plain (a length that must be guessed, an error, an early end, a
place to seek) is left to :mod:`mstag.data.sndfile`, from where it stopped.
"""

from __future__ import annotations

import os
from typing import Any

from mstag.data import headers, mp3
from mstag.data.audio_bytes import IN_MEMORY_BYTES, BytesStream, stream_of
from mstag.data.decoders import LOSSY_SLACK_FRAMES, joined, mono
from mstag.data.resampling import Waveform
from mstag.data.sndfile import PIECE_SAMPLES, SndfileDecoder


class QuickMp3Decoder:
    """See :class:`mstag.data.decoders.Decoder`.

    Args:
        descriptor: of a regular file, at its start; owned from here on.
        num_bytes: its size.
        head: its first bytes.

    Raises:
        ValueError: it cannot be decoded, or claims what no audio is.
    """

    slack_frames = LOSSY_SLACK_FRAMES

    def __init__(self, descriptor: int, num_bytes: int, head: bytes) -> None:
        import soundfile

        self._descriptor = descriptor
        self._num_bytes = num_bytes
        self._errors = (soundfile.LibsndfileError, RuntimeError)
        self._file: Any = None
        self._careful: SndfileDecoder | None = None
        self._position = 0
        self._ended = False
        try:
            # The copy shares the file's position, which tells how far was read.
            self._file = soundfile.SoundFile(os.dup(descriptor))
            self._file.seekable = lambda: False  # else it seeks after every read
            self.rate_hz = int(self._file.samplerate)
            headers.require_plausible(self.rate_hz, self._file.channels)
            self._frames = int(self._file.frames)
            self._is_stated = mp3.states_its_length(BytesStream(head))
            if not (self._is_stated or self._is_even()):
                self._be_careful()
        except self._errors:
            self._be_careful()
        except BaseException:
            self.close()
            raise

    @property
    def promised_frames(self) -> int | None:
        """See :class:`mstag.data.decoders.Decoder`."""
        if self._careful:
            return self._careful.promised_frames
        return self._frames if self._is_stated else None

    @property
    def damaged(self) -> bool:
        """See :class:`mstag.data.decoders.Decoder`."""
        return self._careful is not None and self._careful.damaged

    def seek(self, frame: int) -> None:
        """See :class:`mstag.data.decoders.Decoder`."""
        self._be_careful().seek(frame)

    def read(self, num_frames: int) -> Waveform:
        """See :class:`mstag.data.decoders.Decoder`."""
        pieces: list[Waveform] = []
        while num_frames > 0 and not self._ended and self._careful is None:
            wanted = min(num_frames, PIECE_SAMPLES // self._file.channels)
            try:
                samples = self._file.read(wanted, dtype="float32", always_2d=True)
            except self._errors:
                self._be_careful().seek(self._position)
                break
            self._position += len(samples)
            num_frames -= len(samples)
            pieces.append(mono(samples))
            if len(samples) < wanted:
                self._ended = True
                if abs(self._position - self._frames) > LOSSY_SLACK_FRAMES:
                    self._be_careful().seek(self._position)
        if num_frames > 0 and self._careful is not None:
            pieces.append(self._careful.read(num_frames))
        return joined(pieces)

    def close(self) -> None:
        """See :class:`mstag.data.decoders.Decoder`."""
        if self._careful:
            self._careful.close()
            return
        if self._file:
            self._file.close()
        if self._descriptor >= 0:
            os.close(self._descriptor)

    def _is_even(self) -> bool:
        small = self._num_bytes <= IN_MEMORY_BYTES
        return small and mp3.is_even(os.pread(self._descriptor, self._num_bytes, 0))

    def _be_careful(self) -> SndfileDecoder:
        if self._careful is None:
            if self._file:
                self._file.close()
            descriptor, self._descriptor = self._descriptor, -1  # the stream's from here on
            stream = stream_of(descriptor, self._num_bytes)
            try:
                stream.seek(0)
                self._careful = SndfileDecoder(stream, "mp3")
            except BaseException:
                stream.close()
                raise
            self.rate_hz = self._careful.rate_hz
        return self._careful
