"""A dataset's own files -> a catalogue: one adapter per kind, then tags and splits.

Nothing downstream knows which dataset a catalogue came from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from mstag.config import DatasetConfig
from mstag.data import splits, tags
from mstag.data.clips import Catalogue, Clip
from shard_tools.catalogs import folders, mtt, table
from shard_tools.catalogs.rows import Rows

ADAPTERS: dict[str, Callable[[DatasetConfig, Path], Rows]] = {
    "demo": lambda config, data_dir: mtt.read(data_dir, name="demo"),
    "mtt": lambda config, data_dir: mtt.read(data_dir),
    "table": lambda config, data_dir: table.read(
        data_dir / config.table, takes_splits=config.split in ("auto", "given")
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
    if config.kind not in ADAPTERS:
        raise ValueError(
            f"dataset.kind = {config.kind!r}: this version has no reader for it, so it cannot be "
            f"packed; use one of {', '.join(sorted(ADAPTERS))}"
        )
    if not data_dir.is_dir():
        raise ValueError(f"{data_dir}: there is no such folder; {_remedy(config.kind, data_dir)}")
    rows = ADAPTERS[config.kind](config, data_dir)
    names = tags.renames(_vocabulary(config))
    counts = tags.count_tags(rows.row_tags, rows.tag_order, names)[: config.num_tags]
    clips, rule = rows.clips, _rule(config, rows)
    if rule == "folders-clean":
        clips = _clean(rows)
    renamed = [replace(clip, tags=tags.merge(clip.tags, names)) for clip in clips]
    assigned = _assign(config, rule, renamed, [count.tag for count in counts])
    return Catalogue(
        dataset=config.name,
        tags=counts,
        clips=[replace(clip, split=split) for clip, split in zip(renamed, assigned, strict=True)],
        split_rule=_in_words(config, rule, num_left_out=len(rows.clips) - len(clips)),
        excluded=rows.excluded,
    )


def _rule(config: DatasetConfig, rows: Rows) -> str:
    """The rule in force."""
    if config.split != "auto":
        return config.split
    if config.kind == "mtt":
        return "folders"
    return "given" if rows.names_splits else "artist"


def _vocabulary(config: DatasetConfig) -> str:
    """The vocabulary in force."""
    if config.vocabulary != "auto":
        return config.vocabulary
    return "merged" if config.kind == "mtt" else "raw"


def _clean(rows: Rows) -> list[Clip]:
    """The clips with at least one of the most frequent raw tags."""
    counts = tags.count_tags(rows.row_tags, rows.tag_order, {})[:NUM_CLEAN_TAGS]
    frequent = {count.tag for count in counts}
    return [clip for clip in rows.clips if not frequent.isdisjoint(clip.tags)]


def _assign(
    config: DatasetConfig, rule: str, clips: Sequence[Clip], tag_names: Sequence[str]
) -> list[str]:
    """One split name per clip."""
    if rule in ("folders", "folders-clean"):
        return splits.by_folder(clips)
    if rule == "random":
        return splits.at_random(clips, seed=config.split_seed)
    if rule == "artist":
        return splits.by_artist(clips, tag_names, seed=config.split_seed, sizes=config.split_sizes)
    assert rule == "given", rule
    return splits.given(clips)


def _in_words(config: DatasetConfig, rule: str, num_left_out: int) -> str:
    """The rule for a reader; it starts with the setting's own word."""
    if rule == "random":
        return f"random: 13:1:3 over clips, seed {config.split_seed}"
    if rule == "artist":
        sizes = "/".join(f"{size:g}" for size in config.split_sizes)
        return f"artist: no artist in two splits, {sizes}, seed {config.split_seed}"
    if rule == "given":
        return "given: as the dataset says"
    words = f"{rule}: folders 0-b / c / d-f"
    if rule == "folders-clean":
        words += (
            f", only clips with one of the {NUM_CLEAN_TAGS} most frequent raw tags "
            f"({num_left_out} clips left out)"
        )
    return words


def _remedy(kind: str, data_dir: Path) -> str:
    """What to do about a missing data folder."""
    if kind in ("demo", "mtt"):
        return f"make it with `shard-tools fetch {kind} --to {data_dir}`, or correct --data"
    return "correct --data: it is the folder that holds your audio"
