"""A catalogue, described: for programs as a dict, for people as a page of text."""

from __future__ import annotations

from collections import Counter
from typing import Any

from mstag.data.clips import Catalogue
from mstag.data.splits import SPLITS, leak_report, oracle_roc_auc
from mstag.data.tags import known_mask

_NUM_SHOWN = 10


def describe(catalogue: Catalogue) -> dict[str, Any]:
    """Say what would be packed, and what its split is worth.

    Args:
        catalogue: as load_catalogue gives it.

    Returns:
        A dict ready for JSON with the keys dataset, clips, tags ([{tag, positives}] in vector
        order, positives over all rows of the table; where labels are partial also known, in how
        many of the clips it is known), splits ({name: clips}), split_rule,
        leaks (see splits.leak_report), oracle_roc_auc (of the test split; None when it cannot
        be computed) and excluded ([{id, path, reason}]).
    """
    sizes = Counter(clip.split for clip in catalogue.clips)
    tags: list[dict[str, Any]] = [
        {"tag": count.tag, "positives": count.positives} for count in catalogue.tags
    ]
    mask = known_mask(catalogue.clips, catalogue.tag_names)
    if mask is not None:
        for row, known in zip(tags, mask.sum(axis=0, dtype=int).tolist(), strict=True):
            row["known"] = known
    return {
        "dataset": catalogue.dataset,
        "clips": len(catalogue.clips),
        "tags": tags,
        "splits": {split: sizes[split] for split in SPLITS},
        "split_rule": catalogue.split_rule,
        "leaks": leak_report(catalogue.clips),
        "oracle_roc_auc": oracle_roc_auc(catalogue.clips, catalogue.tag_names),
        "excluded": [
            {"id": row.id, "path": row.path, "reason": row.reason} for row in catalogue.excluded
        ],
    }


def format_description(description: dict[str, Any]) -> str:
    """Lay a description out for people.

    Args:
        description: as :func:`describe` gives it.

    Returns:
        A few lines of text without a newline at the end.
    """
    sizes = "  ".join(f"{split} {num:,}" for split, num in description["splits"].items())
    oracle = description["oracle_roc_auc"]
    num_tags = len(description["tags"])
    lines = [
        f"{description['dataset']}: {description['clips']:,} clips, {num_tags} tags",
        "",
        f"split     {description['split_rule']}",
        f"          {sizes}",
        "leaks     held-out clips of which train has the same",
        *(
            f"          {split:5}  {_shares(kinds)}"
            for split, kinds in description["leaks"].items()
        ),
        "oracle    "
        + ("cannot be computed" if oracle is None else f"{oracle:.3f}")
        + " test macro ROC-AUC without hearing anything (0.5: nothing leaks)",
        "tags      " + _tag_lines(description["tags"]),
    ]
    excluded = description["excluded"]
    if excluded:
        lines.append(f"left out  {len(excluded)} rows")
        lines += [f"          {row['id']}  {row['reason']}" for row in excluded[:_NUM_SHOWN]]
    if len(excluded) > _NUM_SHOWN:
        lines.append(f"          and {len(excluded) - _NUM_SHOWN} more (--json lists all)")
    return "\n".join(lines)


def _shares(kinds: dict[str, float | None]) -> str:
    """Shares of one split, such as "track 96.0%"."""
    return "  ".join(
        f"{kind} {'unknown' if share is None else f'{share:.1%}'}" for kind, share in kinds.items()
    )


def _tag_lines(tags: list[dict[str, Any]]) -> str:
    """Tags with their positives, five a line."""
    cells = [
        f"{row['tag']} {row['positives']:,}"
        + (f" of {row['known']:,} known" if "known" in row else "")
        for row in tags
    ]
    wide = max(map(len, cells), default=0)
    lines = [
        "  ".join(cell.ljust(wide) for cell in cells[i : i + 5]) for i in range(0, len(cells), 5)
    ]
    return "\n          ".join(line.rstrip() for line in lines)
