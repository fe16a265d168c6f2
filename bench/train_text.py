"""The tables and targets of bench/train.py as Markdown."""

from __future__ import annotations

from typing import Any

from train_rows import Row

NUM_CLIPS, NUM_EPOCHS = 18_706, 100
"""The training split of MagnaTagATune's folders, and the recipe's epochs."""

TIMES = ("epoch_s", "train_s", "around_s")
"""Of a run of train.py."""

Lines = dict[str, dict[str, Any]]


def as_text(rows: list[Row], lines: Lines, about: dict[str, Any]) -> str:
    """Everything: what was wanted, the tables, what was not measured."""
    peaks = about["peaks"]
    parts = [
        "What was wanted:\n",
        *targets(rows, lines, about),
        f"\nA clip costs {about['flops_forward'] / 1e9:.2f} GFLOP forward and "
        f"{about['flops_both'] / 1e9:.2f} forward and backward (counted on the plain network). "
        "The device's peak, by large matrix products in this run, TFLOP/s: "
        + ", ".join(f"{kind} {peak / 1e12:.3g}" for kind, peak in peaks.items() if peak)
        + ".",
    ]
    if about["device"] == "cuda":
        parts.append(
            "fp32 rows convolve in TF32, torch's default on this GPU, but where they say no TF32. "
            "mstag lets cuDNN search for the fastest algorithms, the original's style, like torch "
            "by default, does not."
        )
    parts.append("Peak memory is that of one training process, without what reads for it.")
    size = rows[0].batch_size
    tables = {
        "step": f"the training step alone, batches of {size}",
        "epoch": f"end to end, batches of {size}",
        "evaluation": "scoring a tenth of the clips, its start included",
        "ranks": "ranks",
    }
    for table, title in tables.items():
        shown = [r for r in rows if r.table == table and "clips_per_s" in lines[r.key]]
        if shown:
            parts += ["", *table_of(title, shown, lines)]
        if table == "epoch":
            parts += ["", *whole_runs(rows, lines)]
    parts += ["", *stages(rows, lines)]
    left_out = [row for row in rows if "not_measured" in lines[row.key]]
    if left_out:
        parts += ["", "Not measured:\n"]
        parts += [f"- {row.key}: {lines[row.key]['not_measured']}" for row in left_out]
    return "\n".join(parts)


def table_of(title: str, rows: list[Row], lines: Lines) -> list[str]:
    """One table; end to end it says what the whole recipe would take."""
    is_epoch = rows[0].table == "epoch"
    last = "100 epochs of 18,706 clips | data wait" if is_epoch else "of the peak"
    found = [
        f"| {title} | clips/s | ms a clip | times the original's | first step, s | {last} "
        "| peak memory, MB | rounds |",
        "|---|" + "---:|" * (8 if is_epoch else 7),
    ]
    for row in rows:
        line = lines[row.key]
        rate = line["clips_per_s"]
        total_s = NUM_EPOCHS * NUM_CLIPS / rate
        epoch_cells = [in_words(total_s), f"{line['data_wait']:.1%}"] if is_epoch else []
        cells = [
            row.name,
            f"{rate:,.1f}",
            three_digits(1e3 / rate),
            f"{line['of_peer']:.2f}" if line["of_peer"] else "",
            f"{line['first_s']:.2f}" if line["first_s"] else "",
            *(epoch_cells or [f"{line['of_peak']:.0%}" if line["of_peak"] else ""]),
            f"{line['peak_mb']:,.0f}",
            str(line["rounds"]),
        ]
        found.append("| " + " | ".join(cells) + " |")
    return found


def whole_runs(rows: list[Row], lines: Lines) -> list[str]:
    """What an epoch of train.py takes, and with it the recipe."""
    shown = [row for row in rows if row.table == "run" and "epoch_s" in lines[row.key]]
    if not shown:
        return []
    found = [
        "| train.py itself | clips | an epoch, s | of it training, s | once, s "
        "| 100 epochs of 18,706 clips | data wait | peak memory, MB |",
        "|---|" + "---:|" * 7,
    ]
    for row in shown:
        line = lines[row.key]
        cells = [f"{line['clips']:,}", *(f"{line[n]:.2f}" for n in TIMES), in_words(recipe_s(line))]
        cells += [f"{line['data_wait']:.1%}", f"{line['peak_mb']:,.0f}"]
        found.append(f"| {row.name}, batches of {row.batch_size} | " + " | ".join(cells) + " |")
    return [
        *found,
        "",
        "An epoch is trained, logged, scored on a tenth as many clips and saved. Once: the start, "
        "what the first epoch takes longer, the end. W&B is off, nothing is augmented. Data wait: "
        "of train.py, what its loader has waited for samples; of a table end to end, all time that "
        "asking for a batch takes.",
    ]


def recipe_s(line: dict[str, Any]) -> float:
    """Seconds that the whole recipe takes, from those of a run's later epochs."""
    return float(NUM_EPOCHS * line["epoch_s"] * NUM_CLIPS / line["clips"] + line["around_s"])


def stages(rows: list[Row], lines: Lines) -> list[str]:
    """Where the time of one step goes, row by row."""
    shown = [row for row in rows if "stages_ms" in lines[row.key]]
    if not shown:
        return []
    names = list(lines[shown[0].key]["stages_ms"])
    found = ["| one step, ms | " + " | ".join(names) + " | sum |"]
    found.append("|---|" + "---:|" * (len(names) + 1))
    for row in shown:
        parts = lines[row.key]["stages_ms"]
        total = sum(parts.values())
        cells = [f"{three_digits(parts[name])} ({parts[name] / total:.0%})" for name in names]
        found.append(f"| {row.name} | " + " | ".join(cells) + f" | {three_digits(total)} |")
    return found


def three_digits(number: float) -> str:
    """At least so many digits, and no powers of ten."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def targets(rows: list[Row], lines: Lines, about: dict[str, Any]) -> list[str]:
    """What issue and README ask for, and whether it is met in this run."""
    on_gpu = about["device"] == "cuda"
    found = []

    def say(what: str, value: str, wanted: str, is_met: bool) -> None:
        met = "met" if is_met else "not met"
        found.append(f"- {what}: **{value}** (wanted: {wanted}; {met})")

    def best(table: str) -> Row | None:
        """The recipe's fastest row: same batches, nothing else changed."""
        own = [r for r in rows if r.table == table and not r.is_peer and not r.augmented]
        own = [r for r in own if r.batch_size == rows[0].batch_size]
        own = [r for r in own if lines[r.key].get("of_peer")]
        return max(own, key=lambda row: float(lines[row.key]["of_peer"]), default=None)

    step, epoch = best("step"), best("epoch")
    if step:
        ratio, what = lines[step.key]["of_peer"], f"training step ({step.name})"
        if on_gpu:
            found.append(f"- {what}: **{ratio:.2f} times** the original's")
        else:
            say(what, f"{ratio:.2f} times the original's", "4", ratio >= 4)
    if epoch:
        line = lines[epoch.key]
        ratio = line["of_peer"]
        what = f"end to end ({epoch.name})"
        if on_gpu:
            say(what, f"{ratio:.2f} times the original's", "10", ratio >= 10)
        else:
            found.append(f"- {what}: **{ratio:.2f} times** the original's")
    runs = [lines[row.key] for row in rows if "epoch_s" in lines[row.key]]
    times = [recipe_s(line) for line in runs]
    if times:
        wait = max(line["data_wait"] for line in runs)
        say("data wait of train.py", f"{wait:.1%}", "under 2%", wait < 0.02)
        what = "100 epochs of 18,706 clips by train.py, each scored on a tenth as many"
        if "H200" in about["name"]:
            say(what, in_words(min(times)), "under 10 minutes on one H200", min(times) < 600)
        else:
            found.append(
                f"- {what}: **{in_words(min(times))}**, extrapolated (wanted: under 10 minutes on "
                "one H200, which this is not)"
            )
    ranks = [r for r in rows if r.table == "ranks" and "clips_per_s" in lines[r.key]]
    if len(ranks) == 2:
        one, two = (lines[row.key]["clips_per_s"] for row in ranks)
        found.append(f"- two ranks: **{two / one:.2f} times** one, efficiency {two / one / 2:.0%}")
    return found or ["- nothing that this selection of rows could show"]


def in_words(seconds: float) -> str:
    """Seconds, minutes or hours, whichever reads best."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
