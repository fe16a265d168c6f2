"""Decoding with libsndfile: wav, flac, ogg, opus, mp3, aiff and rarer kinds."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mstag.data import headers, mp3
from mstag.data.audio_bytes import BytesStream, Stream, unreadable
from mstag.data.decoders import LOSSY_SLACK_FRAMES, joined, mono
from mstag.data.resampling import Waveform

PIECE_SAMPLES = 2**24
"""Samples of all channels that are decoded at a time (64 MB): one piece for 64 s of mono at
192 kHz, whatever a header claims."""
_STRETCH = 16
"""So much longer than it is do we say a file is that would be cut at a guess; 320 : 20 kbit/s."""
_PREROLL_FRAMES = 20_000
"""Decoded before a place that is sought: mp3 borrows bits from the frames before, and Opus
remembers (RFC 7845, 4.6: 3840 frames); without it, what comes first is up to 0.1 off."""
_SMALL_REST_BYTES = 4096
"""Behind the last frame of an mp3 file: a tag, half a frame."""
_UNHELPFUL_ERRORS = (1, 7, 24, 29)
"""libsndfile's numbers for: not recognised, no regular file(!), no SF_INFO, and no idea."""
_MARK_EVERY = 64
"""Frames from one mark of what was not decoded to the next."""
_UNKNOWN_FRAMES = 2**60
"""What libsndfile says of flac files that do not say (2**63 - 1) lies above."""


class SndfileDecoder:
    """See :class:`mstag.data.decoders.Decoder`.

    Raises:
        ValueError: it cannot be decoded, or claims what no audio is.
    """

    def __init__(self, stream: Stream, kind: str) -> None:
        import soundfile

        self._errors = (soundfile.LibsndfileError, RuntimeError)
        self._kind = kind
        self._stream = _completed(stream, kind)
        self._lossy = kind in ("mp3", "ogg")
        self._guess = kind == "mp3" and not mp3.states_its_length(stream)
        self.damaged = kind == "ogg" and headers.ogg_is_cut(stream)
        self._repaired = False
        self._usable = 1.0
        self._file = self._open_or_repair()
        self.rate_hz = int(self._file.samplerate)
        self._channels = int(self._file.channels)
        headers.require_plausible(self.rate_hz, self._channels)
        self.slack_frames = LOSSY_SLACK_FRAMES if self._lossy else 0
        self._frames = int(self._file.frames) // (_STRETCH if self._guess else 1)
        self._guess = self._guess or self._frames >= _UNKNOWN_FRAMES
        self._promised = None if self._guess else self._promise()
        self._position = 0
        self._ended = False

    @property
    def promised_frames(self) -> int | None:
        """See :class:`mstag.data.decoders.Decoder`."""
        if self._promised is None and self.damaged and self._ended:
            return int(self._position / self._usable)
        return self._promised

    def seek(self, frame: int) -> None:
        """See :class:`mstag.data.decoders.Decoder`."""
        frame = frame if self._guess else min(frame, self._frames)
        try:
            before = max(0, frame - _PREROLL_FRAMES) if self._lossy else frame
            self._position = int(self._file.seek(before))
            self._skip(frame - before)
        except self._errors:
            # Damaged, or without what it takes to seek: the slow way.
            self._file.close()
            self._file = self._open()
            self._position = 0
            self._skip(frame)

    def read(self, num_frames: int) -> Waveform:
        """See :class:`mstag.data.decoders.Decoder`."""
        pieces: list[Waveform] = []
        while num_frames > 0 and not self._ended:
            samples = self._piece(num_frames)
            num_frames -= len(samples)
            if len(samples):
                pieces.append(mono(samples))
        return joined(pieces)

    def close(self) -> None:
        """See :class:`mstag.data.decoders.Decoder`."""
        self._file.close()
        self._stream.close()

    def _piece(self, num_frames: int) -> NDArray[np.float32]:
        """Up to so many frames of all channels: (n, channels)."""
        expected = self._frames - self._position
        if self._guess:
            # A little more than the guess, so that one piece is enough for most files.
            expected = max(expected + expected // 64, 2 * LOSSY_SLACK_FRAMES)
        wanted = min(num_frames, expected, PIECE_SAMPLES // self._channels)
        if wanted <= 0:
            self._ended = True
            return np.empty((0, self._channels), np.float32)
        # A number that no decoder gives marks what was not reached when one fails.
        out = np.empty((wanted, self._channels), np.float32)
        out[::_MARK_EVERY, -1] = np.nan
        try:
            samples: NDArray[np.float32] = self._file.read(out=out)
        except self._errors:
            self._require_no_failure()
            missed = np.flatnonzero(np.isnan(out[::_MARK_EVERY, -1]))
            # Between the last mark that was reached and the first that was not: who knows.
            end = max(0, int(missed[0]) - 1) * _MARK_EVERY if missed.size else wanted
            samples = out[:end]
            self._position += len(samples)
            self._after_damage()
        else:
            self._position += len(samples)
            self._ended = len(samples) < wanted
            self._require_no_failure()
            if self._ended and self._kind == "mp3" and self._left_behind():
                self._after_damage()
        return samples

    def _require_no_failure(self) -> None:
        if self._stream.failure is not None:
            raise unreadable(self._stream.failure)

    def _left_behind(self) -> bool:
        """Whether an mp3 file goes on where its decoder ended, without a word."""
        here = self._stream.tell()
        rest = self._stream.seek(0, os.SEEK_END) - here
        self._stream.seek(here)
        return rest > _SMALL_REST_BYTES

    def _after_damage(self) -> None:
        """Goes on behind the damage where that is possible, else ends."""
        self._ended = True
        if self._kind == "mp3" and not self._repaired and mp3.ends_in_tags(self._stream):
            return
        self.damaged = True
        self._usable = self._stream.tell() / max(1, self._stream.seek(0, os.SEEK_END))
        if self._kind == "mp3" and self._repair():
            position, self._position = self._position, 0
            self._file.close()
            self._file = self._open()
            form = (self._file.samplerate, self._file.channels)
            self._ended = form != (self.rate_hz, self._channels)
            self._skip(position)

    def _skip(self, num_frames: int) -> None:
        while num_frames > 0 and not self._ended:
            num_frames -= len(self._piece(min(num_frames, 2**16)))

    def _promise(self) -> int:
        """Frames of the whole file, by the share of its claimed bytes that is there."""
        here = self._stream.tell()  # where libsndfile believes it is
        claim = headers.claimed_data(self._stream, self._kind)
        size = self._stream.seek(0, os.SEEK_END)
        self._stream.seek(here)
        if claim is None:
            return self._frames
        start, claimed = claim
        there = size - start
        missing = there > 0 and claimed > there
        return self._frames * claimed // there if missing else self._frames

    def _open_or_repair(self) -> Any:
        try:
            return self._open()
        except self._errors as error:
            fault = ""
            if getattr(error, "code", 0) not in _UNHELPFUL_ERRORS:
                words = str(getattr(error, "error_string", error)).strip().rstrip(".")
                fault = f" (the decoder says: {words})"
        if self._kind in ("mp3", "") and self._repair():
            try:
                return self._open()
            except self._errors:
                pass
        self._stream.seek(0)
        other = headers.not_audio(self._stream.read(headers.HEAD_BYTES))
        if other is not None:
            raise ValueError(f"cannot be decoded as audio: it is {other}")
        if not self._kind:
            raise ValueError("cannot be decoded as audio: it starts like no known kind of it")
        raise ValueError(
            f"cannot be decoded as audio: it starts like {self._kind}, but is cut off or damaged, "
            f"or of a rare variety{fault}"
        )

    def _open(self) -> Any:
        import soundfile

        self._stream.stretch = _STRETCH if self._guess else 1
        self._stream.seek(0)
        file = soundfile.SoundFile(self._stream)
        self._stream.stretch = 1
        # soundfile seeks after every read of a seekable file, to where it is already: a loss
        # of time, and of the samples where a damaged file cannot seek.
        file.seekable = lambda: False
        return file

    def _repair(self) -> bool:
        """Leaves out what is not mp3 in the stream; False: no hope, or done before."""
        if self._repaired or not isinstance(self._stream, BytesStream):
            return False
        self._repaired = True
        start = mp3.after_id3(self._stream) if self._kind == "mp3" else 0
        broken = self._stream.getvalue()
        content, gap = mp3.reframed(broken, start)
        if not content:
            return False
        self._usable = len(content) / (len(broken) - start)
        self._stream.close()
        self._stream = BytesStream(content)
        self._kind = "mp3"
        self._lossy = True
        self._guess = not mp3.states_its_length(self._stream)
        self.damaged = gap
        return True


def _completed(stream: Stream, kind: str) -> Stream:
    """Fills in the size of a wav file that was never closed: all that follows is sound."""
    claim = headers.claimed_data(stream, kind) if kind == "wav" else None
    if claim is None or claim[1] != 0:
        return stream
    stream.seek(claim[0])
    following = stream.read(4)
    # Another chunk, by its name of letters, follows when there really is no sound.
    if len(following) < 4 or following.strip().isalnum():
        return stream
    return stream.patched(claim[0] - 4, b"\xff\xff\xff\xff")
