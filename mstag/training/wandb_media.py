"""An evaluation -> what W&B shows of it: tables, curves, and clips to look at and listen to.

Keys are SECTION/SPLIT/NAME, with the sections "tags" and "listen". Curves are there twice: as
W&B's own charts, whose points can be read off, and together in one picture, because pictures
are all that its terminal viewer shows offline.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mstag import curves, metrics
from mstag.data.samples import Source
from mstag.data.store import Store
from mstag.models import frames_at_once
from mstag.models.predict import Predictions, predict_chunks
from mstag.show import plots
from mstag.show.plots import Lines, Panel

if TYPE_CHECKING:
    from torch import nn

NUM_WRONG_CLIPS, NUM_RIGHT_CLIPS = 12, 4
NUM_PICTURES = 6
"""Spectrograms that are shown as pictures besides those in the table."""
NUM_TAGGRAMS = 3
NUM_CONFUSIONS = 30
MAX_CONFUSED_TAGS = 30
"""Of the picture: the most frequent ones."""
MAX_POINTS = 100
"""Of a curve."""
MAX_AUDIO_BYTES = 2_000_000

TAG_COLUMNS: list[str | int] = ["tag", "positives", "ROC-AUC", "PR-AUC", "change of ROC-AUC"]
CLIP_COLUMNS = ["clip", "wrong tags", "missed", "false", "true tags", "predicted tags"]
EXTREME_COLUMNS: list[str | int] = ["rank", "best tag", "ROC-AUC", "worst tag", "ROC-AUC of worst"]
CONFUSION_COLUMNS: list[str | int] = ["clips with", "are also given", "share"]

Array = npt.NDArray[Any]
Rows = list[list[Any]]
Report = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A scored split, and what scored it."""

    report: Report
    """Of :func:`mstag.training.score.score_split`."""
    predictions: Predictions
    thresholds: Sequence[float] | Array | None = None
    """Per tag; None: those of the best F1 on this very split."""
    model: nn.Module | None = None
    """What scored it; shows tags over time where it takes a clip in chunks."""

    @property
    def split(self) -> str:
        """Its name."""
        return str(self.report["split"])

    @property
    def tag_names(self) -> list[str]:
        """In vector order."""
        return [entry["tag"] for entry in self.report["per_tag"]]


def tag_table(evaluation: Evaluation, before: Report | None) -> dict[str, Any]:
    """The per-tag table, which each evaluation logs; ``before`` is the last one's report."""
    import wandb

    rows = tag_rows(evaluation.report, before)
    return {f"tags/{evaluation.split}/table": wandb.Table(columns=TAG_COLUMNS, data=rows)}


def all_media(evaluation: Evaluation, store: Store, audio_dir: str = "") -> dict[str, Any]:
    """All that takes a second or more to make: curves, calibration, confusions, clips.

    Args:
        evaluation: what to show.
        store: its shards, for spectrograms.
        audio_dir: folder of the clips' audio; empty: there is none.
    """
    import wandb

    thresholds, panels = _thresholds(evaluation), tag_curves(evaluation)
    pictures = tag_pictures(evaluation, thresholds, panels)
    media: dict[str, Any] = {name: _image(png) for name, png in pictures.items()}
    media |= {f"tags/{evaluation.split}/{name}": _chart(panel) for name, panel in panels.items()}
    tables = {
        "extremes": (EXTREME_COLUMNS, extreme_rows(evaluation.report)),
        "confusions": (CONFUSION_COLUMNS, confusion_rows(evaluation, thresholds)),
    }
    for name, (columns, rows) in tables.items():
        media[f"tags/{evaluation.split}/{name}"] = wandb.Table(columns=columns, data=rows)
    return media | clip_media(evaluation, thresholds, store, audio_dir)


def tag_rows(report: Report, before: Report | None) -> Rows:
    """A row per tag, in vector order: TAG_COLUMNS; None where undefined."""
    last = {entry["tag"]: entry["roc_auc"] for entry in before["per_tag"]} if before else {}
    return [
        [
            *(entry[key] for key in ("tag", "positives", "roc_auc", "pr_auc")),
            _difference(entry["roc_auc"], last.get(entry["tag"])),
        ]
        for entry in report["per_tag"]
    ]


def extreme_rows(report: Report, most: int = 10) -> Rows:
    """The best tags beside the worst: EXTREME_COLUMNS."""
    ranked = _ranked_tags(report)
    pairs = zip(ranked[:most], ranked[::-1][:most], strict=True)
    return [
        [number, best["tag"], best["roc_auc"], worst["tag"], worst["roc_auc"]]
        for number, (best, worst) in enumerate(pairs, 1)
    ]


def confusion_rows(evaluation: Evaluation, thresholds: Array) -> Rows:
    """Where clips with one tag are wrongly given another, most often first."""
    shares = _confusions(evaluation, thresholds)
    np.fill_diagonal(shares, np.nan)
    order = np.argsort(-np.nan_to_num(shares, nan=-1.0), axis=None, kind="stable")
    names, rows = evaluation.tag_names, []
    for flat in order[:NUM_CONFUSIONS].tolist():
        row, column = divmod(flat, len(names))
        if shares[row, column] > 0:
            rows.append([names[row], names[column], float(shares[row, column])])
    return rows


def clips_to_show(predictions: Predictions, thresholds: Array) -> list[int]:
    """Rows of the clips with the most wrong tags, and then of some with the fewest.

    Among equals, the one whose scores are further from the truth counts as more wrong.
    """
    wrong = _wrong(predictions, thresholds)
    distances = np.abs(predictions.scores - predictions.labels)
    if predictions.mask is not None:
        distances = distances * predictions.mask
    order = np.lexsort((-distances.sum(axis=1), -wrong.sum(axis=1))).tolist()
    if len(order) <= NUM_WRONG_CLIPS + NUM_RIGHT_CLIPS:
        return list(order)
    return [*order[:NUM_WRONG_CLIPS], *order[-NUM_RIGHT_CLIPS:]]


def clip_row(predictions: Predictions, thresholds: Array, tag_names: list[str], row: int) -> Any:
    """What the table of clips says of one, as words: CLIP_COLUMNS."""
    given = predictions.scores[row] >= thresholds
    bears = predictions.labels[row].astype(bool)
    wrong = _wrong(predictions, thresholds)[row]

    def names(chosen: Array) -> str:
        return ", ".join(tag_names[i] for i in np.flatnonzero(chosen))

    return [
        predictions.ids[row],
        int(wrong.sum()),
        names(wrong & bears),
        names(wrong & given),
        names(bears),
        ", ".join(
            f"{tag_names[i]} {predictions.scores[row, i]:.2f}" for i in np.flatnonzero(given)
        ),
    ]


def find_audio(folder: str, path: str) -> Path | None:
    """The audio of a clip, where it is at hand: below the folder and not too large to send."""
    if not folder or not path:
        return None
    root = Path(folder).resolve()
    found = (root / path).resolve()
    # Shards may be somebody else's: their paths must not lead to other files of this machine.
    if not found.is_relative_to(root) or not found.is_file():
        return None
    return found if found.stat().st_size <= MAX_AUDIO_BYTES else None


def tag_curves(evaluation: Evaluation) -> dict[str, Panel]:
    """Name -> curves: ROC and PR (where they are defined), calibration, histogram of scores."""
    labels, scores = _known_cells(evaluation.predictions)
    found = curves.calibration(labels, scores)
    edges, positives, negatives = curves.score_histogram(labels, scores)
    centres = ((edges[1:] + edges[:-1]) / 2).tolist()
    roc, pr = (_curves_of(evaluation, curve) for curve in (curves.roc_curve, curves.pr_curve))
    error = f"model, expected error {found.expected_error:.4f}"
    panels = {
        "roc": Panel(roc, "false positive rate", "true positive rate", "ROC", "lower right"),
        "pr": Panel(pr, "recall", "precision", "Precision and recall", "lower left"),
        "calibration": Panel(
            {
                error: (found.mean_score.tolist(), found.share_positive.tolist()),
                "calibrated": ([0.0, 1.0], [0.0, 1.0]),
            },
            "mean score of a bin",
            "share with the tag",
            "Calibration",
            "upper left",
        ),
        "scores": Panel(
            {
                "clips with the tag": (centres, (positives / max(1, positives.sum())).tolist()),
                "clips without it": (centres, (negatives / max(1, negatives.sum())).tolist()),
            },
            "score",
            "share of the clips",
            "Scores",
        ),
    }
    return {name: panel for name, panel in panels.items() if panel.lines}


def tag_pictures(
    evaluation: Evaluation, thresholds: Array, panels: Mapping[str, Panel]
) -> dict[str, bytes]:
    """Key -> PNG: bars, all curves, confusions."""
    frequent = np.argsort([-entry["positives"] for entry in evaluation.report["per_tag"]])
    chosen = np.sort(frequent[:MAX_CONFUSED_TAGS])
    where = f"tags/{evaluation.split}"
    return {
        f"{where}/bars": plots.tag_bars(evaluation.report["per_tag"]),
        f"{where}/curves": plots.curves(list(panels.values())),
        f"{where}/confusion_map": plots.heat_map(
            _confusions(evaluation, thresholds)[np.ix_(chosen, chosen)],
            [evaluation.tag_names[i] for i in chosen],
            xlabel="tag that is given",
            ylabel="tag of the clips",
            label="share (diagonal: recall)",
        ),
    }


def clip_media(
    evaluation: Evaluation, thresholds: Array, store: Store, audio_dir: str
) -> dict[str, Any]:
    """The table of clips, mistakes first, with spectrogram, taggram and audio as there are."""
    import wandb

    predictions, names = evaluation.predictions, evaluation.tag_names
    features = store.manifest.features
    frame_s = features.hop_length / features.sample_rate_hz
    rows: Rows = []
    pictures: list[Any] = []
    taggrams: list[Any] = []
    chosen = clips_to_show(predictions, thresholds)
    numbers = predictions.numbers
    model = evaluation.model
    if model is not None and frames_at_once(model) == features.num_frames:
        model = None  # one chunk: nothing changes over time
    with Source(store, evaluation.split) as source:
        for row in chosen:
            words = clip_row(predictions, thresholds, names, row)
            caption = f"{words[0]}: missed {words[2] or '-'}; false {words[3] or '-'}"
            picture = taggram = audio = None
            if numbers is not None:
                stored = source.read(int(numbers[row]))
                thumbnail = plots.thumbnail(stored.mel)
                picture = _image(thumbnail)
                if len(pictures) < NUM_PICTURES:
                    pictures.append(_image(thumbnail, caption))
                if model is not None and len(taggrams) < NUM_TAGGRAMS:
                    chunk_scores = predict_chunks(model, stored.mel)
                    window_s = features.num_frames * frame_s / len(chunk_scores)
                    png = plots.taggram(chunk_scores, names, window_s=window_s)
                    taggram = _image(png)
                    taggrams.append(_image(png, caption))
                path = find_audio(audio_dir, str(stored.meta.get("path", "")))
                if path is not None:
                    audio = wandb.Audio(str(path), caption=words[0])
            rows.append([*words, picture, taggram, audio])
    media: dict[str, Any] = {
        f"listen/{evaluation.split}/clips": wandb.Table(
            columns=[*CLIP_COLUMNS, "spectrogram", "taggram", "audio"], data=rows
        )
    }
    if pictures:
        media[f"listen/{evaluation.split}/spectrograms"] = pictures
    if taggrams:
        media[f"listen/{evaluation.split}/taggrams"] = taggrams
    return media


def _thresholds(evaluation: Evaluation) -> Array:
    if evaluation.thresholds is not None:
        return np.asarray(evaluation.thresholds)
    known = evaluation.predictions
    return metrics.best_thresholds(known.labels, known.scores, known.mask)


def _wrong(predictions: Predictions, thresholds: Array) -> Array:
    """Which known cells are on the wrong side of their threshold, bool (n, t)."""
    wrong: Array = (predictions.scores >= thresholds) != predictions.labels.astype(bool)
    return wrong if predictions.mask is None else wrong & predictions.mask.astype(bool)


def _confusions(evaluation: Evaluation, thresholds: Array) -> Array:
    known = evaluation.predictions
    return curves.confusions(known.labels, known.scores, thresholds, known.mask)


def _known_cells(predictions: Predictions, tag: int | None = None) -> tuple[Array, Array]:
    """Labels and scores (n,) of one tag, or of all together, where they are known."""
    part = slice(None) if tag is None else slice(tag, tag + 1)
    labels, scores = predictions.labels[:, part], predictions.scores[:, part]
    if predictions.mask is None:
        return labels.ravel(), scores.ravel()
    known = predictions.mask[:, part].astype(bool)
    return labels[known], scores[known]


def _curves_of(evaluation: Evaluation, curve: Any) -> Lines:
    """Curves of all tags together and of the best, the middle and the worst one."""
    ranked = _ranked_tags(evaluation.report)
    chosen: dict[str, int | None] = {"all tags": None}
    if ranked:
        for word, entry in zip(
            ("best", "middle", "worst"), (ranked[0], ranked[len(ranked) // 2], ranked[-1]),
            strict=True,
        ):  # fmt: skip
            chosen[f"{word}: {entry['tag']}"] = evaluation.tag_names.index(entry["tag"])
    found = {
        name: curve(*_known_cells(evaluation.predictions, tag), MAX_POINTS)
        for name, tag in chosen.items()
    }
    return {
        name: (points[0].tolist(), points[1].tolist())
        for name, points in found.items()
        if points is not None
    }


def _ranked_tags(report: Report) -> list[Any]:
    """Entries of the tags that have a score, best first."""
    scored = [entry for entry in report["per_tag"] if entry["roc_auc"] is not None]
    return sorted(scored, key=lambda entry: -entry["roc_auc"])


def _difference(now: float | None, before: float | None) -> float | None:
    return None if now is None or before is None else now - before


def _chart(panel: Panel) -> Any:
    """W&B's own chart of some lines."""
    import wandb

    return wandb.plot.line_series(
        xs=[x for x, _ in panel.lines.values()],
        ys=[y for _, y in panel.lines.values()],
        keys=list(panel.lines),
        title=f"{panel.title}: {panel.ylabel}",
        xname=panel.xlabel,
    )


def _image(png: bytes, caption: str | None = None) -> Any:
    import wandb
    from PIL import Image

    return wandb.Image(Image.open(io.BytesIO(png)), caption=caption)
