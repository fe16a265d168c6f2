"""The way from a rendered track to a recording of it: room, equaliser, level, hiss.

Reverberation, equalisation and the step from 48 to 16 kHz are one multiplication
of spectra, so that a track costs one transform forth and one back.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Wave = NDArray[np.float32]

SOURCE_HZ = 48_000
SAMPLE_RATE_HZ = 16_000
FACTOR = SOURCE_HZ // SAMPLE_RATE_HZ
# A 32-kbit/s mp3 overshoots by up to a quarter: this keeps what is decoded within full scale.
PEAK = 0.74
LIMIT_FROM = 0.45


@dataclass(frozen=True, slots=True)
class Room:
    """How an artist is recorded.

    Attributes:
        decay_s: reverberation time (to -60 dB); 0 is a dry room.
        wet: amplitude of the reverberation against the direct sound.
        tilt_db: slope of the equaliser in dB per octave around 1 kHz.
        bump_hz: centre of a broad resonance.
        bump_db: its height.
        hiss_db: level of the noise floor, dB of full scale.
    """

    decay_s: float
    wet: float
    tilt_db: float
    bump_hz: float
    bump_db: float
    hiss_db: float


def draw_room(rng: np.random.Generator) -> Room:
    """A random room, from a dry booth to a church."""
    return Room(
        decay_s=float(rng.choice([0.0, 0.4, 0.8, 1.4, 2.2], p=[0.2, 0.25, 0.25, 0.2, 0.1])),
        wet=float(rng.uniform(0.15, 0.45)),
        tilt_db=float(rng.uniform(-2.0, 2.0)),
        bump_hz=float(200 * 2 ** rng.uniform(0, 4.3)),
        bump_db=float(rng.uniform(-6, 6)),
        hiss_db=float(rng.uniform(-80, -64)),
    )


def level_db(wave: Wave) -> float:
    """Root-mean-square level in dB of full scale (a full-scale square wave has 0)."""
    return float(10 * np.log10(np.mean(np.square(wave, dtype=np.float64)) + 1e-12))


def record(wave: Wave, room: Room, target_db: float, rng: np.random.Generator) -> Wave:
    """Puts a track into a room and brings it to a level.

    Args:
        wave: mono at SOURCE_HZ, shape (num_samples,).
        room: where and how it is recorded.
        target_db: level of the whole track, dB of full scale, before limiting.
        rng: source of the hiss.

    Returns:
        Mono at SAMPLE_RATE_HZ, shape (num_samples // FACTOR,), within -PEAK to PEAK.
    """
    num_out = len(wave) // FACTOR
    out = to_wave(*spectrum_in_room(wave, room), num_out)
    out *= np.float32(10 ** ((target_db - level_db(out)) / 20))
    out = limited(out)
    hiss = rng.standard_normal(num_out, dtype=np.float32)
    out += hiss * np.float32(10 ** (room.hiss_db / 20))
    return np.clip(out, -PEAK, PEAK, out=out)


def spectrum_in_room(wave: Wave, room: Room) -> tuple[NDArray[np.complex64], int]:
    """Spectrum at SAMPLE_RATE_HZ of a track at SOURCE_HZ in a room, and its transform's length."""
    import scipy.fft

    size = fast_length(len(wave) // FACTOR + int(room.decay_s * SAMPLE_RATE_HZ))
    # The bins above 8 kHz are dropped: that is the resampling. scipy's transform of this
    # length takes half of NumPy's time.
    spectrum: NDArray[np.complex64] = scipy.fft.rfft(wave, size * FACTOR)[: size // 2 + 1]
    spectrum *= _response(room, size) / np.float32(FACTOR)
    return spectrum, size


def to_wave(spectrum: NDArray[np.complex64], size: int, num_samples: int) -> Wave:
    """The way back: the first samples of a spectrum's wave."""
    import scipy.fft

    wave: Wave = scipy.fft.irfft(spectrum, size)[:num_samples]
    return wave


def fast_length(at_least: int) -> int:
    """The smallest even length with no prime factor above 5, for which the FFT is fast."""
    odds = (3**i * 5**j for i in range(8) for j in range(6))
    return int(min(odd << max(1, math.ceil(math.log2(at_least / odd))) for odd in odds))


def limited(wave: Wave) -> Wave:
    """Rounds peaks off above LIMIT_FROM, so that nothing is cut square."""
    size = np.abs(wave)
    over = size > LIMIT_FROM
    span = PEAK - LIMIT_FROM
    wave[over] = np.sign(wave[over]) * (
        LIMIT_FROM + span * np.tanh((size[over] - LIMIT_FROM) / span)
    )
    return wave


def _response(room: Room, size: int) -> NDArray[np.complex64]:
    """Spectrum of room and equaliser, shape (size // 2 + 1,)."""
    octaves = octaves_from_1khz(size)
    gain_db = room.tilt_db * octaves
    distance = octaves - np.float32(np.log2(room.bump_hz / 1000))
    gain_db += room.bump_db * np.exp(-0.5 * np.square(distance))
    gain: NDArray[np.complex64] = (10 ** (gain_db / 20)).astype(np.complex64)
    if room.decay_s > 0:
        gain *= 1 + np.float32(room.wet) * _reverberation(room.decay_s, size)
    return gain


@lru_cache(maxsize=2)
def octaves_from_1khz(size: int) -> Wave:
    """Where each bin of a spectrum lies, shape (size // 2 + 1,)."""
    # Flat below 50 Hz: a tilt must not blow up the rumble there.
    hz = np.fft.rfftfreq(size, 1 / SAMPLE_RATE_HZ)
    return np.asarray(np.log2(np.maximum(hz, 50) / 1000), dtype=np.float32)


@lru_cache(maxsize=5)
def _reverberation(decay_s: float, size: int) -> NDArray[np.complex64]:
    """Spectrum of decaying noise of unit energy: the simplest room that sounds like one."""
    num = int(decay_s * SAMPLE_RATE_HZ)
    # exp(-6.9) is -60 dB, the definition of the reverberation time.
    envelope = np.exp(-6.9 * np.arange(num) / num)
    noise = np.random.default_rng(num).standard_normal(num) * envelope
    response = (noise / np.sqrt(np.sum(noise**2))).astype(np.float32)
    return np.asarray(np.fft.rfft(response, size), dtype=np.complex64)
