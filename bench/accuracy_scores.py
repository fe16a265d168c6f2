"""What runs have scored, and how sure a difference between two networks is."""

from __future__ import annotations

import itertools
import json
from typing import Any

import numpy as np
from accuracy_rows import CONTESTANTS, Contestant
from accuracy_runs import INFO, OTHERS, Bench, read_table
from numpy.typing import NDArray

from mstag import metrics

NUM_DRAWS = 400
METRICS = ("roc_auc", "pr_auc")
Array = NDArray[Any]
Found = dict[str, Any]


def read_run(bench: Bench, contestant: Contestant, seed: int) -> Found:
    """Scores of a run: of each set that it has scored, and of the validation split by epoch."""
    run = bench.run(contestant, seed)
    files = {name: bench.report(contestant, seed, name) for name in ("test", *OTHERS)}
    reports = {name: json.loads(f.read_text()) for name, f in files.items() if f.exists()}
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    valid = {line["epoch"]: line["valid/roc_auc"] for line in lines if "valid/roc_auc" in line}
    return {
        "valid": max(valid.values()),
        "valid_by_epoch": valid,
        "clips_seen": max(line["clips_seen"] for line in lines),
        **{n: {key: r[key] for key in (*METRICS, "clips")} for n, r in reports.items()},
    }


def drawn_aucs(bench: Bench, contestant: Contestant, seed: int, name: str) -> Array:
    """Macro (ROC-AUC, PR-AUC) of a run in draws of artists, (2, NUM_DRAWS).

    The draws are the same for all runs.
    """
    report = bench.report(contestant, seed, name)
    with np.load(
        report.with_name(report.name.replace("eval-", "scores-")).with_suffix(".npz"),
        allow_pickle=False,
    ) as file:
        ids, labels, scores = [str(i) for i in file["ids"]], file["labels"], file["scores"]
    infos = read_table(bench.data / f"demo-{'large' if name == 'test' else name}" / INFO)
    artists = {row["clip_id"]: row["artist"] for row in infos}
    weights = artist_weights([artists[i] for i in ids], NUM_DRAWS)
    per_tag = [
        metrics.weighted_aucs(metrics.rank(labels[:, k], scores[:, k]), weights)
        for k in range(labels.shape[1])
    ]
    drawn: Array = np.nanmean(np.array(per_tag), axis=0)
    return drawn


def artist_weights(artists: list[str], num_draws: int) -> Array:
    """How often each clip counts in each draw of artists with all their clips, (n, num_draws)."""
    names, number = np.unique(artists, return_inverse=True)
    rng = np.random.default_rng(0)
    drawn = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=num_draws)
    return np.asarray(drawn.T[number], dtype=np.float64)


def difference(one: Array, other: Array) -> dict[str, list[float]]:
    """95% intervals of differences of means, over draws of artists and of seeds alike.

    Artists are the same for both; seeds are drawn for each on its own, as they have nothing in
    common but their number. Of few seeds, means of draws vary too little, by (S - 1) / S: their
    deviations are made up for that. A single seed has none.

    Args:
        one: (seeds, 2, draws) of a contestant.
        other: the same of another.
    """
    rng = np.random.default_rng(1)
    gains = drawn_means(one, rng) - drawn_means(other, rng)
    low, high = np.percentile(gains, [2.5, 97.5], axis=1)
    return {key: [float(low[i]), float(high[i])] for i, key in enumerate(METRICS)}


def drawn_means(scores: Array, rng: np.random.Generator) -> Array:
    """Means over drawn seeds, (2, draws), of scores (seeds, 2, draws)."""
    num_seeds, _, num_draws = scores.shape
    mean = scores.mean(axis=0)
    if num_seeds == 1:
        return mean
    seeds = rng.integers(num_seeds, size=(num_seeds, num_draws))
    drawn = np.take_along_axis(scores, seeds[:, None, :], axis=0).mean(axis=0)
    return np.asarray(mean + np.sqrt(num_seeds / (num_seeds - 1)) * (drawn - mean))


def all_differences(bench: Bench, seeds: dict[str, list[int]]) -> Found:
    """Of every pair of contestants and each set that both have scored: the intervals."""
    found: Found = {}
    for name in ("test", *OTHERS):
        drawn = {
            own: np.array([drawn_aucs(bench, CONTESTANTS[own], s, name) for s in numbers])
            for own, numbers in seeds.items()
            if not CONTESTANTS[own].without
            and all(bench.report(CONTESTANTS[own], s, name).exists() for s in numbers)
        }
        for one, other in itertools.permutations(drawn, 2):
            found.setdefault(f"{one} - {other}", {})[name] = difference(drawn[one], drawn[other])
    return found
