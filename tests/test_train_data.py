"""train.py on shards that lie elsewhere, and on damaged ones."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
from loopback import serving
from tiny_run import arguments, assert_same_training, make_config, metrics_of, run_script


def test_training_from_an_address_is_training_from_the_folder(tmp_path: Path) -> None:
    make_config(tmp_path)
    window = "train.shuffle_window=1"
    local = run_script("train.py", *arguments(tmp_path, "local", window))
    assert local.returncode == 0, local.stderr
    with serving() as server:
        server.files = {
            f"/set/{path.name}": path.read_bytes() for path in (tmp_path / "shards").iterdir()
        }
        server.moods = ["", "503", "cut"]
        cache = tmp_path / "cache"
        argv = arguments(tmp_path, "away", window, f"train.cache_dir={cache}")
        argv[argv.index("--shards") + 1] = f"{server.base}/set/"
        away = run_script("train.py", *argv)
        assert away.returncode == 0, away.stderr
        tars = Counter(path for path in server.paths if path.endswith(".tar"))
        assert len(tars) == 8, "every shard of the three splits"
        scored = run_script(
            "eval.py", str(tmp_path / "away"), "--shards", f"{server.base}/set/", "--split", "valid"
        )
        assert scored.returncode == 0, scored.stderr
        assert Counter(path for path in server.paths if path.endswith(".tar")) == tars
        server.missing.add("/set/manifest.json")
        argv[argv.index("--out") + 1] = str(tmp_path / "other")
        gone = run_script("train.py", *argv)
        assert gone.returncode == 1
        assert len(gone.stderr.strip().splitlines()) == 1 and "404" in gone.stderr
    assert_same_training(tmp_path / "local", tmp_path / "away")


def damage_one_clip(shards: Path) -> None:
    row = np.load(shards / "train.index.npy")[9]
    path = shards / f"train-{int(row['shard']):06d}.tar"
    content = bytearray(path.read_bytes())
    content[int(row["start"] + row["mel_at"]) + 200] ^= 1
    path.write_bytes(content)


def test_a_damaged_clip_ends_training_or_is_left_out_and_counted(tmp_path: Path) -> None:
    make_config(tmp_path)
    damage_one_clip(tmp_path / "shards")
    failed = run_script("train.py", *arguments(tmp_path, "run"))
    assert failed.returncode == 1
    message = failed.stderr.strip().splitlines()[-1]
    assert "sample 9 of train" in message and "checksum" in message
    assert "Traceback" not in failed.stderr
    skip = ("train.on_bad_clip=skip", "train.max_bad_clips=0.05")
    done = run_script("train.py", *arguments(tmp_path, "skipping", *skip))
    assert done.returncode == 0, done.stderr
    assert "refused: " in done.stderr
    ledgers = [line for line in metrics_of(tmp_path / "skipping") if "data/seen" in line]
    assert len(ledgers) == 3
    for line in ledgers:
        # 25 training clips in batches of 4: one is dropped, which may be the damaged one.
        assert line["data/dropped"] == 1
        assert line["data/seen"] + line["data/refused"] == 24
    assert sum(line["data/refused"] for line in ledgers) in (2, 3)
    none = ("train.on_bad_clip=skip", "train.max_bad_clips=0")
    limited = run_script("train.py", *arguments(tmp_path, "limited", *none))
    assert limited.returncode == 1 and "train.max_bad_clips = 0 of 25" in limited.stderr
