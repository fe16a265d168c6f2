"""A dataset's own files -> a catalogue: one adapter per kind, then tags and splits.

Nothing downstream knows which dataset a catalogue came from.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from mstag.config import DatasetConfig
from mstag.data import splits, tags
from mstag.data.clips import Catalogue, Clip
from shard_tools.catalogs import folders, msd, mtg_jamendo, mtt, openmic, table
from shard_tools.catalogs.rows import Rows

ADAPTERS: dict[str, Callable[[DatasetConfig, Path], Rows]] = {
    "demo": lambda config, data_dir: mtt.read(data_dir, name=_fetched_as(config)),
    "mtt": lambda config, data_dir: mtt.read(data_dir),
    "mtg-jamendo": lambda config, data_dir: mtg_jamendo.read(
        data_dir, config.subset, config.split_number, takes_splits=_takes_splits(config)
    ),
    "msd": lambda config, data_dir: msd.read(
        data_dir,
        config.table,
        top_tags=config.vocabulary == "auto",
        takes_splits=_takes_splits(config),
    ),
    "openmic": lambda config, data_dir: openmic.read(data_dir, takes_splits=_takes_splits(config)),
    "table": lambda config, data_dir: table.read(
        data_dir / config.table, takes_splits=_takes_splits(config)
    ),
    "folders": lambda config, data_dir: folders.read(data_dir),
}

# The literature's "clean" clips bear at least one of MagnaTagATune's 50 most frequent raw tags,
# whatever vocabulary is trained on.
NUM_CLEAN_TAGS = 50


def load_catalogue(config: DatasetConfig, data_dir: Path) -> Catalogue:
    """Read a dataset's tables, choose its tags and split its clips. Needs no audio.

    Args:
        config: the section [dataset].
        data_dir: the folder of the dataset's own files.

    Returns:
        The catalogue; its tags are counted over all rows, also over excluded ones.

    Raises:
        ValueError: the folder or table is missing, damaged or empty, or the kind has no
            adapter, or the split rule does not fit the dataset.
    """
    rows = read_rows(config, data_dir)
    wanted = vocabulary(config)
    names = tags.renames(wanted)
    counts = tags.count_tags(rows.row_tags, rows.tag_order, names)[: config.num_tags]
    if wanted == "table":
        place = {tag: number for number, tag in enumerate(rows.tag_order)}
        counts.sort(key=lambda count: place[count.tag])
    clips, rule = rows.clips, _rule(config, rows)
    if rule == "folders-clean":
        clips = _clean(rows)
    num_left_out = len(rows.clips) - len(clips)
    clips = [_renamed(clip, names, rows.tag_order) for clip in clips]
    assigned, words = _assign(config, rule, rows, clips, [count.tag for count in counts])
    if num_left_out:
        words += f" ({num_left_out} clips left out)"
    return Catalogue(
        dataset=config.name,
        tags=counts,
        clips=list(_placed(clips, assigned)),
        split_rule=f"{words}; {rows.remark}" if rows.remark else words,
        excluded=rows.excluded,
    )


def _placed(clips: Sequence[Clip], assigned: Sequence[str]) -> Iterator[Clip]:
    """The clips with their splits; names and sets of tags that they share are one object.

    Which halves the memory of a catalogue of millions.
    """
    tag_sets: dict[frozenset[str], frozenset[str]] = {}
    for clip, split in zip(clips, assigned, strict=True):
        yield replace(
            clip,
            split=sys.intern(split),
            tags=tag_sets.setdefault(clip.tags, clip.tags),
            artist=sys.intern(clip.artist),
            album=sys.intern(clip.album),
            track=sys.intern(clip.track),
        )


def read_rows(config: DatasetConfig, data_dir: Path) -> Rows:
    """Read a dataset's tables as they stand; see :func:`load_catalogue`.

    Raises:
        ValueError: the folder or table is missing, damaged or empty, or the kind has no adapter.
    """
    if config.kind not in ADAPTERS:
        raise ValueError(
            f"dataset.kind = {config.kind!r}: this version has no reader for it, so it cannot be "
            f"packed; use one of {', '.join(sorted(ADAPTERS))}"
        )
    if not data_dir.is_dir():
        raise ValueError(f"{data_dir}: there is no such folder; {_remedy(config, data_dir)}")
    return ADAPTERS[config.kind](config, data_dir)


def known_kind(data_dir: Path) -> str | None:
    """The dataset whose tables a folder holds, by their names; None: none that is known here."""
    marks = {
        "demo": [data_dir / "demo.json"],
        "mtt": [data_dir / f"annotations_final.csv{packed}" for packed in ("", ".gz")],
        "mtg-jamendo": sorted(mtg_jamendo.tables_folder(data_dir).glob("autotagging*.tsv")),
        "msd": [data_dir / msd.DATABASE],
        "openmic": [openmic.tables_folder(data_dir) / openmic.LABELS],
    }
    for kind, paths in marks.items():
        if any(path.is_file() for path in paths):
            return kind
    return None


def _takes_splits(config: DatasetConfig) -> bool:
    """Whether a dataset's own split is wanted, where it has one."""
    return config.split in ("auto", "given")


def _rule(config: DatasetConfig, rows: Rows) -> str:
    """The rule in force."""
    if config.split != "auto":
        return config.split
    if config.kind == "mtt":
        return "folders"
    return "given" if rows.names_splits else "artist"


def vocabulary(config: DatasetConfig) -> str:
    """The vocabulary in force: "raw", "merged" or "table"."""
    if config.vocabulary != "auto":
        return config.vocabulary
    return "merged" if config.kind == "mtt" else "raw"


def _clean(rows: Rows) -> list[Clip]:
    """The clips with at least one of the most frequent raw tags."""
    counts = tags.count_tags(rows.row_tags, rows.tag_order, {})[:NUM_CLEAN_TAGS]
    frequent = {count.tag for count in counts}
    return [clip for clip in rows.clips if not frequent.isdisjoint(clip.tags)]


def _renamed(clip: Clip, names: Mapping[str, str], table_tags: Sequence[str]) -> Clip:
    """A clip with the vocabulary's names; unchanged ones cost nothing."""
    if not names:
        return clip
    known = clip.known
    if known is not None:
        known = tags.merge_known(known, clip.tags, table_tags, names)
    return replace(clip, tags=tags.merge(clip.tags, names), known=known)


def _assign(
    config: DatasetConfig, rule: str, rows: Rows, clips: Sequence[Clip], tag_names: Sequence[str]
) -> tuple[list[str], str]:
    """One split name per clip, and the rule for a reader: it starts with the setting's word."""
    seed, sizes = config.split_seed, config.split_sizes
    if rule in ("folders", "folders-clean"):
        words = f"{rule}: folders 0-b / c / d-f"
        if rule == "folders-clean":
            words += f", only clips with one of the {NUM_CLEAN_TAGS} most frequent raw tags"
        return splits.by_folder(clips), words
    if rule == "random":
        words = f"random: 13:1:3 over clips, seed {seed}"
        return splits.at_random(clips, seed=seed), words
    if rule == "artist":
        shares = "/".join(f"{size:g}" for size in sizes)
        words = f"artist: no artist in two splits, {shares}, seed {seed}"
        return splits.by_artist(clips, tag_names, seed=seed, sizes=sizes), words
    assert rule == "given", rule
    words = f"given: {rows.given_by}"
    if not splits.lacks_valid(clips) or not (sizes[0] and sizes[1]):
        return splits.given(clips), words
    share = sizes[1] / (sizes[0] + sizes[1])
    words += f"; valid, which it lacks: {share:.1%} of its train part by artist, seed {seed}"
    return splits.carve_valid(clips, tag_names, seed=seed, sizes=sizes), words


def _fetched_as(config: DatasetConfig) -> str:
    """What `shard-tools fetch` calls a dataset: its kind, or the config of a demo variant."""
    if config.kind == "demo" and config.variant != "small":
        return f"--config configs/{config.name}.toml"
    return config.kind


def _remedy(config: DatasetConfig, data_dir: Path) -> str:
    """What to do about a missing data folder."""
    if config.kind in ("demo", "mtt", "mtg-jamendo"):
        command = f"shard-tools fetch {_fetched_as(config)} --to {data_dir}"
        return f"make it with `{command}`, or correct --data"
    return "correct --data: it is the folder that holds your audio"
