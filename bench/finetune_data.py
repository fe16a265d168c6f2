"""The collection of bench/finetune.py: 200 clips with ten tags of their own.

They are of another demo set than the pretraining's: another seed, hence other tracks, artists,
rooms and mixes. Pieces whose score (by title) is in the pretraining set too are left out. What
the two share: the soundfont, the generator's 22 styles, and the ways of mixing and encoding.

Eight tags are unions and intersections of the demo's, under names that it does not have: near
to what the pretraining has learnt. Two are of the recording, of which no tag of it speaks.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Callable
from pathlib import Path

from shard_tools.demo.piece import CLIPS_PER_TRACK, artist_of_track, make_artist
from shard_tools.demo.room import Room

SEED = 1
NUM_MADE, NUM_CLIPS = 495, 200
"""Three rounds of artists are made, of which the first tracks are taken."""

RELATED: dict[str, Callable[[set[str]], bool]] = {
    "plucked": lambda tags: bool(tags & {"guitar", "banjo", "sitar", "harp", "harpsichord"}),
    "bowed": lambda tags: bool(tags & {"strings", "violin", "cello"}),
    "blown": lambda tags: bool(tags & {"woodwind", "flute", "trumpet", "sax", "horn"}),
    "keyboard": lambda tags: bool(tags & {"piano", "organ", "harpsichord"}),
    "calm": lambda tags: "slow" in tags and bool(tags & {"soft", "quiet"}),
    "driving": lambda tags: {"fast", "drums"} <= tags,
    "machine made": lambda tags: bool(tags & {"techno", "electronic", "dance"}),
    "old": lambda tags: bool(tags & {"classical", "baroque", "medieval"}),
}
UNRELATED: dict[str, Callable[[Room], bool]] = {
    "big room": lambda room: room.decay_s >= 1.4,
    "dull recording": lambda room: room.tilt_db < -0.7,
}


def make_collection(demo: Path, pretraining: Path, folder: Path) -> tuple[int, dict[str, int]]:
    """Puts 200 clips of a demo set, and ``tracks.csv``, into a folder.

    Args:
        demo: ``shard-tools fetch demo --seed 1``.
        pretraining: the demo set that the bundle learnt from.
        folder: where to.

    Returns:
        How many artists there are, and the positives of each tag.
    """
    with (demo / "annotations_final.csv").open(encoding="utf-8") as file:
        annotations = {row["mp3_path"]: row for row in csv.DictReader(file, delimiter="\t")}
    known = {row["title"] for row in _info(pretraining) if " piece " not in row["title"]}
    by_artist: dict[int, list[dict[str, str]]] = {}
    for row in _info(demo):
        artist, _ = artist_of_track((int(row["clip_id"]) - 1) // CLIPS_PER_TRACK)
        of_artist = by_artist.setdefault(artist, [])
        same_track = not of_artist or of_artist[0]["title"] == row["title"]
        tags = _tags_of(annotations[row["mp3_path"]], make_artist(SEED, artist).room)
        if tags and row["title"] not in known and same_track:
            of_artist.append(row | {"tags": "|".join(tags), "artist_number": str(artist)})
    # The first clips of all artists, then their second ones: as many artists as there are.
    turns = [rows[n] for n in range(3) for rows in by_artist.values() if n < len(rows)]
    folder.mkdir(parents=True, exist_ok=True)
    positives = dict.fromkeys([*RELATED, *UNRELATED], 0)
    with (folder / "tracks.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["path", "tags", "artist", "track"])
        for number, row in enumerate(turns[:NUM_CLIPS]):
            for tag in row["tags"].split("|"):
                positives[tag] += 1
            path = folder / f"{number:03d}.mp3"
            path.unlink(missing_ok=True)
            os.link(demo / row["mp3_path"], path)
            number_of = row["artist_number"]
            table.writerow([path.name, row["tags"], f"artist {number_of}", f"track {number_of}"])
    return len({row["artist_number"] for row in turns[:NUM_CLIPS]}), positives


def _tags_of(annotation: dict[str, str], room: Room) -> list[str]:
    demo_tags = {tag for tag, value in annotation.items() if value == "1"}
    related = [tag for tag, is_true in RELATED.items() if is_true(demo_tags)]
    return related + [tag for tag, is_true in UNRELATED.items() if is_true(room)]


def _info(demo: Path) -> list[dict[str, str]]:
    with (demo / "clip_info_final.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter="\t"))
