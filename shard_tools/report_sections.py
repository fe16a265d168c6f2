"""Statistics of a collection -> what stands in each section of its page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mstag.config import FeatureConfig
from mstag.data.features import hz_to_mel
from mstag.data.samples import Source
from mstag.data.store import Folder
from mstag.show import plots, vector, wording
from mstag.show.page import (
    Cell,
    Drawing,
    Facts,
    Fold,
    Grid,
    Heat,
    Item,
    Picture,
    Points,
    Table,
)
from mstag.show.wording import count, hours, percent
from shard_tools import report, report_words
from shard_tools.survey import Survey

MAX_MAPPED = 60
"""Tags on the map of co-occurrence; more cannot be read."""
MAX_SHOWN = 180
"""Spectrograms on the page, some 12 KB each."""
MAX_LISTED = 1000
"""Skipped clips on the page."""
DB_PER_UNIT = 10 / np.log(10)


def before_training(looked_at: Survey, found: dict[str, Any]) -> list[Item]:
    """What to look into, first what is wrong."""
    manifest = looked_at.manifest
    empty = [name for name, split in manifest.splits.items() if not split.clips]
    points = [(True, f"The split {name} is empty.") for name in empty]
    points += wording.leaks_in_words(manifest.leaks)
    if manifest.oracle_roc_auc is not None:
        points.append(wording.oracle_in_words(manifest.oracle_roc_auc))
    points += report_words.tags_in_words(found["counts"])
    points += report_words.clips_in_words(found)
    num_packed = sum(found["clips"].values())
    points.append(report_words.skipped_in_words(len(manifest.skipped), num_packed))
    points.sort(key=lambda point: not point[0])
    note: list[Item] = []
    if looked_at.drawn is not None:
        total = sum(split.clips for split in manifest.splits.values())
        note.append(
            f"Of {total:,} samples, {sum(looked_at.drawn.values()):,} were drawn by chance from "
            f"all splits and {found['num_clips']:,} clips read in full. Sizes, tag counts, leaks "
            "and skipped clips below are of the whole folder; durations, levels, flags, tags "
            "together and the number of clips are of that part, or estimated from it."
        )
    return [Points(points), *note]


def contents(looked_at: Survey, found: dict[str, Any]) -> list[Item]:
    """What the folder holds, in words and per split."""
    manifest = looked_at.manifest
    rows = []
    total_bytes = 0
    about = "" if looked_at.drawn is None else "about "
    for name, split in manifest.splits.items():
        num_bytes = sum(shard.bytes for shard in split.shards)
        others = (split.index, split.labels, split.ids)
        total_bytes += num_bytes + sum(entry.bytes for entry in others if entry)
        rows.append(
            [
                name,
                f"{about}{found['clips'][name]:,}",
                f"{split.clips:,}",
                f"{len(split.shards):,}",
                wording.size(num_bytes),
            ]
        )
    facts = {
        "Dataset": manifest.dataset,
        "Tags": f"{len(manifest.tags):,}"
        + (", labels partly unknown (mask)" if found["is_partial"] else ""),
        "Features": report_words.features_in_words(manifest.features),
        "Split rule": manifest.split_rule,
        "On disk": wording.size(total_bytes),
        "Digest": manifest.digest[:12],
    }
    if manifest.foreign:
        facts["Written by"] = (
            f"somebody else, indexed: spectrograms from member {manifest.foreign.mel}, labels from "
            f"{manifest.foreign_labels}"
        )
    else:
        facts["Written by"] = f"mstag {manifest.mstag_version}"
    return [Facts(facts), Table(["split", "clips", "samples", "shards", "size"], rows)]


def tag_counts(found: dict[str, Any]) -> list[Item]:
    """How often each tag is there, and what that means for its score."""
    counts, is_partial = found["counts"], found["is_partial"]
    if not counts:
        return ["There are no tags."]
    splits = list(counts[0]["splits"])
    header = ["tag", *splits]
    header += [f"known ({split})" for split in splits] if is_partial else []
    header.append("note")
    rows: list[list[str | Cell]] = []
    for entry in counts:
        cells = entry["splits"].values()
        row: list[str | Cell] = [entry["tag"], *map(_count_cell, cells)]
        row += [f"{cell['known']:,}" for cell in cells] if is_partial else []
        row.append(report_words.notes_in_words(entry))
        rows.append(row)
    words = (
        "Samples that bear each tag, and their share of the split"
        + (" (of those whose label is known)" if is_partial else "")
        + f", which the bar shows. A tag without positives or without negatives has no score; with "
        f"fewer than {report.MIN_SCORED} positives the score is vague."
    )
    return [words, Table(header, rows, text_columns=[len(header) - 1], is_pinned=True)]


def _count_cell(cell: dict[str, Any]) -> str | Cell:
    if cell["share"] is None:
        return "none"
    share = percent(cell["share"]).rjust(6, "\N{FIGURE SPACE}")
    return Cell(f"{cell['positives']:,} {share}", cell["share"])


def tags_together(looked_at: Survey, found: dict[str, Any]) -> list[Item]:
    """Which tags share clips: a map, and the pairs that stand out."""
    names, together = looked_at.manifest.tag_names, found["together"]
    totals = looked_at.tags.sum(axis=0, dtype=np.int64)
    kept = np.sort(np.argsort(-totals, kind="stable")[:MAX_MAPPED])
    kept = kept[totals[kept] > 0]
    if len(kept) < 2:
        return ["Fewer than two tags are in use."]
    kept = kept[report.neighbours(together["phi"][np.ix_(kept, kept)])]
    given = together["given"][np.ix_(kept, kept)]
    values = [
        [None if i == j or np.isnan(value) else float(value) for j, value in enumerate(row)]
        for i, row in enumerate(given)
    ]
    left_out = len(names) - len(kept)
    how = (
        "Read a row: of all clips with the tag on the left, how many in a hundred also bear the "
        "tag above (5 and more are written out; striped: unknown, or the tag itself). Tags that "
        "go together stand side by side."
        + (f" Left out: the {count(left_out, 'rarest tag')}." if left_out else "")
    )
    header = ["a", "b", "clips", "b if a", "a if b", "lift", "phi"]
    tables: list[Item] = []
    for kind, words in (
        ("together", "Pairs that go together most"),
        ("apart", "Pairs that avoid each other most"),
    ):
        rows = [
            [
                pair["a"],
                pair["b"],
                f"{pair['both']:,}",
                percent(pair["b_given_a"]),
                percent(pair["a_given_b"]),
                f"{pair['lift']:.1f}",
                f"{pair['phi']:+.2f}",
            ]
            for pair in found["pairs"][kind]
        ]
        if rows:
            tables.append(Table(header, rows, text_columns=[1], caption=words))
    note = (
        "b if a: share with b among the clips with a. Lift: that share over the share with b among "
        "all clips; 1 is chance. Phi: the correlation of the two tags, -1 to 1."
    )
    label = "Shares of clips with the row's tag that also bear the column's"
    return [how, Heat([names[n] for n in kept], values, label), Grid(tables), note]


def durations(looked_at: Survey, found: dict[str, Any]) -> list[Item]:
    """How long the clips are, and what became of short and long ones."""
    features = looked_at.manifest.features
    is_known = features.recipe != "unknown"
    lengths = np.asarray(looked_at.num_frames * (features.frame_s if is_known else 1.0), float)
    of = report.summary(lengths)
    if of is None:
        return ["There are no clips."]
    edges = report.histogram(lengths)
    drawing = vector.histogram(
        edges,
        {"all": report.shares(lengths, edges)},
        xlabel="seconds of audio per clip" if is_known else "frames per clip",
        ylabel="% of clips",
        alt="Histogram of the clips' durations",
    )

    def shown(value: float) -> str:
        return hours(value) if is_known else f"{value:,.0f} frames"

    flags, total = found["flags"], found["num_clips"]
    facts = {
        "Altogether": shown(of["sum"]) + (" read" if looked_at.drawn else ""),
        "Per clip": f"{shown(of['least'])} to {shown(of['greatest'])}, median "
        f"{shown(of['median'])}",
        "Cut into samples": f"{count(flags['windows'], 'clip')} longer than a sample",
        "Padded": f"{count(flags['padded'], 'clip')} ({percent(flags['padded'] / total)}), of "
        f"these {flags['short']:,} by more than a tenth",
        "Truncated": f"{count(flags['truncated'], 'clip')} from files that break off",
    }
    note = "As stored: padding does not count, and what was cut off behind the last sample neither."
    return [Grid([Drawing(drawing), Facts(facts)]), note]


def levels(looked_at: Survey, found: dict[str, Any]) -> list[Item]:
    """How loud the clips are, how each split sounds, and the extreme clips."""
    is_known = looked_at.manifest.features.recipe != "unknown"
    unit = "mean power (dB)" if is_known else "mean stored value"
    is_finite = np.isfinite(looked_at.levels)
    heard = looked_at.levels[is_finite]
    if not heard.size:
        return ["There is nothing to measure."]
    edges = report.histogram(heard)
    by_split = {
        name: heard[looked_at.split[is_finite] == number]
        for number, name in enumerate(looked_at.manifest.splits)
    }
    per_split = {name: report.shares(own, edges) for name, own in by_split.items() if own.size}
    spectra = {name: line for name, line in found["spectra"].items() if line is not None}
    num_bands = looked_at.manifest.features.n_mels
    drawings: list[Item] = [
        Drawing(
            vector.histogram(
                edges,
                per_split,
                xlabel=f"{unit} per clip",
                ylabel="% of clips",
                alt="Histogram of the clips' levels, per split",
            ),
            "How loud the clips are." if is_known else "How high the clips' values are.",
        ),
        Drawing(
            vector.lines(
                {name: (range(num_bands), line.tolist()) for name, line in spectra.items()},
                xlabel="mel band at Hz" if is_known else "band",
                ylabel=unit,
                alt="Median level per band and split",
                xticks=_band_ticks(looked_at.manifest.features) if is_known else None,
            ),
            "The median clip's spectrum. Lines that lie apart mean splits that sound different.",
        ),
    ]
    order = np.flatnonzero(is_finite)[np.argsort(heard, kind="stable")]
    least, most = ("Quietest", "Loudest") if is_known else ("Lowest", "Highest")
    lists = {f"{least} clips": order[:10], f"{most} clips": order[::-1][:10]}
    if len(found["quiet"]):
        lists = {"Nearly silent clips": found["quiet"][:100], **lists}
    if not is_finite.all():
        lists = {"Clips with values that are not finite": np.flatnonzero(~is_finite)[:100], **lists}
    note = (
        f"Nearly silent: {report.QUIET_DB:.0f} dB and more below the median clip."
        if is_known
        else "Nobody told how these values were made, so they are shown as they are."
    )
    folds = [
        Fold(f"{name} ({len(rows)})", [_clip_table(looked_at, rows.tolist(), unit)])
        for name, rows in lists.items()
    ]
    return [Grid(drawings), note, *folds]


def _clip_table(looked_at: Survey, rows: Sequence[int], unit: str) -> Table:
    names, tag_names = list(looked_at.manifest.splits), looked_at.manifest.tag_names
    has_paths = any(looked_at.paths[row] for row in rows)
    cells = [
        [
            looked_at.ids[row],
            names[looked_at.split[row]],
            f"{looked_at.levels[row]:.1f}",
            ", ".join(tag_names[n] for n in np.flatnonzero(looked_at.tags[row])),
            *([looked_at.paths[row]] if has_paths else []),
        ]
        for row in rows
    ]
    header = ["clip", "split", unit, "tags", *(["path"] if has_paths else [])]
    return Table(header, cells, text_columns=[1, 3, 4])


def leaks(looked_at: Survey) -> list[Item]:
    """The split rule, and what it gives away."""
    manifest = looked_at.manifest
    points = wording.leaks_in_words(manifest.leaks)
    after: list[Item] = []
    if manifest.oracle_roc_auc is None:
        after.append("The no-audio oracle has no score: too little is known of the clips.")
    else:
        points.append(wording.oracle_in_words(manifest.oracle_roc_auc))
    kinds = list(dict.fromkeys(kind for split in manifest.leaks.values() for kind in split))
    rows = [
        [name, *("unknown" if (s := split.get(kind)) is None else percent(s) for kind in kinds)]
        for name, split in manifest.leaks.items()
    ]
    if rows:
        words = "Clips of which train has the same"
        after.append(Table(["split", *kinds], rows, caption=words))
    return [f"Split rule: {manifest.split_rule}.", Points(points), *after]


def skipped_clips(looked_at: Survey, found: dict[str, Any]) -> list[Item]:
    """What was left out and why, grouped, then one by one."""
    skipped = looked_at.manifest.skipped
    if not skipped:
        return ["None."]
    groups = [[g["reason"], f"{g['count']:,}", g["example"]] for g in found["reasons"]]
    rows = [[clip["path"] or clip["id"], clip["reason"]] for clip in skipped[:MAX_LISTED]]
    more = len(skipped) - len(rows)
    rest = [f"And {more:,} more; `shard-tools inspect --json` lists all."] if more else []
    return [
        Table(["reason (N: a number)", "clips", "for example"], groups, text_columns=[2]),
        Fold(
            f"All {len(skipped):,}" if not more else f"The first {len(rows):,}",
            [Table(["clip", "reason"], rows, text_columns=[1]), *rest],
        ),
    ]


def spectrograms(looked_at: Survey, found: dict[str, Any]) -> list[Item]:
    """A few clips of each tag; reads them from the shards."""
    manifest = looked_at.manifest
    shown = found["examples"][:MAX_SHOWN]
    totals = looked_at.tags.sum(axis=0, dtype=np.int64)
    pictures = _pictures(looked_at, sorted({row for rows in shown for row in rows}))
    content: list[Item] = [
        "A few clips of each tag, drawn by chance, of train and with few other tags where there "
        "are such. Time runs to the right, pitch upwards; a clip's first sample is shown."
    ]
    if manifest.features.recipe != "unknown":
        content.append("From the brightest to black: 80 dB.")
    for tag, rows in enumerate(shown):
        name = manifest.tag_names[tag]
        if rows:
            inner: list[Item] = [Grid([pictures(row, name) for row in rows])]
        else:
            inner = ["No clip that was read bears this tag."]
        number = count(int(totals[tag]), "clip") + (" read" if looked_at.drawn else "")
        content.append(Fold(f"{name} ({number})", inner, is_open=not tag))
    if len(found["examples"]) > len(shown):
        content.append(f"The other {len(found['examples']) - len(shown)} tags are left out.")
    return content


def _pictures(looked_at: Survey, rows: list[int]) -> Any:
    """Reads the clips once, whatever number of tags shows them: (row, tag) -> Picture."""
    manifest = looked_at.manifest
    names, tag_names = list(manifest.splits), manifest.tag_names
    span = 80 / DB_PER_UNIT if manifest.features.recipe != "unknown" else None
    store = Folder(looked_at.folder)
    pngs: dict[int, bytes] = {}
    for number, name in enumerate(names):
        own = [row for row in rows if looked_at.split[row] == number]
        if own:
            with Source(store, name) as source:
                for row in own:
                    mel = source.read(int(looked_at.first[row])).mel
                    pngs[row] = plots.thumbnail(mel, span=span)

    def picture(row: int, tag: str) -> Picture:
        others = [tag_names[n] for n in np.flatnonzero(looked_at.tags[row])]
        others.remove(tag)
        caption = f"{looked_at.ids[row]} ({names[looked_at.split[row]]})"
        caption += f": also {', '.join(others)}" if others else ": no other tag"
        return Picture(pngs[row], f"Spectrogram of clip {looked_at.ids[row]}, {tag}", caption)

    return picture


def _band_ticks(features: FeatureConfig) -> list[tuple[float, str]]:
    """Where round frequencies lie among the bands' centres."""
    most = float(hz_to_mel(np.array(features.sample_rate_hz / 2)))
    marks = [(0.2, "200"), (0.5, "500"), (1, "1k"), (2, "2k"), (5, "5k"), (10, "10k"), (20, "20k")]
    places = [
        (float(hz_to_mel(np.array(1000 * khz))) / most * (features.n_mels + 1) - 1, label)
        for khz, label in marks
    ]
    return [(place, label) for place, label in places if 0 <= place <= features.n_mels - 1]
