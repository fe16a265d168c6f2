"""Parts of a pack -> one finished folder of shards: the manifest, and what it stands on."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

import mstag
from mstag import config
from mstag.data import shards, splits, tars
from mstag.data.clips import Catalogue
from shard_tools import receipts
from shard_tools.output import Output
from shard_tools.plan import ShardTask
from shard_tools.receipts import Receipt

_PART = re.compile(r"part-(\d+)-of-(\d+)\.json")


@dataclass(frozen=True, slots=True)
class Header:
    """What the parts of a pack have in common: all of the manifest that no shard says.

    Attributes:
        dataset: its name.
        features: as a table.
        tags: names in vector order.
        split_rule: in words.
        leaks: see splits.leak_report.
        oracle_roc_auc: see splits.oracle_roc_auc.
        excluded: rows that are left out: id, path, reason.
        shards: the names of all shards, in order.
        plan: digest of what the config and the tables ask of them.
        clips: how many clips there are.
        max_skipped: the share of them that may be skipped.
        partial: whether some labels are unknown.
        mstag_version: who packs.
    """

    dataset: str
    features: dict[str, Any]
    tags: list[str]
    split_rule: str
    leaks: dict[str, Any]
    oracle_roc_auc: float | None
    excluded: list[dict[str, str]]
    shards: list[str]
    plan: str
    clips: int
    max_skipped: float
    partial: bool
    mstag_version: str


@dataclass(frozen=True, slots=True)
class Part:
    """The note that a finished part leaves: ``.pack/part-I-of-N.json``.

    Attributes:
        number: I, from 0.
        num_parts: N.
        digests: of the header's fields, by which parts know that they belong together.
        header: what all parts say; kept by part 0 alone, as it may be long.
        shards: the sha256 of each shard that it packed, by name: what another pack put in the
            place of one of them since is none of its.
    """

    number: int
    num_parts: int
    digests: dict[str, str]
    header: Header | None
    shards: dict[str, str]

    @property
    def place(self) -> str:
        """Where the note lies in the output."""
        return f"{receipts.FOLDER}/part-{self.number}-of-{self.num_parts}.json"


def make_header(
    settings: config.Config, catalogue: Catalogue, tasks: Sequence[ShardTask]
) -> Header:
    """What all parts of a pack say."""
    return Header(
        dataset=catalogue.dataset,
        features=dataclasses.asdict(settings.features),
        tags=catalogue.tag_names,
        split_rule=catalogue.split_rule,
        leaks=splits.leak_report(catalogue.clips),
        oracle_roc_auc=splits.oracle_roc_auc(catalogue.clips, catalogue.tag_names),
        excluded=[dataclasses.asdict(row) for row in catalogue.excluded],
        shards=[task.name for task in tasks],
        plan=config.digest([task.asked() for task in tasks]),
        clips=len(catalogue.clips),
        max_skipped=settings.shards.max_skipped,
        partial=any(task.known is not None for task in tasks),
        mstag_version=mstag.__version__,
    )


def make_part(number: int, num_parts: int, header: Header, packed: dict[str, str]) -> Part:
    """The note of a part that packed these shards (name -> sha256)."""
    digests = {name: config.digest(value) for name, value in dataclasses.asdict(header).items()}
    return Part(number, num_parts, digests, None if number else header, packed)


def write_part(output: Output, part: Part) -> None:
    """Notes that a part is done."""
    output.write_text(part.place, json.dumps(dataclasses.asdict(part), ensure_ascii=False))


def read_part(output: Output, place: str) -> Part | None:
    """A part's note; None when there is none that makes sense."""
    text = output.read_text(place)
    try:
        content = json.loads(text or "")
        header = None if content["number"] else Header(**content["header"])
        known = {name: dict(content[name]) for name in ("digests", "shards")}
        return Part(**{**content, **known, "header": header})
    except (ValueError, KeyError, TypeError):
        return None


def parts_beside(output: Output, part: Part | None = None) -> list[str]:
    """The places of all notes, of ``part`` excepted."""
    own = part.place if part else ""
    names = (f"{receipts.FOLDER}/{name}" for name in output.names(receipts.FOLDER))
    return [name for name in names if _PART.search(name) and name != own]


def merge(output: Output) -> shards.Manifest:
    """Puts the manifest on top of parts that were packed one by one.

    Raises:
        ValueError: parts are missing, overlap or do not belong together, a shard is not what
            its part packed, or too many clips were skipped in all; says which.
    """
    _fitting_parts(output)  # before a lock makes a folder where there is none
    with output.lock(""):
        parts = _fitting_parts(output)
        header = parts[0].header
        assert header, "checked with the other parts"
        owners = {name: part for part in parts for name in part.shards}
        expected = [owners[name].shards[name] for name in header.shards]
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(functools.partial(_vouched, output), header.shards, expected))
        wrong = [name for name, receipt in zip(header.shards, found, strict=True) if not receipt]
        if wrong:
            name = wrong[0]
            owner = owners[name]
            # Without its note a part is not taken for done, and reads what it keeps.
            for place in {owners[name].place for name in wrong}:
                output.remove(place)
            raise ValueError(
                f"{output.name}: {name} is missing or not what was packed ({len(wrong)} such); "
                f"pack its part again: --task {owner.number}/{owner.num_parts}"
            )
        done = [receipt for receipt in found if receipt]
        skipped = [row for receipt in done for row in receipt.skipped]
        check_skipped(skipped, header)
        return finished(output, header, done) or assemble(output, header, done)


def _fitting_parts(output: Output) -> list[Part]:
    """All parts, in order; refuses gaps, overlaps and strangers."""
    places = parts_beside(output)
    parts = [part for place in places if (part := read_part(output, place))]
    if not parts or len(parts) < len(places):
        raise ValueError(_no_parts(output))
    numbers = sorted({part.num_parts for part in parts})
    if len(numbers) > 1:
        raise ValueError(
            f"{output.name}: parts of {' and of '.join(map(str, numbers))} overlap; remove the "
            f"notes of one of the two, e.g. {receipts.FOLDER}/part-*-of-{numbers[0]}.json"
        )
    parts.sort(key=lambda part: part.number)
    there = {part.number for part in parts}
    missing = [str(number) for number in range(numbers[0]) if number not in there]
    if missing:
        raise ValueError(
            f"{output.name}: of {numbers[0]} parts, {', '.join(missing[:20])} "
            f"{'is' if len(missing) == 1 else 'are'} missing; run `shard-tools pack --task "
            f"{missing[0]}/{numbers[0]}` with the config of the others"
        )
    for part in parts[1:]:
        mine, its = parts[0].digests, part.digests
        differing = [name for name in mine if its.get(name) != mine[name]]
        if differing:
            raise ValueError(
                f"{output.name}: parts {parts[0].number} and {part.number} do not belong together: "
                f"their {', '.join(differing)} differ; pack one of them again, with the config "
                "and tables of the other"
            )
    packed = sorted(name for part in parts for name in part.shards)
    if parts[0].header is None or packed != sorted(parts[0].header.shards):
        raise ValueError(
            f"{output.name}: the parts' shards are not those of the whole, each once; pack all "
            "parts again"
        )
    return parts


def _no_parts(output: Output) -> str:
    return (
        f"{output.name}: no finished parts (.pack/part-I-of-N.json) that can be read; pack them "
        "with `shard-tools pack --task I/N`"
    )


def _vouched(output: Output, name: str, sha256: str) -> Receipt | None:
    """A shard's receipt, if both it and the shard are what its part packed."""
    receipt = receipts.read(output, name)
    if receipt is None or receipt.entry.sha256 != sha256:
        return None
    return receipt if not receipt.entry.clips or output.sha256(name) == sha256 else None


def assemble(output: Output, header: Header, done: Sequence[Receipt]) -> shards.Manifest:
    """Removes what an earlier plan left, then writes the indices and, last, the manifest."""
    manifest, indices = _manifest(header, done)
    output.remove(shards.MANIFEST_NAME)
    _remove_leftovers(output, set(header.shards))
    for split, index in indices.items():
        shards.write_index(output.scratch, split, index)
        output.publish(manifest.splits[split].index.name)
    shards.write_manifest(output.scratch, manifest)
    output.publish(shards.MANIFEST_NAME)
    return manifest


def finished(output: Output, header: Header, done: Sequence[Receipt]) -> shards.Manifest | None:
    """The output's manifest if it is the one that :func:`assemble` would write again."""
    manifest, _ = _manifest(header, done)
    text = output.read_text(shards.MANIFEST_NAME)
    if text is None or text != shards.manifest_text(manifest):
        return None
    indices = [split.index for split in manifest.splits.values()]
    whole = all(output.sha256(entry.name) == entry.sha256 for entry in indices)
    return manifest if whole else None


def _manifest(
    header: Header, done: Sequence[Receipt]
) -> tuple[shards.Manifest, dict[str, NDArray[np.void]]]:
    """The manifest and the indices, from the receipts alone."""
    by_split: dict[str, shards.Split] = {}
    indices: dict[str, NDArray[np.void]] = {}
    counts: dict[str, dict[str, NDArray[np.int64]]] = {}
    zeros = np.zeros(len(header.tags), np.int64)
    for split in shards.SPLITS:
        own = [r for r in done if r.entry.name.startswith(f"{split}-") and r.entry.clips]
        rows = [_placed(receipt.index, number) for number, receipt in enumerate(own)]
        indices[split] = np.concatenate(rows) if rows else np.empty(0, tars.INDEX_DTYPE)
        by_split[split] = shards.Split(
            clips=len(indices[split]),
            shards=[receipt.entry for receipt in own],
            index=shards.index_entry(split, indices[split]),
        )
        counts[split] = {"positives": sum((np.array(r.positives) for r in own), zeros)}
        if header.partial:
            counts[split]["known"] = sum((np.array(r.known) for r in own), zeros)
    return shards.Manifest(
        dataset=header.dataset,
        features=config.FeatureConfig(**header.features),
        tags=[
            {
                "tag": tag,
                **{
                    what: {split: int(counts[split][what][i]) for split in shards.SPLITS}
                    for what in counts["train"]
                },
            }
            for i, tag in enumerate(header.tags)
        ],
        splits=by_split,
        split_rule=header.split_rule,
        leaks=header.leaks,
        oracle_roc_auc=header.oracle_roc_auc,
        skipped=[*header.excluded, *(row for receipt in done for row in receipt.skipped)],
        mstag_version=header.mstag_version,
    ), indices


def _remove_leftovers(output: Output, planned: set[str]) -> None:
    """Removes shards of an earlier plan, known by their receipts; touches nothing else."""
    for name in output.names(receipts.FOLDER):
        shard = name.removesuffix(".json")
        if shard.endswith(".tar") and shard not in planned:
            output.remove(shard)
            output.remove(receipts.place(shard))


def _placed(rows: NDArray[np.void], shard: int) -> NDArray[np.void]:
    placed = rows.copy()
    placed["shard"] = shard
    return placed


def check_skipped(skipped: Sequence[dict[str, str]], header: Header) -> None:
    """Raises ValueError when more of the dataset is left out than ``shards.max_skipped`` allows.

    Args:
        skipped: clips whose audio cannot be used; the rows that the catalogue excluded count too.
        header: of the pack.
    """
    # In constant time: a pack asks after every shard.
    num_left_out = len(header.excluded) + len(skipped)
    total = header.clips + len(header.excluded)
    if num_left_out > header.max_skipped * total:
        first = (header.excluded or skipped)[0]
        raise ValueError(
            f"dataset {header.dataset}: {num_left_out} of {total} clips cannot be used, more than "
            f"shards.max_skipped = {header.max_skipped:g} allows; the first: "
            f"{first['path'] or first['id']}: {first['reason']}; mend the files or the table, or "
            "raise shards.max_skipped"
        )
