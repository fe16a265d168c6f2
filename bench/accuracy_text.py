"""The tables of bench/accuracy.py as Markdown."""

from __future__ import annotations

import statistics
from typing import Any

Found = dict[str, Any]
TITLES = {"test": "test", "stranger": "strangers", "scout": "scouts"}
METRICS = {"roc_auc": "ROC-AUC", "pr_auc": "PR-AUC"}
OURS, BASELINE, PEER = "mscnn2", "mscnn", "short_chunk_res"
NONE = ""


def as_text(result: Found) -> str:
    """Targets, scores, costs, differences, ablations, commands; what is missing is left empty."""
    found = result["contestants"]
    if not found:
        return "No run has ended yet.\n"
    runs = [run for contestant in found.values() for run in contestant["runs"].values()]
    sets = [name for name in TITLES if any(name in run for run in runs)]
    sizes = {name: next(run[name]["clips"] for run in runs if name in run) for name in sets}
    wholes = {name: c for name, c in found.items() if not c["without"]}
    seen = [run["clips_seen"] for c in (wholes or found).values() for run in c["runs"].values()]
    parts = [
        f"Each contestant saw about {max(seen):,} clips "
        f"({result['epochs']} epochs of demo-large) and was scored on "
        + ", ".join(f"{size} clips of {TITLES[name]}" for name, size in sizes.items())
        + ". Mean +- standard deviation over the seeds. The weights are those of the best epoch "
        "on the validation split; the test split was scored once a run.",
        *section(targets(result, sets)),
        *section(scores_table(wholes, sets)),
        *section(costs_table(found)),
        *section(differences_table(result, wholes, sets)),
        *section(changes_table(found, sets)),
        "",
        "Any of them again, on shards with its features (`shard-tools pack` with the same "
        "`--set features...`); all else comes by itself with `bench/accuracy.py --only NAME`:",
        "",
        *(f"- {name}: `{c['command']}`{part_note(c)}" for name, c in found.items()),
        "",
        f"`{result['command']}`, {result['machine']}, {result['device']}, torch {result['torch']}",
    ]
    return "\n".join(parts) + "\n"


def section(lines: list[str]) -> list[str]:
    """Lines behind an empty one, where there are any."""
    return ["", *lines] if lines else []


def part_note(contestant: Found) -> str:
    """What the command of a contestant does not say."""
    share = contestant["share"]
    return f" (on shards with {share:.0%} of the training artists)" if share < 1 else NONE


def spread(values: list[float]) -> str:
    """Mean and sample standard deviation, where there is one."""
    if not values:
        return NONE
    mean = f"{statistics.mean(values):.4f}"
    return f"{mean} +- {statistics.stdev(values):.4f}" if len(values) > 1 else mean


def scores(contestant: Found, name: str, metric: str) -> list[float]:
    """One score a seed."""
    return [run[name][metric] for run in contestant["runs"].values() if name in run]


def gain(one: Found, other: Found, name: str, metric: str) -> float | None:
    """Difference of the means of two contestants; None where one has not been scored."""
    both = scores(one, name, metric), scores(other, name, metric)
    return statistics.mean(both[0]) - statistics.mean(both[1]) if all(both) else None


def heads(sets: list[str]) -> list[str]:
    """A column for each set and metric."""
    return [f"{METRICS[metric]}, {TITLES[name]}" for name in sets for metric in METRICS]


def targets(result: Found, sets: list[str]) -> list[str]:
    """What was wanted of our network, and what it does."""
    found = result["contestants"]
    if OURS not in found:
        return []
    ours, lines = found[OURS], ["What was wanted of mscnn2, and set before it was made:", ""]
    wanted = [(BASELINE, "test", "roc_auc", 0.03), (BASELINE, "test", "pr_auc", 0.08)]
    wanted += [(PEER, "test", "roc_auc", 0.0)]
    wanted += [(BASELINE, "stranger", "roc_auc", 0.05), (PEER, "stranger", "roc_auc", 0.02)]
    for other, name, metric, least in wanted:
        interval = result["differences"].get(f"{OURS} - {other}", {}).get(name)
        if name not in sets or interval is None:
            continue
        gained = gain(ours, found[other], name, metric)
        assert gained is not None
        low, high = interval[metric]
        verdict = "missed" if gained < least else "met"
        if verdict == "met" and low < least:
            verdict = "met, but the interval has less too"
        lines.append(
            f"- {METRICS[metric]} on {TITLES[name]} over {other}: **{gained:+.4f}** "
            f"[{low:+.4f}, {high:+.4f}] (wanted: {least:+.2f}; {verdict})"
        )
    for other in (BASELINE, PEER):
        if other in found and ours["costs"] and found[other]["costs"]:
            ratios = [ratio_of(ours, found[other], key) for key in ("train", "score")]
            verdict = "met" if ratios[0] <= 0.5 else "missed"
            lines.append(
                f"- training time of a clip: **{ratios[0]:.2f}** of {other}'s (wanted: 0.50 at "
                f"most; {verdict}); scoring time: {ratios[1]:.2f}"
            )
    return lines


def ratio_of(one: Found, other: Found, key: str) -> float:
    """The time that one takes for a clip, over the other's."""
    rate = f"{key}_clips_per_s"
    ratio: float = other["costs"][rate] / one["costs"][rate]
    return ratio


def scores_table(found: Found, sets: list[str]) -> list[str]:
    """Mean scores of every contestant."""
    lines = [f"| | {' | '.join(heads(sets))} | valid ROC-AUC | seeds |"]
    lines.append("|---|" + "---:|" * (2 * len(sets) + 2))
    for name, contestant in found.items():
        cells = [spread(scores(contestant, s, metric)) for s in sets for metric in METRICS]
        cells.append(spread([run["valid"] for run in contestant["runs"].values()]))
        lines.append(f"| {name} | {' | '.join(cells)} | {len(contestant['runs'])} |")
    notes = [f"- {name}: {c['what']}" for name, c in found.items() if c["what"]]
    return lines + section(notes)


def costs_table(found: Found) -> list[str]:
    """What a clip costs."""
    known = {name: c["costs"] for name, c in found.items() if c["costs"] and c["share"] == 1}
    lines = [
        "| cost of a clip | weights, M | heard in training, s | GMAC of that, forward "
        "| GMAC of a whole clip | training, clips/s | scoring in float32, clips/s |",
        "|---|" + "---:|" * 6,
    ]
    for name, cost in known.items():
        cells = [
            f"{cost['weights'] / 1e6:.2f}",
            f"{cost['chunk_s']:.1f}",
            f"{cost['gmacs_chunk']:.3f}",
            f"{cost['gmacs_clip']:.3f}",
            f"{cost['train_clips_per_s']:.1f}",
            f"{cost['score_clips_per_s']:.1f}",
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines if known else []


def differences_table(result: Found, found: Found, sets: list[str]) -> list[str]:
    """Our network against every other."""
    rows = []
    for name in found:
        pair = result["differences"].get(f"{OURS} - {name}")
        if not pair:
            continue
        cells = []
        for where in sets:
            for metric in METRICS:
                gained = gain(found[OURS], found[name], where, metric)
                if gained is None or where not in pair:
                    cells.append(NONE)
                    continue
                low, high = pair[where][metric]
                cells.append(f"{gained:+.4f} [{low:+.4f}, {high:+.4f}]")
        rows.append(f"| {name} | {' | '.join(cells)} |")
    if not rows:
        return []
    return [
        f"| {OURS} over ... | {' | '.join(heads(sets))} |",
        "|---|" + "---:|" * (2 * len(sets)),
        *rows,
        "",
        "Brackets: 95% bootstrap intervals over draws of artists, and of seeds where a contestant "
        "has several.",
    ]


def changes_table(found: Found, sets: list[str]) -> list[str]:
    """Ablations and fewer clips: what differs in one thing, and by how much."""
    rows = []
    for name, contestant in found.items():
        whole = found.get(contestant["without"])
        if whole is None:
            continue
        cells = []
        for where in sets:
            for metric in METRICS:
                gained = gain(contestant, whole, where, metric)
                cells.append(NONE if gained is None else f"{gained:+.3f}")
        what = contestant["what"] or name
        rows.append(
            f"| {contestant['without']}: {what} | {' | '.join(cells)} | {len(contestant['runs'])} |"
        )
    if not rows:
        return []
    return [
        "One thing changed, against the mean of the whole's seeds. With one seed each, and seeds "
        "that differ as they do above, the second decimal is all that may be believed.",
        "",
        f"| | {' | '.join(heads(sets))} | seeds |",
        "|---|" + "---:|" * (2 * len(sets) + 1),
        *rows,
    ]
