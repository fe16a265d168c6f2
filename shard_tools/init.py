"""A folder of somebody's music -> a config to start from, and what was found, as its comments.

Only names, sizes and a few headers are looked at: 100,000 files take seconds.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import shlex
import statistics
import textwrap
import tomllib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from mstag import files
from mstag.config import Config, DatasetConfig, from_tables
from mstag.data import tags
from mstag.data.clips import TagCount
from mstag.models.bundle import read_tagger
from shard_tools import probe
from shard_tools.catalogs import known_kind, read_rows, vocabulary
from shard_tools.catalogs.rows import Rows
from shard_tools.catalogs.walk import Found, find_files

# Fewer clips than this cannot reach three splits in numbers that mean anything.
MIN_POSITIVES = 10
MAX_TAGS = 50
BYTES_PER_VALUE = 2
# From this many windows a file on, one in the middle is suggested instead of all of them.
MANY_WINDOWS = 12
FRAMES_PER_CELL = 64
CHUNK_FRAMES = 471
NETWORK: dict[str, object] = {
    "name": "mscnn2",
    "hidden_units": 256,
    "dropout": 0.4,
    "batchnorm_momentum": 0.1,
    "chunk_frames": CHUNK_FRAMES,
}
TRAINING: dict[str, object] = {
    "epochs": 20,
    "batch_size": 10,
    "learning_rate": 3e-3,
    "schedule": "cosine",
    "warmup_steps": 20,
    "equaliser_db": 3.0,
    "num_time_masks": 2,
    "time_mask_frames": 40,
    "num_mel_masks": 2,
}
"""[model] and [train] of a training from nothing: the best of docs/accuracy.md at 20 epochs."""
FINE_TUNING: dict[str, object] = {
    "epochs": 10,
    "batch_size": 10,
    "learning_rate": 1e-2,
    "freeze_epochs": -1,
    "schedule": "cosine",
    "warmup_steps": 20,
}
"""[train] of a fine-tuning on a few hundred clips: the best of bench/finetune.py."""


@dataclass(slots=True)
class Draft:
    """A config that is being written: its settings and the lines of comment about them."""

    tables: dict[str, dict[str, object]]
    notes: list[str] = field(default_factory=list)


def init(
    folder: Path, out: Path | None = None, name: str | None = None, like: Path | None = None
) -> tuple[Path, str]:
    """Look at a collection and write a config for it.

    Args:
        folder: of the collection.
        out: the file to write; None: configs/NAME.toml.
        name: what to call the dataset; None: as the folder is called.
        like: a bundle, or a run, to fine-tune: the config takes its features and its network,
            and starts from its weights; None: none.

    Returns:
        The file that was written, and what to type next.

    Raises:
        ValueError: no folder, nothing in it, no audio, nothing that could be tags, the file
            is there already, or ``like`` is no bundle, or one that cannot hear audio.
    """
    name = name or plain_name(folder)
    out = out or Path("configs") / f"{name}.toml"
    if out.exists():
        raise ValueError(
            f"{out}: is there already and is not overwritten; remove it, or choose another with "
            "--out or --name"
        )
    if not folder.is_dir():
        raise ValueError(f"{folder}: there is no such folder")
    found = find_files(folder)
    if not (found.audio or found.others or found.excluded):
        raise ValueError(f"{folder}: the folder is empty; put your audio there first")
    dataset, rows, notes = _dataset(folder, found, name)
    draft = Draft({"dataset": dataset}, notes)
    if like is not None:
        _add_fine_tuning(draft, like)
    _add_audio(draft, folder, found, rows)
    if like is None:
        _add_network(draft)
    _add_tags(draft, rows)
    text = _text(folder, draft)
    from_tables(tomllib.loads(text))  # what is written can be loaded
    out.parent.mkdir(parents=True, exist_ok=True)
    files.write_text(out, text)
    return out, _next_commands(folder, out, name)


def plain_name(folder: Path) -> str:
    """A folder's name, fit for files and for make: "My Music" becomes "my-music"."""
    words = re.findall(r"[a-z0-9]+", folder.resolve().name.lower())
    return "-".join(words) or "music"


def _dataset(folder: Path, found: Found, name: str) -> tuple[dict[str, object], Rows, list[str]]:
    """[dataset], what is read with it, and notes on why."""
    kind = known_kind(folder)
    if kind:
        settings = DatasetConfig(name=name, kind=kind)
        rows = read_rows(settings, folder)
        note = f"It holds the tables of {kind}: see also configs/{kind}.toml."
        return {"name": name, "kind": kind}, rows, [note]
    tables = probe.tables(folder, found)
    notes = [table.note for table in tables]
    if tables and tables[0].rows is not None:
        chosen = tables[0]
        notes[0] = f"Taken: {notes[0]}"
        if len(tables) > 1:
            notes[0] += " It is taken because most of its paths are there."
        return {"name": name, "kind": "table", "table": chosen.name}, tables[0].rows, notes
    if not found.audio:
        raise ValueError(
            f"{folder}: no audio file in it{_excluded(found)}, and no table of path and tags, so "
            "there is nothing to pack"
        )
    if not any("/" in path for path in found.audio):
        hint = f" ({'; '.join(notes)})" if notes else ""
        raise ValueError(
            f"{folder}: {len(found.audio):,} audio files but no tags{hint}: write a table (CSV, "
            "TSV or JSON Lines) with the columns path and tags, or put each file into a "
            "sub-folder named after its tag"
        )
    rows = read_rows(DatasetConfig(name=name, kind="folders"), folder)
    notes.append("No table of path and tags: the names of the sub-folders are the tags.")
    return {"name": name, "kind": "folders"}, rows, notes


def _excluded(found: Found) -> str:
    """The first file that only looks like audio."""
    if not found.excluded:
        return ""
    first = found.excluded[0]
    return f" that can be used ({first.path!r}: {first.reason})"


def _add_audio(draft: Draft, folder: Path, found: Found, rows: Rows) -> None:
    """What the audio is like, and the settings of [shards] and [features] that fit it."""
    draft.notes.append(probe.describe_files(folder, found))
    there = set(found.audio) | set(found.others)
    missing = [clip.path for clip in rows.clips if clip.path not in there]
    missing = [path for path in missing if not (folder / path).is_file()]
    bad = len(missing) + len(rows.excluded)
    total = len(rows.clips) + len(rows.excluded)
    if missing:
        draft.notes.append(
            f"No such file: {len(missing):,} of {len(rows.clips):,} paths, e.g. {missing[0]}"
        )
    if rows.excluded:
        first = rows.excluded[0]
        draft.notes.append(
            f"Left out: {len(rows.excluded):,} of {total:,}, e.g. {first.path}: {first.reason}"
        )
    if not rows.clips:
        raise ValueError(
            f"{folder}: none of {total:,} clips can be used, e.g. {rows.excluded[0].path!r}: "
            f"{rows.excluded[0].reason}"
        )
    gone = set(missing)
    sample = probe.sample([clip.path for clip in rows.clips if clip.path not in gone])
    heads = probe.heads(folder, sample)
    draft.notes.append(heads.words())
    share = bad / total + heads.share_unread
    if share > 0.01:
        # Room for what a sample cannot show, in whole hundredths.
        allowed = min(1.0, math.ceil(share * 120) / 100)
        draft.tables["shards"] = {"max_skipped": allowed}
        draft.notes.append(
            f"About {share:.1%} of the clips cannot be used; shards.max_skipped lets them be "
            "skipped. Better mend them."
        )
    if heads.durations_s:
        _add_lengths(draft, heads.durations_s, len(rows.clips))


def _add_network(draft: Draft) -> None:
    """[model] and [train] of a run that starts from nothing."""
    draft.tables["model"], draft.tables["train"] = dict(NETWORK), dict(TRAINING)
    heard = "hears chunks of 21.9 s"
    if (
        from_tables({"features": draft.tables.get("features", {})}).features.num_frames
        <= CHUNK_FRAMES
    ):
        draft.tables["model"]["chunk_frames"] = 0
        heard = "hears whole windows"
    draft.notes.append(
        f"The network is mscnn2, which {heard}: of those compared in docs/accuracy.md the most "
        "accurate and the quickest to train. [train] did well there with 1,680 clips; where "
        "there are many more, fewer epochs and a larger batch (train.py --batch-size auto) may do."
    )


def _add_fine_tuning(draft: Draft, like: Path) -> None:
    """[features], [model] and [train] of a run that starts from a bundle."""
    tagger = read_tagger(like)
    if tagger["features"]["recipe"] == "unknown":
        raise ValueError(
            f"--like {like}: how its spectrograms were made is unknown, so no audio can be packed "
            "for it; name a bundle that can tag audio"
        )
    draft.tables["features"] = dict(tagger["features"])
    draft.tables["model"] = dict(tagger["model"])
    draft.tables["train"] = {"init_from": str(like), **FINE_TUNING}
    draft.notes.append(
        f"For fine-tuning {like}, a tagger of {tagger['dataset'].get('name', 'unknown')}: "
        "[features] and the shapes of [model] must stay as its own. [train] lets only the layer "
        "that gives the tags learn (freeze_epochs = -1), which did best with 200 clips; where "
        "there are thousands, try freeze_epochs = 0 with learning_rate = 1e-3, and compare."
    )


def _add_lengths(draft: Draft, durations_s: list[float], num_clips: int) -> None:
    """num_frames where clips are short, long_clips where they are long."""
    given = draft.tables.get("features", {})
    features = from_tables({"features": given}).features
    window_s = features.num_samples / features.sample_rate_hz
    median_s = statistics.median(durations_s)
    if median_s < 0.75 * window_s and given:
        draft.notes.append(
            f"Half the clips last {median_s:.1f} s or less, but a window lasts {window_s:.1f} s, "
            "as the bundle's: shorter clips are padded."
        )
    elif median_s < 0.75 * window_s:
        num_frames = math.ceil(median_s / features.frame_s / FRAMES_PER_CELL) * FRAMES_PER_CELL
        features = dataclasses.replace(features, num_frames=max(FRAMES_PER_CELL, num_frames))
        draft.tables["features"] = {"num_frames": features.num_frames}
        window_s = features.num_samples / features.sample_rate_hz
        draft.notes.append(
            f"Half the clips last {median_s:.1f} s or less, so a window is {window_s:.1f} s, not "
            "29.1 s; shorter clips are padded."
        )
    num_windows = statistics.mean(max(1, math.ceil(d / window_s - 0.5)) for d in durations_s)
    window_bytes = BYTES_PER_VALUE * features.n_mels * features.num_frames
    whole, one = (n * num_clips * window_bytes / 1e9 for n in (num_windows, 1))
    rule = "centre" if num_windows > MANY_WINDOWS else "windows"
    if num_windows > 1.5:
        draft.tables.setdefault("shards", {})["long_clips"] = rule
        draft.notes.append(
            f"A clip has about {num_windows:.0f} windows of {window_s:.1f} s: shards take about "
            f'{whole:,.1f} GB with long_clips = "windows", {one:,.1f} GB with "centre".'
        )
    else:
        draft.notes.append(f"Shards take about {max(0.1, whole):,.1f} GB.")


def _add_tags(draft: Draft, rows: Rows) -> None:
    """The number of tags, the rarest of them, and the split."""
    kind = str(draft.tables["dataset"]["kind"])
    names = tags.renames(vocabulary(DatasetConfig(kind=kind, table="any")))
    counts = tags.count_tags(rows.row_tags, rows.tag_order, names)
    often = [count for count in counts if count.positives >= MIN_POSITIVES]
    chosen = (often or counts)[:MAX_TAGS]
    if len(chosen) != MAX_TAGS:
        draft.tables["dataset"]["num_tags"] = len(chosen)
    draft.notes.append(f"{len(counts):,} tags; the most frequent: {_in_words(counts[:5])}.")
    draft.notes.append(f"Learned are {len(chosen)}, the rarest of them: {_in_words(chosen[-3:])}.")
    if len(often) < len(counts):
        draft.notes.append(
            f"{len(counts) - len(often):,} tags have fewer than {MIN_POSITIVES} clips: too few to "
            "learn from and to be scored by."
        )
    artists = Counter(clip.artist for clip in rows.clips if clip.artist)
    tracks = Counter(clip.track for clip in rows.clips if clip.track)
    if rows.names_splits:
        why = "Split: the dataset's own."
    elif artists:
        why = (
            f"Split: by artist ({len(artists):,} of them, {sum(artists.values()):,} clips), so "
            "that no artist is in two splits; sizes 0.75/0.1/0.15."
        )
    elif tracks:
        why = (
            f"Split: by track ({len(tracks):,} of them), as no artist is known; sizes "
            "0.75/0.1/0.15. A column artist would keep artists apart."
        )
    else:
        why = (
            "Split: clip by clip, as neither artist nor track is known; sizes 0.75/0.1/0.15. "
            "Pieces of one artist may fall into two splits, which flatters the score: a table with "
            "a column artist keeps them apart."
        )
    draft.notes.append(why)


def _in_words(counts: list[TagCount]) -> str:
    return ", ".join(f"{count.tag} ({count.positives:,})" for count in counts)


def _text(folder: Path, draft: Draft) -> str:
    """The config as TOML, settings in the order of the config's own sections."""
    lines = [
        *_comment(f"Written by `shard-tools init` for {folder.resolve()}; change what you like.")
    ]
    for note in draft.notes:
        lines += _comment(note)
    for section in [section.name for section in dataclasses.fields(Config)]:
        if section in draft.tables:
            lines += ["", f"[{section}]"]
            lines += [f"{key} = {_toml(value)}" for key, value in draft.tables[section].items()]
    return "\n".join(lines) + "\n"


def _toml(value: object) -> str:
    # JSON's strings and numbers are TOML's as well, but for DEL.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _comment(note: str) -> list[str]:
    """Wrapped lines of comment; what a file name may hold and TOML may not is replaced."""
    clean = "".join(c if c.isprintable() else "\ufffd" for c in note)
    wrapper = textwrap.TextWrapper(96, initial_indent="# ", subsequent_indent="#   ")
    wrapper.break_long_words = wrapper.break_on_hyphens = False  # paths and commands stay whole
    return wrapper.wrap(clean)


def _next_commands(folder: Path, out: Path, name: str) -> str:
    """What to type next."""
    data = shlex.quote(str(folder))
    usual = out == Path("configs") / f"{name}.toml"
    config = "" if usual else f" CONFIG={shlex.quote(str(out))}"
    return (
        f"{out}: written; look at it, then\n"
        f"  shard-tools catalog --config {shlex.quote(str(out))} --data {data}\n"
        f"  make train DATASET={shlex.quote(name)}{config} DATA={data}"
    )
