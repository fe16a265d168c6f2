"""Which files are taken for audio: by the ends of their names, in lower case."""

from __future__ import annotations

LIBSNDFILE_SUFFIXES = frozenset(
    [".aif", ".aiff", ".au", ".caf", ".flac", ".mp3", ".oga", ".ogg", ".opus", ".wav"]
)
"""Read everywhere."""

FFMPEG_SUFFIXES = frozenset([".aac", ".m4a", ".mka", ".mp4", ".webm", ".wma"])
"""Read where there is a decoder for them."""

AUDIO_SUFFIXES = LIBSNDFILE_SUFFIXES | FFMPEG_SUFFIXES
