"""Decoding with FFmpeg (PyAV, the extra ``m4a``): m4a, mp4, aac, wma, webm."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mstag.data import headers
from mstag.data.audio_bytes import Stream, unreadable
from mstag.data.decoders import LOSSY_SLACK_FRAMES, joined, mono
from mstag.data.resampling import Waveform

_OPTIONS = {
    # Music only: no playlists, no lists of pictures, and nothing that opens an address.
    "format_whitelist": "mov,aac,asf,matroska",
    "protocol_whitelist": "none",
}
_PREROLL_FRAMES = 8192
"""Decoded before a place that is sought: what comes first after a jump is not yet right."""
_REMEDY = "needs a decoder that is not installed: pip install -e .[m4a]"


class FfmpegDecoder:
    """See :class:`mstag.data.decoders.Decoder`.

    Raises:
        ValueError: it cannot be decoded, claims what no audio is, or PyAV is not installed.
    """

    def __init__(self, stream: Stream, kind: str) -> None:
        try:
            import av
        except ImportError:
            raise ValueError(f"is {kind} audio, which {_REMEDY}") from None
        self._stream = stream
        # PyAV's errors are of several kinds, ValueError and OSError among them.
        self._errors = (av.FFmpegError, ValueError, OSError, EOFError)
        self.damaged = False
        stream.seek(0)
        try:
            self._container: Any = av.open(stream, options=_OPTIONS, metadata_errors="ignore")
        except self._errors as error:
            raise ValueError(_message(kind, error)) from None
        try:
            self._start_decoding(kind)
        except BaseException:
            self._container.close()
            raise

    def _start_decoding(self, kind: str) -> None:
        if not self._container.streams.audio:
            raise ValueError(f"holds no sound that can be decoded, though it starts like {kind}")
        self._track = self._container.streams.audio[0]
        if self._track.codec_context is None:
            raise ValueError(_message(kind, "no such codec"))
        self._track.codec_context.thread_count = 1
        self._frames: Iterator[Any] = self._decoded()
        # Only the first frame tells the rate: headers of HE-AAC give half of it.
        first = next(self._frames, None)
        if first is None:
            raise ValueError(_message(kind, "no sound was found in it"))
        self.rate_hz = int(first.sample_rate)
        headers.require_plausible(self.rate_hz, len(first.layout.channels))
        self.slack_frames = LOSSY_SLACK_FRAMES
        self.promised_frames = None if kind == "aac" else self._promise()
        self._waiting = [first]
        self._position: int | None = 0
        self._drop = 0

    def seek(self, frame: int) -> None:
        """See :class:`mstag.data.decoders.Decoder`."""
        self._drop = frame
        base = self._track.time_base
        if self._waiting[0].pts is None or base is None or frame < 2 * _PREROLL_FRAMES:
            return
        first_pts = self._waiting[0].pts
        target = first_pts + int((frame - _PREROLL_FRAMES) / self.rate_hz / base)
        try:
            self._container.seek(target, stream=self._track, backward=True)
        except self._errors:
            return
        self._frames = self._decoded()
        reached = next(self._frames, None)
        if reached is None or reached.pts is None:
            self._waiting = []
            return
        self._waiting = [reached]
        self._drop = max(0, frame - round((reached.pts - first_pts) * base * self.rate_hz))

    def read(self, num_frames: int) -> Waveform:
        """See :class:`mstag.data.decoders.Decoder`."""
        pieces: list[Waveform] = []
        while num_frames > 0:
            frame = self._waiting.pop() if self._waiting else next(self._frames, None)
            if frame is None:
                break
            samples = frame if isinstance(frame, np.ndarray) else _samples(frame)
            if self._drop:
                dropped = min(self._drop, len(samples))
                self._drop -= dropped
                samples = samples[dropped:]
            if len(samples) > num_frames:
                self._waiting.append(samples[num_frames:])
                samples = samples[:num_frames]
            num_frames -= len(samples)
            pieces.append(samples)
        return joined(pieces)

    def close(self) -> None:
        """See :class:`mstag.data.decoders.Decoder`."""
        self._container.close()
        self._stream.close()

    def _decoded(self) -> Iterator[Any]:
        """Frames of the track; what cannot be decoded is left out, and noted."""
        packets = self._container.demux(self._track)
        rate_hz = None
        while True:
            try:
                packet = next(packets, None)
            except self._errors:
                if self._stream.failure is not None:
                    raise unreadable(self._stream.failure) from None
                self.damaged = True
                return
            if packet is None:
                return
            try:
                frames = packet.decode()
            except self._errors:
                self.damaged = True
                continue
            for frame in frames:
                if rate_hz not in (None, frame.sample_rate):
                    self.damaged = True  # a change of rate in the middle
                    return
                rate_hz = frame.sample_rate
                yield frame

    def _promise(self) -> int | None:
        track = self._track
        if track.duration is not None and track.time_base is not None:
            return int(track.duration * track.time_base * self.rate_hz)
        if self._container.duration is not None:
            return int(self._container.duration * self.rate_hz / 1_000_000)
        return None


def _samples(frame: Any) -> Waveform:
    """A decoded frame of any sample format -> mono, -1 to 1."""
    array: NDArray[Any] = frame.to_ndarray()
    channels = len(frame.layout.channels)
    by_frame = array.T if frame.format.is_planar else array.reshape(-1, channels)
    if array.dtype == np.uint8:
        by_frame = (by_frame.astype(np.float32) - 128) / 128
    elif array.dtype.kind == "i":
        by_frame = by_frame / np.float32(-float(np.iinfo(array.dtype).min))
    return np.ascontiguousarray(mono(by_frame.astype(np.float32, copy=False)))


def _message(kind: str, fault: object) -> str:
    text = str(fault).split("] ")[-1].split(":")[0]
    return (
        f"cannot be decoded as audio: it starts like {kind}, but is cut off or damaged, or of a "
        f"rare variety (the decoder says: {text})"
    )
