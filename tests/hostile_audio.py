"""Audio files of every kind that people have, and files that are not what they seem."""

from __future__ import annotations

import importlib.util
import io
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import lameenc
import numpy as np
import soundfile

SECONDS = 3.0
RATE_HZ = 16000
TONE_HZ = 440.0
LEVEL = 0.25
HAS_AV = importlib.util.find_spec("av") is not None
MIDDLE = 20000
"""Bytes of garbage, where some is put in: more than the decoders step over by themselves."""


@dataclass(frozen=True)
class Expected:
    """What becomes of a file.

    Attributes:
        path: within the folder; bytes that are no UTF-8 as in ``os.fsdecode``.
        outcome: "packed"; "flagged": packed as far as it goes, and marked as truncated;
            "skipped".
        reason: of the skipped: a pattern of what is said.
    """

    path: str
    outcome: str
    reason: str = ""


def tone(
    seconds: float = SECONDS, rate_hz: int = RATE_HZ, channels: int = 1, hz: float = TONE_HZ
) -> np.ndarray:
    """(n,) or (n, channels), float32: a tone whose mean over the channels has level 0.25."""
    wave = LEVEL * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate_hz)) / rate_hz)
    if channels == 1:
        return wave.astype(np.float32)
    # The channels differ, so that only their mean has the level.
    weights = np.linspace(0.5, 1.5, channels)
    return (wave[:, None] * weights).astype(np.float32)


def noise(seconds: float = SECONDS, rate_hz: int = RATE_HZ) -> np.ndarray:
    """White noise, which no format packs into a few bytes."""
    size = round(seconds * rate_hz)
    return (0.1 * np.random.default_rng(4).standard_normal(size)).astype(np.float32)


def encoded(samples: np.ndarray, kind: str = "WAV", rate_hz: int = RATE_HZ, **how: str) -> bytes:
    """By libsndfile."""
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate_hz, format=kind, **how)
    return buffer.getvalue()


def mp3(samples: np.ndarray, rate_hz: int = RATE_HZ, kbps: int = 64, vbr: bool = False) -> bytes:
    """By LAME, without the tag that counts the frames (as MagnaTagATune's clips)."""
    coder = lameenc.Encoder()
    coder.silence()
    coder.set_in_sample_rate(rate_hz)
    coder.set_channels(1 if samples.ndim == 1 else samples.shape[1])
    coder.set_quality(7)
    if vbr:
        coder.set_vbr(4)
        coder.set_vbr_quality(2)
    else:
        coder.set_bit_rate(kbps)
    pcm = (samples * 32767).astype("<i2").tobytes()
    return bytes(coder.encode(pcm) + coder.flush())


def m4a(samples: np.ndarray, rate_hz: int = 44100, codec: str = "aac", kind: str = "mp4") -> bytes:
    """By FFmpeg; the table of contents is at the end."""
    import av

    channels = 1 if samples.ndim == 1 else samples.shape[1]
    layout = {1: "mono", 2: "stereo"}[channels]
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=kind) as container:
        stream = container.add_stream(codec, rate=rate_hz, layout=layout)
        planes = samples.reshape(-1, channels).T
        form = stream.codec_context.format.name
        if form.startswith("s"):
            whole = np.int16 if form.startswith("s16") else np.int32
            planes = (planes * np.iinfo(whole).max).astype(whole)
        for start in range(0, planes.shape[1], 1024):
            piece = np.ascontiguousarray(planes[:, start : start + 1024])
            frame = av.AudioFrame.from_ndarray(piece, format=form, layout=layout)
            frame.sample_rate, frame.pts = rate_hz, start
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def front_loaded(content: bytes) -> bytes:
    """An m4a file with the table of contents moved to the front, as most are."""
    boxes, offset = [], 0
    while offset < len(content):
        size = int.from_bytes(content[offset : offset + 4], "big")
        boxes.append(content[offset : offset + size])
        offset += size
    (table,) = [box for box in boxes if box[4:8] == b"moov"]
    moved = bytearray(table)
    at = table.index(b"stco") + 12
    for entry in range(int.from_bytes(table[at - 4 : at], "big")):
        place = slice(at + 4 * entry, at + 4 * entry + 4)
        moved[place] = (int.from_bytes(table[place], "big") + len(table)).to_bytes(4, "big")
    first, *rest = [box for box in boxes if box is not table]
    return b"".join([first, bytes(moved), *rest])


def cut(content: bytes, share: float) -> bytes:
    return content[: int(len(content) * share)]


def changed(content: bytes, offset: int, form: str, value: float) -> bytes:
    """With one number of a header replaced."""
    copy = bytearray(content)
    struct.pack_into(form, copy, offset, value)
    return bytes(copy)


def garbage(num_bytes: int = MIDDLE, seed: int = 1) -> bytes:
    return np.random.default_rng(seed).bytes(num_bytes)


def broken(content: bytes, share: float, num_bytes: int) -> bytes:
    """With garbage in place of some bytes in the middle."""
    start = int(len(content) * share)
    return content[:start] + garbage(num_bytes) + content[start + num_bytes :]


def with_zeros(content: bytes, num_bytes: int = 9000) -> bytes:
    """With a hole in the middle, as a failed copy leaves it."""
    middle = len(content) // 2
    return content[:middle] + bytes(num_bytes) + content[middle:]


def flac_claiming(num_frames: int) -> bytes:
    content = bytearray(encoded(tone(), "FLAC"))
    fields = int.from_bytes(content[18:26], "big") >> 36 << 36 | num_frames
    content[18:26] = fields.to_bytes(8, "big")
    return bytes(content)


def _contents() -> list[tuple[str, Callable[[], bytes], str, str]]:
    """(name, maker, outcome, reason) of hostile files that are plain files."""
    wav = encoded(tone())
    stated = encoded(noise(), "MP3")
    unstated = mp3(noise(10))
    flac = encoded(noise(), "FLAC")
    ogg = encoded(noise(20), "OGG", subtype="VORBIS")
    opus = encoded(noise(20), "OGG", subtype="OPUS")
    floats = encoded(tone(), subtype="FLOAT")
    rf64 = encoded(tone(), "RF64")
    only = r"only \d.* of .* s can be decoded"
    no_audio = "cannot be decoded as audio"
    web = b"<!DOCTYPE html>\n<html><head><title>404</title></head><body>gone</body></html>\n"

    def with_samples(values: list[float]) -> bytes:
        samples = tone()
        samples[5000 : 5000 + len(values)] = values
        return encoded(samples, subtype="FLOAT")

    rows: list[tuple[str, Callable[[], bytes], str, str]] = [
        ("empty.mp3", lambda: b"", "skipped", "empty"),
        ("one-byte.wav", lambda: b"R", "skipped", no_audio),
        ("text.mp3", lambda: b"This is a text, not music.\n" * 400, "skipped", "it is text"),
        ("page.mp3", lambda: web * 30, "skipped", "web page"),
        ("picture.flac", lambda: b"\x89PNG\r\n\x1a\n" + garbage(), "skipped", "an image"),
        ("photo.mp3", lambda: b"\xff\xd8\xff\xe0\0\x10JFIF\0" + garbage(), "skipped", "an image"),
        ("paper.ogg", lambda: b"%PDF-1.7\n" + garbage(), "skipped", "PDF"),
        ("album.mp3", lambda: b"PK\x03\x04" + garbage(), "skipped", "archive"),
        ("score.wav", lambda: b"MThd\0\0\0\x06\0\1\0\1\0\x60", "skipped", "MIDI"),
        ("._song.mp3", lambda: b"\0\5\x16\7\0\2\0\0Mac OS X" + bytes(99), "skipped", "AppleDouble"),
        ("random.mp3", lambda: garbage(50000, 3), "skipped", no_audio),
        ("zeros.wav", lambda: bytes(5000), "skipped", "zeros"),
        ("ones.mp3", lambda: b"\xff" * 50000, "skipped", no_audio),
        ("syncs.mp3", lambda: b"\xff\xfb\x90\x44" * 20000, "skipped", no_audio),
        ("sync-and-zeros.mp3", lambda: b"\xff\xfb\x90\x44" + bytes(5000), "skipped", no_audio),
        ("id3-alone.mp3", lambda: b"ID3\3\0\0\0\0\x0f\x76" + bytes(2038), "skipped", no_audio),
        ("id3-of-256MB.mp3", lambda: b"ID3\3\0\0" + b"\x7f" * 4 + stated, "skipped", no_audio),
        ("header.wav", lambda: wav[:44], "skipped", "no audio"),
        ("half-header.wav", lambda: wav[:30], "skipped", no_audio),
        ("magic.flac", lambda: b"fLaC" + bytes(1000), "skipped", no_audio),
        ("header.flac", lambda: flac[:42], "skipped", "only 0.0|no audio|cannot be decoded"),
        ("magic.ogg", lambda: b"OggS" + bytes(1000), "skipped", no_audio),
        ("magic.caf", lambda: b"caff\0\1\0\0desc" + bytes(300), "skipped", no_audio),
        ("nan.wav", lambda: with_samples([np.nan]), "skipped", "not finite"),
        ("inf.wav", lambda: with_samples([-np.inf]), "skipped", "not finite"),
        ("loud.wav", lambda: with_samples([1e30]), "skipped", "no sound"),
        ("all-nan.wav", lambda: with_samples([np.nan] * 43000), "skipped", "not finite"),
        ("no-samples.wav", lambda: encoded(np.zeros(0)), "skipped", "no audio"),
        ("silence.wav", lambda: encoded(np.zeros(48000)), "skipped", "silent"),
        ("silence.mp3", lambda: mp3(np.zeros(48000, np.float32)), "skipped", "silent"),
        ("rate-0.wav", lambda: changed(wav, 24, "<I", 0), "skipped", no_audio),
        ("rate-2GHz.wav", lambda: changed(wav, 24, "<I", 2_000_000_000), "skipped", "samples a s"),
        ("rate-4GHz.wav", lambda: changed(wav, 24, "<I", 4_000_000_000), "skipped", no_audio),
        ("channels-0.wav", lambda: changed(wav, 22, "<H", 0), "skipped", no_audio),
        ("channels-1000.wav", lambda: changed(wav, 22, "<H", 1000), "skipped", "1000 channels"),
        ("channels-65535.wav", lambda: changed(wav, 22, "<H", 65535), "skipped", no_audio),
        ("2-to-the-40.wav", lambda: changed(rf64, 28, "<Q", 1 << 41), "skipped", only),
        ("2-to-the-36.flac", lambda: flac_claiming(2**36 - 1), "skipped", only),
        ("cut.wav", lambda: cut(wav, 0.7), "flagged", ""),
        ("stump.wav", lambda: cut(wav, 0.3), "skipped", only),
        ("cut-float.wav", lambda: cut(floats, 0.7), "flagged", ""),
        ("cut-rf64.wav", lambda: cut(rf64, 0.7), "flagged", ""),
        ("cut.w64", lambda: cut(encoded(tone(), "W64"), 0.7), "flagged", ""),
        ("cut.aiff", lambda: cut(encoded(tone(), "AIFF"), 0.7), "flagged", ""),
        ("cut.au", lambda: cut(encoded(tone(), "AU"), 0.7), "flagged", ""),
        ("cut.flac", lambda: cut(flac, 0.7), "flagged", ""),
        ("stump.flac", lambda: cut(flac, 0.3), "skipped", only),
        ("cut.ogg", lambda: cut(ogg, 0.7), "flagged", ""),
        ("cut.opus", lambda: cut(opus, 0.7), "flagged", ""),
        ("cut-stated.mp3", lambda: cut(stated, 0.7), "flagged", ""),
        ("stump-stated.mp3", lambda: cut(stated, 0.3), "skipped", only),
        ("cut-unstated.mp3", lambda: cut(unstated, 0.7), "packed", ""),
        ("garbage.mp3", lambda: broken(unstated, 0.5, 9000), "flagged", ""),
        ("much-garbage.mp3", lambda: broken(unstated, 0.1, 60000), "skipped", only),
        ("zeros-inside.mp3", lambda: with_zeros(unstated), "flagged", ""),
        ("garbage.flac", lambda: broken(flac, 0.7, 3000), "flagged", ""),
        ("garbage.ogg", lambda: broken(ogg, 0.5, 3000), "flagged", ""),
        ("garbage.opus", lambda: broken(opus, 0.5, 3000), "flagged", ""),
        ("garbage-before.mp3", lambda: b"\x01" + garbage(3000) + unstated, "packed", ""),
        ("tags-behind.mp3", lambda: unstated + b"APETAGEX" + garbage(5000), "packed", ""),
        ("mp3-named.wav", lambda: stated, "packed", ""),
        ("no-ending", lambda: flac, "packed", ""),
        ("size-0.wav", lambda: changed(wav, 40, "<I", 0), "packed", ""),
        ("size-unknown.wav", lambda: changed(wav, 40, "<I", 0xFFFFFFFF), "packed", ""),
        ("size-unknown.flac", lambda: flac_claiming(0), "packed", ""),
        ("one-sample.wav", lambda: encoded(np.array([0.5])), "packed", ""),
        ("name with\nnewline\r.wav", lambda: wav, "packed", ""),
        (os.fsdecode(b"no-utf8-\xe9\xff.wav"), lambda: wav, "packed", ""),
        ("-rf *;$(echo).wav", lambda: wav, "packed", ""),
    ]  # fmt: skip
    if HAS_AV:
        music = m4a(noise(rate_hz=44100))
        front = front_loaded(music)
        rows += [
            ("no-table.m4a", lambda: cut(music, 0.7), "skipped", no_audio),
            ("cut.m4a", lambda: cut(front, 0.7), "flagged", ""),
            ("stump.m4a", lambda: cut(front, 0.3), "skipped", only),
            ("garbage.m4a", lambda: broken(front, 0.6, 5000), "flagged", ""),
        ]
    rows.append(("magic.m4a", lambda: b"\0\0\0\x20ftypM4A " + bytes(999), "skipped", "m4a"))
    return rows


def make_hostile(folder: Path) -> list[Expected]:
    """Writes hostile files into a folder, and says what must become of each."""
    found = []
    for name, make, outcome, reason in _contents():
        (folder / name).write_bytes(make())
        found.append(Expected(name, outcome, reason))
    (folder / "folder.wav").mkdir()
    (folder / "dangling.wav").symlink_to("nowhere.wav")
    (folder / "loop.wav").symlink_to("loop.wav")
    os.mkfifo(folder / "pipe.wav")
    (folder / "device.wav").symlink_to("/dev/zero")
    found += [
        Expected("folder.wav", "skipped", "folder|no file"),
        Expected("dangling.wav", "skipped", "no such file|no file"),
        Expected("loop.wav", "skipped", "symbolic link|no file"),
        Expected("pipe.wav", "skipped", "pipe|no file"),
        Expected("device.wav", "skipped", "device|no file"),
    ]
    return found


def make_good(folder: Path) -> list[Expected]:
    """Writes at least 40 good files with a tone, of many formats, rates and channels."""
    found = []
    kinds = [
        ("wav", "WAV", "PCM_16"),
        ("wav", "WAV", "PCM_24"),
        ("wav", "WAV", "PCM_U8"),
        ("wav", "WAV", "FLOAT"),
        ("wav", "WAVEX", "PCM_32"),
        ("wav", "RF64", "DOUBLE"),
        ("w64", "W64", "PCM_16"),
        ("flac", "FLAC", "PCM_16"),
        ("flac", "FLAC", "PCM_24"),
        ("aiff", "AIFF", "PCM_16"),
        ("au", "AU", "PCM_16"),
        ("caf", "CAF", "PCM_16"),
        ("ogg", "OGG", "VORBIS"),
        ("opus", "OGG", "OPUS"),
        ("mp3", "MP3", "MPEG_LAYER_III"),
    ]
    forms = [(8000, 1), (22050, 2), (44100, 1), (48000, 2), (96000, 6), (192000, 1)]
    lossy_rates = {"MP3": (8000, 22050, 44100, 48000), "OPUS": (8000, 48000)}
    for suffix, kind, subtype in kinds:
        allowed = lossy_rates.get(kind, lossy_rates.get(subtype))
        usable = [form for form in forms if allowed is None or form[0] in allowed]
        for rate_hz, channels in usable[len(found) % 2 :: 2]:
            name = f"{len(found):02d}-{kind}-{subtype}-{rate_hz}-{channels}.{suffix}"
            samples = tone(rate_hz=rate_hz, channels=channels)
            (folder / name).write_bytes(encoded(samples, kind, rate_hz, subtype=subtype))
            found.append(Expected(name, "packed"))
    made = {
        "unstated.mp3": mp3(tone(rate_hz=44100, channels=2), 44100, kbps=128),
        "unstated-vbr.mp3": mp3(tone(rate_hz=44100), 44100, vbr=True),
    }
    if HAS_AV:
        stereo = tone(rate_hz=44100, channels=2)
        made["aac.m4a"] = m4a(stereo)
        made["front.m4a"] = front_loaded(m4a(tone(rate_hz=48000), 48000))
        made["alac.m4a"] = m4a(stereo, codec="alac", kind="ipod")
        made["adts.aac"] = m4a(tone(rate_hz=22050), 22050, kind="adts")
    for name, content in made.items():
        (folder / name).write_bytes(content)
        found.append(Expected(name, "packed"))
    return found
