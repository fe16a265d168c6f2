"""Forty and more hostile files and as many good ones, through the real command."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

from hostile_audio import Expected, make_good, make_hostile
from shared_data import REPOSITORY

from mstag.data import shards, tars
from shard_tools.verify import verify

# As paths of a table go: refused before any file is opened.
BAD_PATHS = {
    "two\nlines.wav": "control characters",
    "caf\udce9.wav": "not UTF-8",
    "../outside.wav": "leaves the data folder",
    "/etc/passwd": "absolute",
    "": "no path",
}


def collection(folder: Path) -> list[Expected]:
    """Good and hostile files beside a table that names them all."""
    for name in ("good", "hostile"):
        (folder / name).mkdir(parents=True)
    files = [Expected(f"good/{f.path}", f.outcome) for f in make_good(folder / "good")]
    for file in make_hostile(folder / "hostile"):
        # A decoder does not mind such names; tables, reports and readers of shards would.
        bad_name = not file.path.isprintable()
        outcome = ("skipped", "not UTF-8") if bad_name else (file.outcome, file.reason)
        files.append(Expected(f"hostile/{file.path}", *outcome))
    files += [Expected(path, "skipped", reason) for path, reason in BAD_PATHS.items()]
    with (folder / "tracks.jsonl").open("w", encoding="utf-8", errors="surrogatepass") as table:
        for number, file in enumerate(files):
            row = {"path": file.path, "tags": ["x", f"y{number % 2}"], "artist": str(number)}
            table.write(json.dumps(row) + "\n")
    return files


def test_hostile_and_good_files_are_packed_with_exact_counts(tmp_path: Path) -> None:
    files = collection(tmp_path / "data")
    outcomes = [file.outcome for file in files]
    assert outcomes.count("packed") >= 40 and len(outcomes) - outcomes.count("packed") >= 40
    (tmp_path / "c.toml").write_text(
        '[dataset]\nname = "mixed"\nkind = "table"\ntable = "tracks.jsonl"\n'
        "[features]\nnum_frames = 64\n[shards]\nclips_per_shard = 16\nmax_skipped = 1.0\n"
    )
    command = [sys.executable, "-m", "shard_tools", "pack", "--config", str(tmp_path / "c.toml")]
    command += ["--data", str(tmp_path / "data"), "--out", str(tmp_path / "out")]
    done = subprocess.run(
        command,
        cwd=REPOSITORY,
        capture_output=True,
        timeout=300,
        encoding="utf-8",
        errors="replace",
    )
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    manifest = shards.read_manifest(tmp_path / "out")
    skipped = {row["path"]: row["reason"] for row in manifest.skipped}
    packed: dict[str, bool] = {}
    for split in manifest.splits.values():
        for entry in split.shards:
            for sample in tars.scan_shard(tmp_path / "out" / entry.name)[1]:
                path = str(sample.meta["path"])
                packed[path] = packed.get(path, False) or bool(sample.meta.get("truncated"))
                assert sample.mel.max() > -20, f"{path}: a picture of nothing"
    wrong = []
    for file in files:
        if file.outcome == "skipped":
            shown = re.sub("[\ud800-\udfff]", "\ufffd", file.path)
            reason = skipped.get(shown, "")
            if file.path in packed or not reason or not re.search(file.reason, reason):
                wrong.append(f"{file.path!r}: {reason!r} is not {file.reason!r}")
        elif packed.get(file.path) is not (file.outcome == "flagged"):
            wrong.append(f"{file.path!r}: {packed.get(file.path)} is not {file.outcome}")
    assert not wrong, "\n".join(wrong)
    assert len(packed) + len(skipped) == len(files)
    assert f"{outcomes.count('flagged')} clips are cut off or damaged" in done.stderr
    assert verify(tmp_path / "out") == []
