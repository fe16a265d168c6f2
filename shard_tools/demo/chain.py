"""The rough way from a rendered track to a recording: what real collections do to music.

One chain belongs to an artist and is drawn from the same ranges in every split: what a test
split adds are other patches and other scores, not a kind of noise that training never had.
Everything is relative to the music's own level, so that tags stay true: a background is at
least 20 dB below it and earns none.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from shard_tools.demo.room import (
    FACTOR,
    PEAK,
    SAMPLE_RATE_HZ,
    Room,
    Wave,
    level_db,
    limited,
    octaves_from_1khz,
    spectrum_in_room,
    to_wave,
)

BIT_RATES_KBPS = (16, 24, 32, 48, 64)
CONCERT_PITCH_HZ = 440.0
LEVEL_SPREAD_DB = 4.0
NONE_DB = -120.0


@dataclass(frozen=True, slots=True)
class Chain:
    """How an artist plays and is recorded.

    Attributes:
        room: reverberation, tilt and a broad resonance, wider than the small set's; its
            hiss is the converter's.
        peaks: narrower resonances: (centre in Hz, height in dB, width in octaves).
        low_cut_hz: below it the sound falls by 12 dB per octave.
        high_cut_hz: above it there is nothing (band limit); 8000 is none.
        drive_db: how far the music is driven into soft clipping; 0 leaves it alone.
        noise_db: broadband noise against the music.
        noise_colour: pole of the filter that colours it: 0 white, towards 1 dull.
        hum_db: mains hum against the music.
        hum_hz: 50 or 60.
        crowd_db: a room of people against the music.
        other_db: another piece of the same split, next door, against the music.
        tuning_hz: of the A above middle C.
        drift: greatest departure from the tempo, as a share of it.
        drift_s: period of that departure.
        bit_rate_kbps: of the mp3.
    """

    room: Room
    peaks: tuple[tuple[float, float, float], ...]
    low_cut_hz: float
    high_cut_hz: float
    drive_db: float
    noise_db: float
    noise_colour: float
    hum_db: float
    hum_hz: float
    crowd_db: float
    other_db: float
    tuning_hz: float
    drift: float
    drift_s: float
    bit_rate_kbps: int

    @property
    def tuning_cents(self) -> float:
        """Against A = 440 Hz."""
        return float(1200 * np.log2(self.tuning_hz / CONCERT_PITCH_HZ))


def draw_chain(rng: np.random.Generator) -> Chain:
    """A random chain, from a studio to a tape of a tape of a church concert."""

    def maybe(probability: float, low: float, high: float) -> float:
        value = float(rng.uniform(low, high))
        return value if rng.random() < probability else NONE_DB

    room = Room(
        decay_s=float(rng.choice([0.0, 0.3, 0.6, 1.0, 1.7, 2.6, 3.6])),
        wet=float(rng.uniform(0.1, 0.9)),
        tilt_db=float(rng.uniform(-4.0, 3.0)),
        bump_hz=float(120 * 2 ** rng.uniform(0, 5.5)),
        bump_db=float(rng.uniform(-9, 9)),
        hiss_db=float(rng.uniform(-84, -66)),
    )
    peaks = tuple(
        (float(100 * 2 ** rng.uniform(0, 6)), float(rng.uniform(-9, 9)), float(width))
        for width in rng.uniform(0.2, 0.8, size=int(rng.integers(0, 4)))
    )
    return Chain(
        room=room,
        peaks=peaks,
        low_cut_hz=float(rng.choice([20.0, 20.0, 60.0, 120.0, 250.0])),
        high_cut_hz=float(rng.choice([8000.0, 8000.0, 8000.0, 6500.0, 5000.0, 3800.0])),
        drive_db=max(0.0, float(rng.uniform(-8, 14))),
        noise_db=maybe(0.6, -45.0, -18.0),
        noise_colour=float(rng.choice([0.0, 0.5, 0.8, 0.95])),
        hum_db=maybe(0.3, -45.0, -24.0),
        hum_hz=float(rng.choice([50.0, 60.0])),
        crowd_db=maybe(0.15, -30.0, -20.0),
        other_db=maybe(0.2, -30.0, -20.0),
        tuning_hz=float(rng.uniform(430, 446)),
        drift=max(0.0, float(rng.uniform(-0.02, 0.08))),
        drift_s=float(rng.uniform(12, 60)),
        bit_rate_kbps=int(rng.choice(BIT_RATES_KBPS)),
    )


def record_roughly(
    wave: Wave, other: Wave | None, chain: Chain, target_db: float, rng: np.random.Generator
) -> Wave:
    """Sends a track through a chain and brings it to a level.

    Args:
        wave: mono at SOURCE_HZ, shape (num_samples,).
        other: what is heard from next door, of the same shape; None: nothing.
        chain: how it is recorded.
        target_db: level of the whole track, dB of full scale, before limiting.
        rng: source of noise and hum.

    Returns:
        Mono at SAMPLE_RATE_HZ, shape (num_samples // FACTOR,), within -PEAK to PEAK.
    """
    if other is not None:
        wave = wave + other * _gain(level_db(wave) + chain.other_db - level_db(other))
    num_out = len(wave) // FACTOR
    spectrum, size = spectrum_in_room(wave, chain.room)
    spectrum *= _equaliser(chain, size)
    out = to_wave(spectrum, size, num_out)
    out *= _gain(-level_db(out))  # to a level of 0 dB, against which the rest is set
    if chain.drive_db > 0:
        # A music's peaks are about 14 dB above its level: there the bend begins.
        bend = _gain(14 - chain.drive_db)
        out = bend * np.tanh(out / bend)
        out *= _gain(-level_db(out))
    for noise, noise_db in (
        (_broadband, chain.noise_db),
        (_hum, chain.hum_db),
        (_crowd, chain.crowd_db),
    ):
        if noise_db > NONE_DB:
            extra = noise(chain, num_out, rng)
            out += extra * _gain(noise_db - level_db(extra))
    out *= _gain(target_db)
    out = limited(out)
    out += rng.standard_normal(num_out, dtype=np.float32) * _gain(chain.room.hiss_db)
    return np.clip(out, -PEAK, PEAK, out=out)


def _gain(db: float) -> np.float32:
    return np.float32(10 ** (db / 20))


def _equaliser(chain: Chain, size: int) -> Wave:
    """Peaks, low cut and band limit as a gain per bin, shape (size // 2 + 1,)."""
    octaves = octaves_from_1khz(size)
    gain_db = np.zeros_like(octaves)
    for centre_hz, height_db, width in chain.peaks:
        distance = (octaves - np.float32(np.log2(centre_hz / 1000))) / np.float32(width)
        gain_db += np.float32(height_db) * np.exp(-0.5 * np.square(distance))
    low = np.float32(np.log2(chain.low_cut_hz / 1000))
    gain_db -= 12 * np.maximum(low - octaves, 0)
    if chain.high_cut_hz < SAMPLE_RATE_HZ / 2:
        high = np.float32(np.log2(chain.high_cut_hz / 1000))
        gain_db -= 90 * np.maximum(octaves - high, 0)
    gain: Wave = (10 ** (gain_db / 20)).astype(np.float32)
    return gain


def _broadband(chain: Chain, num: int, rng: np.random.Generator) -> Wave:
    """Tape or air: white noise through a low-pass of one pole."""
    return _coloured(rng.standard_normal(num, dtype=np.float32), chain.noise_colour)


def _hum(chain: Chain, num: int, rng: np.random.Generator) -> Wave:
    """The mains and its harmonics, weaker the higher."""
    phase = (2 * np.pi * chain.hum_hz / SAMPLE_RATE_HZ) * np.arange(num)
    harmonics = [np.sin(k * phase + rng.uniform(0, 2 * np.pi)) / k for k in (1, 2, 3, 5, 7)]
    hum: Wave = np.sum(harmonics, axis=0, dtype=np.float32)
    return hum


def _crowd(chain: Chain, num: int, rng: np.random.Generator) -> Wave:
    """People who talk: noise in the band of speech that swells a few times a second."""
    noise = _coloured(rng.standard_normal(num, dtype=np.float32), 0.8)
    noise -= _coloured(noise, 0.95) * np.float32(0.05)
    num_steps = 1 + num // (SAMPLE_RATE_HZ // 6)
    swell = rng.gamma(2.0, 0.5, size=num_steps + 1)
    at = np.arange(num) * (num_steps / num)
    envelope = np.interp(at, np.arange(num_steps + 1), swell)
    noise *= envelope.astype(np.float32)
    return noise


def _coloured(noise: Wave, pole: float) -> Wave:
    from scipy.signal import lfilter

    out: Wave = lfilter(np.ones(1, np.float32), np.array([1, -pole], np.float32), noise)
    return out
