from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
from make_audio import SETTINGS, TAGS, contents, make_audio
from shared_data import CLIP, REPOSITORY, needs_mtt, unpack_mtt_tables

from mstag import config
from mstag.data import shards, tars
from mstag.data.clips import Catalogue
from shard_tools.catalogs import load_catalogue
from shard_tools.inspect import format_summary, inspect
from shard_tools.output import Output
from shard_tools.pack import pack
from shard_tools.pack_shard import pack_shard
from shard_tools.plan import ShardTask
from shard_tools.receipts import Receipt
from shard_tools.verify import verify


def run(data: Path, out: Path, catalogue: Catalogue, **how: int) -> tuple[shards.Manifest, int]:
    packed = pack(SETTINGS, catalogue, data, out, progress=False, **how)  # type: ignore[arg-type]
    assert packed.manifest
    return packed.manifest, packed.num_packed


def test_the_number_of_workers_changes_no_byte(tmp_path: Path) -> None:
    catalogue = make_audio(tmp_path / "data", 24)
    manifest, packed = run(tmp_path / "data", tmp_path / "one", catalogue, num_workers=1)
    run(tmp_path / "data", tmp_path / "two", catalogue, num_workers=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert packed == 7 and {n: s.clips for n, s in manifest.splits.items()} == {
        "train": 12,
        "valid": 6,
        "test": 6,
    }
    assert manifest.tags[0] == {"tag": "low", "positives": {"train": 6, "valid": 6, "test": 0}}
    assert verify(tmp_path / "two") == []


def test_what_a_lost_machine_left_half_written_is_cleared_at_the_end(tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    catalogue = make_audio(data, 24)
    left = []

    def loses_machines(tasks: Sequence[ShardTask], output: Output) -> Iterator[Receipt]:
        for task in tasks:
            left.append(output.scratch / f".{task.name}.abcd_123.tmp")
            left[-1].write_bytes(bytes(1024))
            yield pack_shard(task, output)

    pack(SETTINGS, catalogue, data, out, engine=loses_machines, progress=False)
    assert len(left) == 7 and not any(path.exists() for path in left)
    run(data, tmp_path / "undisturbed", catalogue, num_workers=1)
    assert contents(out) == contents(tmp_path / "undisturbed")


def test_packing_again_does_nothing_and_restores_what_is_missing(tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    catalogue = make_audio(data, 24)
    run(data, out, catalogue, num_workers=1)
    before = contents(out)
    times = {p: p.stat().st_mtime_ns for p in out.iterdir() if p.is_file()}
    assert run(data, out, catalogue)[1] == 0
    assert times == {p: p.stat().st_mtime_ns for p in out.iterdir() if p.is_file()}
    for name in ("train-000001.tar", "train.index.npy", "manifest.json"):
        (out / name).unlink()
        _, packed = run(data, out, catalogue, num_workers=1)
        assert packed == (1 if name.endswith(".tar") else 0)
        assert contents(out) == before


def test_only_what_changed_is_packed_again(tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    catalogue = make_audio(data, 24)
    run(data, out, catalogue, num_workers=1)
    sf.write(data / "0.wav", np.zeros(6000), 11025)
    assert run(data, out, catalogue, num_workers=1)[1] == 1
    fewer = dataclasses.replace(catalogue, clips=[c for c in catalogue.clips if c.split != "test"])
    manifest, packed = run(data, out, fewer, num_workers=1)
    assert packed == 0 and manifest.splits["test"].clips == 0
    assert not list(out.glob("test-*.tar")), "shards that nothing names are gone"
    assert verify(out) == []


def test_bad_clips_are_skipped_named_and_limited(tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    catalogue = make_audio(data, 24)
    (data / "3.wav").write_text("these are words, not music\n" * 99)
    (data / "4.wav").write_bytes(b"")
    manifest, _ = run(data, out, catalogue, num_workers=1)
    reasons = {s["id"]: s["reason"] for s in manifest.skipped}
    assert set(reasons) == {"c3", "c4"}
    assert "decoded" in reasons["c3"] and "empty" in reasons["c4"]
    assert sum(split.clips for split in manifest.splits.values()) == 22
    (data / "5.wav").write_bytes(b"")
    with pytest.raises(ValueError, match=r"3 of 24 clips.*max_skipped = 0\.1.*mend"):
        run(data, out, catalogue, num_workers=1)
    assert not (out / "manifest.json").exists(), "a failed pack leaves no finished folder"


def test_missing_audio_fails_before_any_packing(tmp_path: Path) -> None:
    catalogue = make_audio(tmp_path / "data", 24)
    shutil.rmtree(tmp_path / "data")
    (tmp_path / "data").mkdir()
    with pytest.raises(ValueError, match=r"24 of 24 clips.*0\.wav: no such file"):
        run(tmp_path / "data", tmp_path / "out", catalogue)
    assert not (tmp_path / "out").exists()


def test_short_and_long_clips_become_flagged_windows(tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    catalogue = make_audio(data, 4)
    rng = np.random.default_rng(0)
    sf.write(data / "0.wav", 0.1 * rng.standard_normal(1280), 11025)  # 11 frames of 40
    sf.write(data / "1.wav", 0.1 * rng.standard_normal(128 * 99), 11025)  # 100 frames: 2.5 windows
    run(data, out, catalogue, num_workers=1)
    _, samples = tars.scan_shard(out / "train-000000.tar")
    by_id: dict[str, list[tars.Sample]] = {}
    for sample in samples:
        by_id.setdefault(str(sample.meta["id"]), []).append(sample)
    (short,) = by_id["c0"]
    assert short.meta["padded_frames"] == 29
    assert np.all(short.mel[:, 11:] == np.float16(np.log(1e-20)))
    starts = [s.meta["start_s"] for s in by_id["c1"]]
    assert starts == pytest.approx([0, 40 * 128 / 11025, 80 * 128 / 11025], abs=1e-6)
    assert [s.meta.get("padded_frames") for s in by_id["c1"]] == [None, None, 20]


def test_two_packs_into_one_folder_are_refused(tmp_path: Path) -> None:
    import fcntl

    catalogue = make_audio(tmp_path / "data", 4)
    (tmp_path / "out" / ".pack").mkdir(parents=True)
    with (tmp_path / "out" / ".pack" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="another pack"):
            run(tmp_path / "data", tmp_path / "out", catalogue)


def test_a_killed_pack_goes_on_and_ends_with_the_same_bytes(tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    make_audio(data, 60)
    (data / "t.csv").write_text(
        "path,tags,split\n"
        + "".join(f"{n}.wav,{TAGS[n % 2]},{'train' if n % 5 else 'test'}\n" for n in range(60))
    )
    toml = tmp_path / "c.toml"
    toml.write_text(
        '[dataset]\nname="tones"\nkind="table"\ntable="t.csv"\n[shards]\nclips_per_shard=3\n'
        "[features]\nn_fft=256\nhop_length=128\nn_mels=16\nnum_frames=40\n"
    )
    command = [sys.executable, "-m", "shard_tools", "pack", "--config", str(toml)]
    command += ["--data", str(data), "--workers", "1"]
    killed = subprocess.Popen(
        [*command, "--out", str(out)], cwd=REPOSITORY, stderr=subprocess.DEVNULL
    )
    while len(list(out.glob("*.tar"))) < 3 and killed.poll() is None:
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not (out / "manifest.json").exists()
    assert len(verify(out)) == 1, "unfinished, and said so"
    # What a kill in the middle of writing leaves; whether this one did is a matter of luck.
    (out / ".train-000009.tar.abcd_123.tmp").write_bytes(b"half a shard")
    (out / ".pack" / ".train-000009.tar.json.abcd_123.tmp").write_bytes(b"{")
    (out / ".mine.tmp").write_bytes(b"somebody else's")
    for folder in (out, tmp_path / "undisturbed"):
        subprocess.run(
            [*command, "--out", str(folder)], cwd=REPOSITORY, check=True, capture_output=True
        )
    assert contents(out) == contents(tmp_path / "undisturbed") | {".mine.tmp": b"somebody else's"}
    assert not list((out / ".pack").glob(".*.tmp"))


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 0x10
    path.write_bytes(content)


def swap(out: Path) -> None:
    os.replace(out / "train-000000.tar", out / "x")
    os.replace(out / "train-000001.tar", out / "train-000000.tar")
    os.replace(out / "x", out / "train-000001.tar")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda out: flip(out / "train-000000.tar", 1200), "train-000000.tar: sha256"),
        (lambda out: flip(out / "train-000001.tar", 3), "train-000001.tar: "),
        (lambda out: (out / "test-000000.tar").unlink(), "test-000000.tar: missing"),
        (lambda out: os.truncate(out / "train-000000.tar", 8192), "bytes, the manifest says"),
        (swap, "train-000000.tar: sha256"),
        (lambda out: flip(out / "train.index.npy", 200), "train.index.npy: sha256"),
        (lambda out: (out / "manifest.json").unlink(), "no manifest.json"),
    ],
    ids=["payload", "header", "missing", "cut", "swapped", "index", "manifest"],
)
def test_verify_names_every_kind_of_damage(
    tmp_path: Path, damage: Callable[[Path], None], words: str
) -> None:
    run(tmp_path / "data", tmp_path / "out", make_audio(tmp_path / "data", 16), num_workers=1)
    assert verify(tmp_path / "out") == []
    damage(tmp_path / "out")
    faults = verify(tmp_path / "out")
    assert any(words in fault for fault in faults), faults


def test_verify_sees_false_labels_and_clips_in_two_splits(tmp_path: Path) -> None:
    from make_shards import make_samples, make_shards

    make_shards(tmp_path, {"train": [3], "valid": [3]})
    manifest = shards.read_manifest(tmp_path)
    samples = make_samples("train", 3)
    rows = tars.write_shard(tmp_path / "valid-000000.tar", samples)
    valid = shards.Split(
        3,
        [shards.entry_of(tmp_path / "valid-000000.tar", 3)],
        shards.write_index(tmp_path, "valid", rows),
    )
    changed = dataclasses.replace(manifest, splits={**manifest.splits, "valid": valid})
    shards.write_manifest(tmp_path, changed)
    faults = "\n".join(verify(tmp_path))
    assert "clip train0 is also in train" in faults
    assert "positives" in faults


def test_verify_sees_an_index_of_other_places_and_a_key_twice(tmp_path: Path) -> None:
    from make_shards import make_samples, make_shards

    make_shards(tmp_path, {"train": [3]})
    manifest = shards.read_manifest(tmp_path)

    def put(split: shards.Split) -> str:
        changed = dataclasses.replace(manifest, splits={"train": split})
        shards.write_manifest(tmp_path, changed)
        return "\n".join(verify(tmp_path))

    rows = shards.read_index(tmp_path, "train", manifest)
    turned = shards.write_index(tmp_path, "train", rows[::-1].copy())
    faults = put(dataclasses.replace(manifest.splits["train"], index=turned))
    assert "index does not describe the shards" in faults
    samples = make_samples("train", 3)
    samples[1] = dataclasses.replace(samples[1], key=samples[2].key)
    twice = [samples[1], samples[0], samples[2]]
    rows = tars.write_shard(tmp_path / "train-000000.tar", twice)
    entry = shards.entry_of(tmp_path / "train-000000.tar", 3)
    faults = put(shards.Split(3, [entry], shards.write_index(tmp_path, "train", rows)))
    assert "is there twice" in faults


@needs_mtt
def test_the_real_clip_goes_through_the_whole_chain(tmp_path: Path) -> None:
    data = unpack_mtt_tables(tmp_path / "mtt")
    settings = config.load_config(REPOSITORY / "configs" / "mtt.toml")
    catalogue = load_catalogue(settings.dataset, data)
    (real,) = [clip for clip in catalogue.clips if clip.path == CLIP]
    only = dataclasses.replace(catalogue, clips=[real], excluded=[])
    packed = pack(settings, only, data, tmp_path / "out", num_workers=1, progress=False)
    manifest = packed.manifest
    assert manifest and packed.num_packed == 1 and manifest.splits["test"].clips == 1
    assert verify(tmp_path / "out") == []
    with tarfile.open(tmp_path / "out" / "test-000000.tar") as tar:
        assert len(tar.getnames()) == 3
    _, (sample,) = tars.scan_shard(tmp_path / "out" / "test-000000.tar")
    assert sample.mel.shape == (128, 628) and sample.meta["id"] == "37386"
    tagged = {t for t, on in zip(manifest.tag_names, sample.tags, strict=True) if on}
    assert "techno" in tagged
    summary = inspect(tmp_path / "out")
    assert summary["splits"]["test"] == {
        "clips": 1,
        "shards": 1,
        "bytes": (tmp_path / "out" / "test-000000.tar").stat().st_size,
    }
    text = format_summary(summary)
    assert "techno" in text and "folders" in text


def test_a_change_of_tags_decodes_nothing_again(tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    catalogue = make_audio(data, 24)
    run(data, out, catalogue, num_workers=1)
    # Garbage that looks unchanged: whoever decodes it, fails.
    for path in data.glob("*.wav"):
        status = path.stat()
        path.write_bytes(b"x" * status.st_size)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    clips = [
        dataclasses.replace(clip, tags=frozenset(["high"]), album="new")
        if clip.id == "c0"
        else clip
        for clip in catalogue.clips
    ]
    changed = dataclasses.replace(catalogue, clips=clips)
    before = {sample.meta["id"]: sample for sample in samples_of(out)}
    manifest, packed = run(data, out, changed, num_workers=1)
    assert packed == 1 and not manifest.skipped and verify(out) == []
    after = {sample.meta["id"]: sample for sample in samples_of(out)}
    assert after["c0"].tags.tolist() == [0, 1] and after["c0"].meta["album"] == "new"
    assert all(np.array_equal(after[i].mel, before[i].mel) for i in before)
    # A clip that moved into another shard, or whose audio changed, is decoded.
    (data / "4.wav").write_bytes(b"other garbage")
    manifest, packed = run(data, out, changed, num_workers=1)
    assert packed == 1 and [row["id"] for row in manifest.skipped] == ["c4"]


def test_other_features_pack_everything_again(tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    catalogue = make_audio(data, 24)
    run(data, out, catalogue, num_workers=1)
    for changed in (
        dataclasses.replace(SETTINGS, features=dataclasses.replace(SETTINGS.features, n_mels=8)),
        dataclasses.replace(
            SETTINGS, shards=dataclasses.replace(SETTINGS.shards, long_clips="centre")
        ),
    ):
        packed = pack(changed, catalogue, data, out, num_workers=1, progress=False)
        assert packed.num_packed == 7 and verify(out) == []
        fresh = tmp_path / f"fresh {changed.shards.long_clips}"
        pack(changed, catalogue, data, fresh, num_workers=1, progress=False)
        assert contents(out) == contents(fresh)


def test_old_spectrograms_that_rotted_are_made_anew(tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    catalogue = make_audio(data, 8)
    run(data, out, catalogue, num_workers=1)
    content = bytearray((out / "train-000000.tar").read_bytes())
    content[900] ^= 1
    (out / "train-000000.tar").write_bytes(content)
    clips = [dataclasses.replace(clip, album="new") for clip in catalogue.clips]
    changed = dataclasses.replace(catalogue, clips=clips)
    run(data, out, changed, num_workers=1)
    run(data, tmp_path / "fresh", changed, num_workers=1)
    assert contents(out) == contents(tmp_path / "fresh")


def test_partial_labels_are_packed_with_their_masks(tmp_path: Path) -> None:
    catalogue = make_audio(tmp_path / "data", 16)
    clips = [
        dataclasses.replace(clip, known=clip.tags | ({"low"} if number % 3 else set()))
        for number, clip in enumerate(catalogue.clips)
    ]
    partial = dataclasses.replace(catalogue, clips=clips)
    manifest, _ = run(tmp_path / "data", tmp_path / "out", partial, num_workers=1)
    known = {clip.id: [int(tag in (clip.known or ())) for tag in TAGS] for clip in clips}
    for sample in samples_of(tmp_path / "out"):
        assert sample.mask is not None
        assert sample.mask.tolist() == known[str(sample.meta["id"])]
    for number, tag in enumerate(manifest.tags):
        for split in manifest.splits:
            counted = [known[clip.id][number] for clip in clips if clip.split == split]
            assert tag["known"][split] == sum(counted)
    assert verify(tmp_path / "out") == []
    assert shards.read_manifest(tmp_path / "out") == manifest
    assert run(tmp_path / "data", tmp_path / "out", partial)[1] == 0


def samples_of(out: Path) -> list[tars.Sample]:
    return [sample for path in sorted(out.glob("*.tar")) for sample in tars.scan_shard(path)[1]]


def test_a_clip_that_turns_out_bad_at_its_end_leaves_no_window_behind(tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    catalogue = make_audio(data, 24)
    rng = np.random.default_rng(0)
    sf.write(data / "0.wav", 0.1 * rng.standard_normal(400 * 4000), 4000)
    os.truncate(data / "0.wav", 150 * 4000 * 2)  # two blocks and more of 64 s, less than half
    manifest, _ = run(data, out, catalogue, num_workers=1)
    assert [row["id"] for row in manifest.skipped] == ["c0"]
    assert "150.0 of 400.0 s" in manifest.skipped[0]["reason"]
    assert verify(out) == [] and all(s.meta["id"] != "c0" for s in samples_of(out))
    without = dataclasses.replace(catalogue, clips=[c for c in catalogue.clips if c.id != "c0"])
    assert sum(split.clips for split in manifest.splits.values()) == len(without.clips)


def test_a_file_that_could_not_be_read_is_tried_again(tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    catalogue = make_audio(data, 24)
    run(data, out, catalogue, num_workers=1)
    place = out / ".pack" / "train-000000.tar.json"
    receipt = json.loads(place.read_text())
    for reason, expected in (("is silent", 0), ("cannot be read: input/output error", 1)):
        row = {"id": "c0", "path": "0.wav", "reason": reason}
        place.write_text(json.dumps({**receipt, "skipped": [row]}))
        (out / "manifest.json").unlink()
        assert run(data, out, catalogue, num_workers=1)[1] == expected
    assert json.loads(place.read_text()) == receipt
