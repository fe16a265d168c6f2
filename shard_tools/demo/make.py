"""Tracks -> the folder: which are still to be made, a pool that makes them, the tables at the end.

What is on the disk while a generation runs, and after it was cut short:
``demo.json`` (what was asked for), whole mp3 files, and ``tracks/NNNNN.json``, the record
of a track whose mp3 files are all there. The tables come last; then the records go.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import multiprocessing
import os
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path

from tqdm import tqdm

from mstag import files
from shard_tools.demo.chain import NONE_DB, record_roughly
from shard_tools.demo.piece import (
    CLIP_S,
    CLIPS_PER_TRACK,
    VOCABULARY,
    Piece,
    artist_of_track,
    compose,
    tags_of,
)
from shard_tools.demo.recipe import RECIPES, SMALL, Recipe
from shard_tools.demo.room import SAMPLE_RATE_HZ, Wave, level_db, record
from shard_tools.demo.soundfonts import own
from shard_tools.demo.synth import render
from shard_tools.demo.tables import ClipRow, annotations_table, info_table

PACKAGES = ("music21", "pretty_midi", "midirenderer", "lameenc")
ANNOTATIONS, INFO, REQUEST, RECORDS = (
    *("annotations_final.csv", "clip_info_final.csv", "demo.json", "tracks"),
)
BIT_RATE_KBPS = 32  # MTT's own
LAME_QUALITY = 7  # the fastest setting; at this bit rate slower ones sound no better


@dataclass(frozen=True, slots=True)
class Request:
    """What makes one demo dataset different from another.

    Attributes:
        seed: other music.
        num_clips: how many clips.
        recipe: name of the kind of set.
        soundfonts: of a set that is not rendered with pretty_midi's own.
    """

    seed: int
    num_clips: int
    recipe: str = SMALL.name
    soundfonts: tuple[Path, ...] = ()

    @property
    def kind(self) -> Recipe:
        """The recipe itself."""
        return RECIPES[self.recipe]

    def stored(self) -> dict[str, int | str]:
        """What REQUEST says of it, and what must be the same for a folder to be gone on with."""
        told: dict[str, int | str] = {
            "seed": self.seed,
            "num_clips": self.num_clips,
            "generator_version": self.kind.version,
        }
        return told if self.kind is SMALL else told | {"variant": self.recipe}


def check_packages() -> None:
    """Raises ValueError, naming the remedy, when a package of the extra ``demo`` is missing."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(
            f"the demo dataset cannot be made: {', '.join(missing)} not installed; "
            "run `make setup` or `pip install -e .[demo]`"
        )


def is_complete(data_dir: Path, request: Request) -> bool:
    """Whether the folder already holds the whole dataset that is asked for.

    Raises:
        ValueError: it holds another one, or something else altogether.
    """
    if not data_dir.exists():
        return False
    if not data_dir.is_dir():
        raise ValueError(f"{data_dir}: not a folder; the demo dataset needs one, choose another")
    try:
        found = json.loads((data_dir / REQUEST).read_text(encoding="utf-8"))
        variant = found.get("variant", SMALL.name)
        found = {key: found[key] for key in request.stored() if key != "variant"}
    except FileNotFoundError:
        if any(data_dir.iterdir()):
            raise ValueError(
                f"{data_dir}: holds files but no {REQUEST}, so the demo dataset did not make them "
                "and will not write among them; choose an empty folder or move these away"
            ) from None
        return False
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{data_dir / REQUEST}: cannot be read ({error}); remove {data_dir} and run this again"
        ) from None
    if variant != request.recipe:
        raise ValueError(
            f"{data_dir}: holds the demo dataset of variant {variant!r}, not {request.recipe!r}; "
            f'choose another folder, or set dataset.variant = "{variant}" to use what is there'
        )
    wanted = {key: value for key, value in request.stored().items() if key != "variant"}
    if found != wanted:
        differences = [f"{k} {found[k]}, not {v}" for k, v in wanted.items() if found[k] != v]
        raise ValueError(
            f"{data_dir}: holds a demo dataset with {', '.join(differences)}; "
            "choose another folder, or remove this one to make it anew"
        )
    return (data_dir / ANNOTATIONS).exists()


def make(data_dir: Path, request: Request, num_workers: int, progress: bool) -> None:
    """Makes what is missing of a dataset; the tables are written last.

    Args:
        data_dir: where; see ``is_complete`` for what may be in it.
        request: which dataset.
        num_workers: processes; 1 works in this one.
        progress: whether to show a bar on stderr after two seconds.

    Raises:
        ChildProcessError: a worker died.
    """
    (data_dir / RECORDS).mkdir(parents=True, exist_ok=True)
    if not (data_dir / REQUEST).exists():
        text = json.dumps(request.stored() | {"made_with": _made_with(request)}, indent=2)
        files.write_text(data_dir / REQUEST, text)
    elif request.soundfonts:
        check_soundfonts(data_dir, request)
    num_tracks = -(-request.num_clips // CLIPS_PER_TRACK)
    missing = [track for track in range(num_tracks) if not _is_made(data_dir, request, track)]
    with tqdm(
        total=num_tracks,
        initial=num_tracks - len(missing),
        desc="making the demo dataset",
        unit="track",
        file=sys.stderr,
        delay=2,
        # A log file gets a line now and then, not ten a second.
        mininterval=0.1 if sys.stderr.isatty() else 15,
        disable=not progress,
    ) as bar:
        for _ in _make_tracks(data_dir, request, missing, num_workers):
            bar.update()
    rows = [row for track in range(num_tracks) for row in _read_record(data_dir, track)]
    files.write_text(data_dir / INFO, info_table(rows))
    files.write_text(data_dir / ANNOTATIONS, annotations_table(rows, VOCABULARY))
    shutil.rmtree(data_dir / RECORDS)
    for leftover in data_dir.rglob(".*.tmp"):  # of a process that was killed while it wrote
        leftover.unlink()


def make_track(data_dir: Path, request: Request, track: int) -> None:
    """Makes the clips of one track, then its record. The same bytes wherever it runs."""
    piece, wave = _recorded(request, track)
    bit_rate_kbps = piece.artist.chain.bit_rate_kbps if piece.artist.chain else BIT_RATE_KBPS
    rows = []
    for window in range(_num_windows(request, track)):
        start_s = window * CLIP_S
        clip = wave[start_s * SAMPLE_RATE_HZ : (start_s + CLIP_S) * SAMPLE_RATE_HZ]
        tags = tags_of(piece, window, level_db(clip))
        row = ClipRow(
            clip_id=track * CLIPS_PER_TRACK + window + 1,
            track_number=piece.number,
            title=piece.title,
            artist=piece.artist.name,
            album=piece.artist.album,
            start_s=start_s,
            end_s=start_s + CLIP_S,
            tags=tuple(sorted(tags)),
            split=piece.artist.split,
        )
        files.write_bytes(data_dir / row.mp3_path, encode_mp3(clip, bit_rate_kbps))
        rows.append(row)
    files.write_text(_record_path(data_dir, track), json.dumps([asdict(row) for row in rows]))


def _recorded(request: Request, track: int) -> tuple[Piece, Wave]:
    """A track and the sound of it, at SAMPLE_RATE_HZ."""
    recipe = request.kind
    piece = _composed(request, track)
    rng = recipe.rng(request.seed, 3, track)
    chain = piece.artist.chain
    if chain is None:
        wave = record(render(piece), piece.artist.room, piece.level_db, rng)
        return piece, wave
    other = None
    if chain.other_db > NONE_DB:
        other = _rendered(_composed(request, _next_door(request, track)), request)
    wave = record_roughly(_rendered(piece, request), other, chain, piece.level_db, rng)
    return piece, wave


def _composed(request: Request, track: int) -> Piece:
    return compose(request.seed, track, request.kind, max(1, len(request.soundfonts)))


def _rendered(piece: Piece, request: Request) -> Wave:
    """A piece of a larger set, on a soundfont whose loudness is measured."""
    fonts = request.soundfonts or (own(),)
    return render(piece, fonts[piece.artist.soundfont])


def _next_door(request: Request, track: int) -> int:
    """The next track of another artist of the same split: its music may be heard in this one."""
    recipe, seed = request.kind, request.seed
    artist, _ = artist_of_track(track, recipe)
    split = recipe.split_of(seed, artist)
    other = track + 1
    while True:
        heard, _ = artist_of_track(other, recipe)
        if heard != artist and recipe.split_of(seed, heard) == split:
            return other
        other += 1


def encode_mp3(wave: Wave, bit_rate_kbps: int = BIT_RATE_KBPS) -> bytes:
    """Mono sound at SAMPLE_RATE_HZ -> a constant-bit-rate mp3, 116 kB for a clip of 32 kbit/s."""
    import lameenc

    encoder = lameenc.Encoder()
    encoder.set_bit_rate(bit_rate_kbps)
    encoder.set_in_sample_rate(SAMPLE_RATE_HZ)
    encoder.set_channels(1)
    encoder.set_quality(LAME_QUALITY)
    encoder.silence()
    return bytes(encoder.encode((wave * 32767).astype("<i2").tobytes()) + encoder.flush())


def _made_with(request: Request) -> dict[str, str]:
    """Versions of the packages, and checksums of the user's soundfonts."""
    versions = {name: importlib.metadata.version(name) for name in (*PACKAGES, "numpy")}
    return versions | {path.name: _sha256(path) for path in request.soundfonts}


def check_soundfonts(data_dir: Path, request: Request) -> None:
    """Raises ValueError when a set was begun with other soundfonts than these."""
    made_with = json.loads((data_dir / REQUEST).read_text(encoding="utf-8"))["made_with"]
    begun = {name: digest for name, digest in made_with.items() if name not in {*PACKAGES, "numpy"}}
    given = {path.name: _sha256(path) for path in request.soundfonts}
    if begun != given:
        raise ValueError(
            f"{data_dir}: was made with the soundfonts {', '.join(begun)}, which are not "
            f"{', '.join(given)} as found now, so the set would be of two kinds; name those in "
            "dataset.soundfonts, or remove the folder to make it anew"
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _make_tracks(
    data_dir: Path, request: Request, tracks: list[int], num_workers: int
) -> Iterator[int]:
    """Yields each track number once its track is made."""
    num_workers = min(num_workers, len(tracks))
    if num_workers <= 1:
        for track in tracks:
            make_track(data_dir, request, track)
            yield track
        return
    # Spawned, not forked: a fork of a process with threads (torch's, the caller's) may hang.
    # Nothing that a worker calls starts threads of its own; the processes are the parallelism.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_workers, context, initializer=_start_worker) as pool:
        futures = {pool.submit(make_track, data_dir, request, track): track for track in tracks}
        try:
            for future in as_completed(futures):
                future.result()
                yield futures[future]
        except BrokenProcessPool:
            raise ChildProcessError(
                "a process that renders the demo dataset was killed (out of memory?); "
                "run this again: finished tracks are kept"
            ) from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _start_worker() -> None:
    """Ctrl-C is the parent's to handle; and when the parent is killed, its workers end too."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _num_windows(request: Request, track: int) -> int:
    """How many of a track's clips are asked for: all, but for the last track."""
    return min(CLIPS_PER_TRACK, request.num_clips - track * CLIPS_PER_TRACK)


def _record_path(data_dir: Path, track: int) -> Path:
    return data_dir / RECORDS / f"{track:05d}.json"


def _read_record(data_dir: Path, track: int) -> list[ClipRow]:
    rows = json.loads(_record_path(data_dir, track).read_text(encoding="utf-8"))
    return [ClipRow(**{**row, "tags": tuple(row["tags"])}) for row in rows]


def _is_made(data_dir: Path, request: Request, track: int) -> bool:
    """Whether a track's record and all its clips are there: files are whole or absent."""
    try:
        rows = _read_record(data_dir, track)
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return len(rows) == _num_windows(request, track) and all(
        (data_dir / row.mp3_path).is_file() for row in rows
    )
