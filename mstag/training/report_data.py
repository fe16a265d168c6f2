"""The sections of a report on what went into a run: Data and Settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mstag.data.shards import Manifest
from mstag.show.page import Facts, Fold, Grid, Item, Points, Section, Table
from mstag.show.wording import Point, count, percent, size
from mstag.training.report_curves import values
from mstag.training.report_read import Run, number

DIGEST_LETTERS = 12


def data(runs: Sequence[Run], manifest: Manifest | None, why_not: str) -> Section:
    """What the runs were trained and scored on.

    Args:
        runs: at least one.
        manifest: of the shards at hand, those of the first run's dataset.
        why_not: where there is no manifest, how to have one.
    """
    points: list[Point] = []
    told: list[Item] = []
    for run in runs:
        found, digest = _facts(run)
        told.append(Facts({"Run": run.name, **found} if len(runs) > 1 else found))
        refused = [value for value in values(run, "data/refused")[1] if value]
        if refused:
            words = f"{run.name}: damaged clips were left out, up to {max(refused):g} an epoch."
            points.append((True, words))
        if manifest and digest and digest != manifest.digest:
            points.append(
                (
                    True,
                    f"{run.name}: the shards at hand ({manifest.digest[:DIGEST_LETTERS]}) are not "
                    "those that it was scored on: packed again, or by another version. What "
                    "stands below is theirs.",
                )
            )
    content: list[Item] = [Grid(told)]
    if manifest is None:
        content.append(why_not)
    else:
        points.append(_skipped(manifest))
        content += _shards(manifest)
    return Section("Data", [*([Points(points)] if points else []), *content])


def settings(runs: Sequence[Run]) -> Section:
    """All settings; of several runs first those that differ."""
    tables = [run.settings or {} for run in runs]
    keys = list(dict.fromkeys(key for table in tables for key in table))
    if not keys:
        return Section("Settings", ["There is no config.toml that could be read."])
    rows = [[key, *(table.get(key, "(not set)") for table in tables)] for key in keys]
    header = ["setting", *(run.name for run in runs)]
    columns = range(1, len(header))
    whole = Table(header, rows, text_columns=columns, is_pinned=len(runs) > 1)
    if len(runs) == 1:
        return Section("Settings", [whole])
    differing = [row for row in rows if len(set(row[1:])) > 1]
    words = count(len(differing), "setting") + f" of {len(rows)}: where the runs differ"
    first: Item = (
        Table(header, differing, text_columns=columns, is_pinned=True, caption=words)
        if differing
        else "All settings are the same."
    )
    return Section("Settings", [first, Fold(f"All {len(rows)} settings", [whole])])


def _facts(run: Run) -> tuple[dict[str, str], str]:
    """What the run's own files say of its data, and the data's digest."""
    card, report = run.dataset, run.report or {}
    digest = str(card.get("digest") or "")
    sizes = {split: f"{found['clips']:,}" for split, found in run.evals.items()}
    found = {
        "Dataset": str(card.get("name") or (run.settings or {}).get("dataset.name", "unknown")),
        "Digest": digest[:DIGEST_LETTERS] or "unknown",
        "Split rule": str(card.get("split_rule", "unknown")),
        "Clips scored": ", ".join(f"{split} {clips}" for split, clips in sizes.items()) or "none",
        "Tags": f"{len(run.tag_names):,}" if report else "unknown",
    }
    for name, key in (("Features", "features_digest"), ("Weights", "checkpoint_digest")):
        if report.get(key):
            found[f"{name} (digest)"] = str(report[key])[:DIGEST_LETTERS]
    seen, dropped = (values(run, f"data/{key}")[1] for key in ("seen", "dropped"))
    if seen and dropped:
        found["An epoch"] = (
            f"{count(int(seen[-1]), 'clip')} seen, {dropped[-1]:,.0f} left out (less than a batch)"
        )
    found |= _about(run.about)
    skipped = report.get("skipped_tags")
    if isinstance(skipped, list) and skipped:
        names = [str(tag.get("tag")) for tag in skipped if isinstance(tag, dict)]
        found["Tags without a score"] = ", ".join(names)
    return found, digest


def _about(about: Mapping[str, Any]) -> dict[str, str]:
    """What trained it, as far as about.json says so in the types that mstag writes."""

    def part(key: str) -> Mapping[str, Any]:
        found = about.get(key)
        return found if isinstance(found, dict) else {}

    found: dict[str, str] = {}
    weights, flops = (number(part("network").get(key)) for key in ("weights", "flops_per_clip"))
    if weights is not None:
        cost = "" if flops is None else f", {flops / 1e9:,.3g} GFLOP to score a clip"
        found["Network"] = f"{weights / 1e6:,.3g} M weights{cost}"
    machine = [str(about[key]) for key in ("device", "precision") if about.get(key)]
    if machine:
        ranks = number(about.get("ranks"))
        machine += [count(int(ranks), "rank")] if ranks else []
        found["Trained on"] = ", ".join(machine)
    if part("git").get("commit"):
        changed = " and changes to it" if part("git").get("dirty") else ""
        found["Code"] = f"commit {str(part('git')['commit'])[:DIGEST_LETTERS]}{changed}"
    if part("versions"):
        found["Versions"] = ", ".join(f"{name} {of}" for name, of in part("versions").items())
    if about.get("recipe"):
        found["Recipe (but for seed and fold)"] = str(about["recipe"])
    return found


def _skipped(manifest: Manifest) -> Point:
    num_packed = sum(split.clips for split in manifest.splits.values())
    num = len(manifest.skipped)
    if not num:
        return False, "No clip was skipped in packing."
    share = num / (num + num_packed)
    words = f"{count(num, 'clip')} ({percent(share)}) were skipped in packing"
    return share > 0.01, f"{words}; `shard-tools inspect` names them."


def _shards(manifest: Manifest) -> list[Item]:
    rows = [
        [
            name,
            f"{split.clips:,}",
            f"{len(split.shards):,}",
            size(sum(shard.bytes for shard in split.shards)),
        ]
        for name, split in manifest.splits.items()
    ]
    kinds = list(dict.fromkeys(kind for shares in manifest.leaks.values() for kind in shares))
    leaks = [
        [name, *("unknown" if (s := shares.get(kind)) is None else percent(s) for kind in kinds)]
        for name, shares in manifest.leaks.items()
    ]
    oracle = manifest.oracle_roc_auc
    facts = {
        "Shards at hand": f"{manifest.dataset}, {count(len(manifest.tags), 'tag')}",
        "No-audio oracle": "unknown" if oracle is None else f"ROC-AUC {oracle:.3f}",
        "Digest": manifest.digest[:DIGEST_LETTERS],
    }
    content: list[Item] = [Facts(facts), Table(["split", "samples", "shards", "size"], rows)]
    if leaks:
        content.append(Table(["split", *kinds], leaks, caption="Clips of which train has the same"))
    skipped = [
        [clip.get("path") or clip.get("id", ""), clip.get("reason", "")]
        for clip in manifest.skipped[:50]
    ]
    if skipped:
        table = Table(["clip", "reason"], skipped, text_columns=[1])
        content.append(Fold(f"The first {len(skipped)} skipped clips", [table]))
    content.append("`shard-tools inspect SHARDS --html PAGE` looks at the data itself.")
    return content
