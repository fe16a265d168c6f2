"""The tables of bench/accuracy.py as Markdown."""

from __future__ import annotations

import statistics
from typing import Any

Found = dict[str, Any]
TITLES = {"test": "test", "stranger": "strangers", "scout": "scouts"}
METRICS = {"roc_auc": "ROC-AUC", "pr_auc": "PR-AUC"}
OURS, BASELINE, PEER = "mscnn2", "mscnn", "short_chunk_res"


def spread(values: list[float]) -> str:
    """Mean and sample standard deviation, where there is one."""
    mean = f"{statistics.mean(values):.4f}"
    return f"{mean} +- {statistics.stdev(values):.4f}" if len(values) > 1 else mean


def gains(one: Found, other: Found, name: str, metric: str) -> list[float]:
    """Differences of two contestants on a set, seed by seed."""
    both = [seed for seed in one["runs"] if seed in other["runs"]]
    return [one["runs"][s][name][metric] - other["runs"][s][name][metric] for s in both]


def as_text(result: Found) -> str:
    """Targets, scores, costs, differences, ablations, commands."""
    found = result["contestants"]
    sets = [
        n for n in TITLES if all(n in run for c in found.values() for run in c["runs"].values())
    ]
    first = next(iter(next(iter(found.values()))["runs"].values()))
    main_ones = {name: c for name, c in found.items() if not c["without"]}
    sizes = ", ".join(f"{first[name]['clips']} clips of {TITLES[name]}" for name in sets)
    parts = [
        f"Each contestant saw {first['clips_seen']:,} clips in {result['epochs']} epochs of "
        f"demo-large and was scored on {sizes}. Mean +- standard deviation over the seeds; the "
        "weights are those of the best epoch on the validation split, and the test split was "
        "scored once.",
        "",
        *targets(result, sets),
        "",
        *scores_table(main_ones, sets),
        "",
        *costs_table(main_ones),
        "",
        *differences_table(result, main_ones, sets),
    ]
    ablations = {name: c for name, c in found.items() if c["without"]}
    if ablations:
        parts += ["", *ablations_table(found, ablations, sets)]
    parts += ["", "Any row again (shards and run folder as you like):", ""]
    parts += [f"- {name}: `{c['command']}`" for name, c in found.items()]
    parts += [
        "",
        f"`{result['command']}`, {result['machine']}, {result['device']}, torch {result['torch']}",
    ]
    return "\n".join(parts) + "\n"


def targets(result: Found, sets: list[str]) -> list[str]:
    """What was wanted of our network, and what it does."""
    found = result["contestants"]
    if not {OURS, BASELINE} <= found.keys():
        return []
    ours, lines = found[OURS], ["What was wanted:", ""]
    wanted = [(BASELINE, "test", "roc_auc", 0.03), (BASELINE, "test", "pr_auc", 0.08)]
    wanted += [(PEER, "test", "roc_auc", 0.0)]
    wanted += [(BASELINE, "stranger", "roc_auc", 0.05), (PEER, "stranger", "roc_auc", 0.02)]
    for other, name, metric, least in wanted:
        if other not in found or name not in sets:
            continue
        gained = statistics.mean(gains(ours, found[other], name, metric))
        low, high = result["differences"][f"{OURS} - {other}"][name][metric]
        verdict = "met" if gained >= least else "missed"
        lines.append(
            f"- {METRICS[metric]} on {TITLES[name]} over {other}: **{gained:+.4f}** "
            f"[{low:+.4f}, {high:+.4f}] (wanted: {least:+.2f}; {verdict})"
        )
    for other in (BASELINE, PEER):
        if other in found:
            mine, theirs = ours["costs"], found[other]["costs"]
            ratio = theirs["train_clips_per_s"] / mine["train_clips_per_s"]
            lines.append(
                f"- training time per clip: **{ratio:.2f}** of {other}'s, multiply-adds "
                f"{mine['gmacs_chunk'] / theirs['gmacs_chunk']:.2f}, scoring time "
                f"{theirs['score_clips_per_s'] / mine['score_clips_per_s']:.2f} (wanted: half)"
            )
    return lines


def scores_table(found: Found, sets: list[str]) -> list[str]:
    """Mean scores of every contestant."""
    heads = [f"{METRICS[metric]}, {TITLES[name]}" for name in sets for metric in METRICS]
    lines = [f"| | {' | '.join(heads)} | valid ROC-AUC | seeds |"]
    lines.append("|---|" + "---:|" * (len(heads) + 2))
    for name, contestant in found.items():
        runs = contestant["runs"].values()
        cells = [spread([run[s][metric] for run in runs]) for s in sets for metric in METRICS]
        cells.append(spread([run["valid"] for run in runs]))
        lines.append(f"| {name} | {' | '.join(cells)} | {len(runs)} |")
    notes = [f"{name}: {c['what']}" for name, c in found.items() if c["what"]]
    return [*lines, "", *(f"- {note}" for note in notes)]


def costs_table(found: Found) -> list[str]:
    """What a clip costs."""
    lines = [
        "| cost of a clip | weights, M | heard in training, s | GMAC of that, forward "
        "| GMAC of a whole clip | training, clips/s | scoring in float32, clips/s |",
        "|---|" + "---:|" * 6,
    ]
    for name, contestant in found.items():
        cost = contestant["costs"]
        cells = [
            f"{cost['weights'] / 1e6:.2f}",
            f"{cost['chunk_s']:.1f}",
            f"{cost['gmacs_chunk']:.3f}",
            f"{cost['gmacs_clip']:.3f}",
            f"{cost['train_clips_per_s']:.1f}",
            f"{cost['score_clips_per_s']:.1f}",
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def differences_table(result: Found, found: Found, sets: list[str]) -> list[str]:
    """Our network, or the first one, against every other."""
    ours = OURS if OURS in found else next(iter(found))
    lines = [
        f"| {ours} over ..., same seeds | "
        + " | ".join(f"{METRICS[metric]}, {TITLES[name]}" for name in sets for metric in METRICS)
        + " |",
        "|---|" + "---:|" * (2 * len(sets)),
    ]
    for name in found:
        pair = result["differences"].get(f"{ours} - {name}")
        if not pair:
            continue
        cells = []
        for where in sets:
            for metric in METRICS:
                gained = statistics.mean(gains(found[ours], found[name], where, metric))
                low, high = pair[where][metric]
                cells.append(f"{gained:+.4f} [{low:+.4f}, {high:+.4f}]")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return [*lines, "", "Brackets: 95% bootstrap intervals over draws of artists and of seeds."]


def ablations_table(found: Found, ablations: Found, sets: list[str]) -> list[str]:
    """What each part is worth: the contestant without it, and the difference."""
    heads = [f"{METRICS[metric]}, {TITLES[name]}" for name in sets for metric in METRICS]
    lines = [f"| changed | {' | '.join(heads)} | training, clips/s | seeds |"]
    lines.append("|---|" + "---:|" * (len(heads) + 2))
    for name, contestant in ablations.items():
        whole = found[contestant["without"]]
        cells = []
        for where in sets:
            for metric in METRICS:
                change = gains(contestant, whole, where, metric)
                cells.append(f"{statistics.mean(change):+.4f}" if change else "")
        rate = contestant["costs"]["train_clips_per_s"]
        what = contestant["what"] or name
        lines.append(f"| {what} | {' | '.join(cells)} | {rate:.1f} | {len(contestant['runs'])} |")
    return ["Ablations: the change against the whole, same seeds.", "", *lines]
