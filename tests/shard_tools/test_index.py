from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from make_foreign import (
    TAGS,
    Sample,
    assert_loads,
    loaded,
    mel,
    npy,
    npz,
    one_hot,
    run,
    samples,
    tags_file,
    write_tar,
)
from make_shards import make_shards

from mstag import config
from mstag.data import shards
from shard_tools import index as indexing
from shard_tools.cli import entry
from shard_tools.verify import verify

# ---- What others write is read ---------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
def test_what_webdataset_writes_is_read(tmp_path: Path) -> None:
    import webdataset

    with webdataset.TarWriter(str(tmp_path / "my-train-0.tar")) as tar:
        for n in range(5):
            tar.write({"__key__": f"a/{n}", "mel.npy": mel(n), "cls": n % 3, "txt": "words"})
    with webdataset.TarWriter(str(tmp_path / "my-train-1.tar")) as tar:
        tar.write({"__key__": "b/0", "mel.npy": mel(9), "cls": 2})
    with webdataset.TarWriter(str(tmp_path / "my-val-0.tar")) as tar:
        tar.write({"__key__": "a/7", "mel.npy": mel(7), "cls": 1})
    report = run(tmp_path)
    assert report.faults == [] and report.sizes == {"train": 6, "valid": 1}
    numbers = [0, 1, 2, 3, 4]
    assert_loads(
        tmp_path,
        "train",
        [mel(n) for n in [*numbers, 9]],
        one_hot([*numbers, 2]),
        [*(f"my-train-0/a/{n}" for n in numbers), "my-train-1/b/0"],
    )
    assert_loads(tmp_path, "valid", [mel(7)], one_hot([7]), ["my-val-0/a/7"])
    assert verify(tmp_path) == []


@pytest.mark.filterwarnings("ignore")
def test_webdataset_npz_and_json_are_read(tmp_path: Path) -> None:
    import webdataset

    names = [["rock"], [], ["very slow", "rock"]]
    with webdataset.TarWriter(str(tmp_path / "x.tar")) as tar:
        for n in range(3):
            tar.write(
                {
                    "__key__": str(n),
                    "npz": {"spec": mel(n)[None], "times": np.arange(6.0)},
                    "json": {"id": "clip" if n else "first", "tags": names[n], "bpm": 120},
                }
            )
    report = run(tmp_path)
    assert report.faults == [] and "everything is train" in report.notes[0]
    assert_loads(
        tmp_path,
        "train",
        [mel(n) for n in range(3)],
        [[1, 0, 0], [0, 0, 0], [1, 0, 1]],
        ["first", "clip", "clip"],
    )
    manifest = shards.read_manifest(tmp_path)
    assert manifest.foreign == shards.Foreign("npz", "spec")
    assert manifest.foreign_labels == "json"
    assert manifest.split_rule == "all in train" and manifest.dataset == tmp_path.name
    assert [tag["positives"] for tag in manifest.tags] == [{"train": 2}, {"train": 0}, {"train": 1}]
    assert verify(tmp_path) == []


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_what_tarfile_writes_is_read(tmp_path: Path, form: int) -> None:
    content = samples()
    folder = "" if form == tarfile.USTAR_FORMAT else "d" * 120 + "/"
    for sample in content:
        sample["__key__"] = f"../{folder}{sample['__key__']}"
    write_tar(tmp_path / "test.tar", content, form)
    assert run(tmp_path).faults == []
    ids = [f"test/{sample['__key__']}" for sample in content]
    assert_loads(tmp_path, "test", [mel(n) for n in range(5)], one_hot(range(5)), ids)


@pytest.mark.skipif(not shutil.which("tar"), reason="no tar command")
def test_what_the_tar_command_writes_is_read(tmp_path: Path) -> None:
    for sample in samples():
        for extension in ("npy", "cls"):
            path = tmp_path / "in" / f"{sample['__key__']}.{extension}"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(sample[extension])
    command = [
        "tar",
        "--sort=name",
        "-cf",
        str(tmp_path / "x.tar"),
        "-C",
        str(tmp_path / "in"),
        ".",
    ]
    if subprocess.run(command, stderr=subprocess.DEVNULL).returncode:
        pytest.skip("this tar command cannot sort")
    assert run(tmp_path).faults == []
    ids = [f"x/./s{n:03d}" for n in range(5)]
    assert_loads(tmp_path, "train", [mel(n) for n in range(5)], one_hot(range(5)), ids)


LABEL_VECTORS = st.lists(st.integers(0, 1), min_size=3, max_size=3)


@st.composite
def any_samples(draw: st.DrawFn) -> tuple[list[Sample], list[np.ndarray], list[list[int]]]:
    """Samples of one layout drawn from all that are known, with what is in them."""
    dtype = draw(st.sampled_from([np.float16, np.float32, np.float64]))
    shape = draw(st.tuples(st.integers(1, 5), st.integers(2, 6)))
    mel_in, labels_in = draw(
        st.sampled_from(
            [
                *((m, x) for m in ("npy", "mel.npy", "npz") for x in ("cls", "names", "json")),
                *((m, x) for m in ("npy", "npz") for x in ("object", "tags.npy", "tags.npz")),
                ("npz", "same npz"),
            ]
        )
    )
    label_dtype = draw(st.sampled_from(["?", "u1", "<i4", "<i8", "<f2", "<f4", "<f8"]))
    leading = draw(st.booleans())
    content, mels, labels = [], [], []
    for number in range(draw(st.integers(1, 4))):
        values = draw(npst.arrays(dtype, shape, elements=st.floats(-60000, 60000, width=16)))
        vector = draw(LABEL_VECTORS)
        if labels_in == "cls":
            vector = [int(i == number % 3) for i in range(3)]
        stored, array = values[None] if leading else values, np.array(vector, label_dtype)
        names = [tag for tag, one in zip(TAGS, vector, strict=True) if one]
        sample: Sample = {"__key__": str(number), "jpg": b"no picture"}
        arrays = {"spec": stored, **({"tags": array} if labels_in == "same npz" else {})}
        sample[mel_in] = npz(**arrays) if mel_in == "npz" else npy(stored)
        sample |= {
            "cls": {"cls": b" %d\n" % (number % 3)},
            "names": {"json": json.dumps(names).encode()},
            "json": {"json": json.dumps(vector).encode()},
            "object": {"meta.json": json.dumps({"labels": names}).encode()},
            "tags.npy": {"tags.npy": npy(array)},
            "tags.npz": {"tags.npz": npz(tags=array)},
            "same npz": {},
        }[labels_in]
        content.append(sample)
        mels.append(values)
        labels.append(vector)
    return content, mels, labels


@settings(max_examples=30)
@given(any_samples())
def test_every_known_layout_gives_the_values_that_went_in(
    drawn: tuple[list[Sample], list[np.ndarray], list[list[int]]],
) -> None:
    content, mels, labels = drawn
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_tar(folder / "x.tar", content)
        report = run(folder)
        assert report.faults == []
        assert_loads(folder, "train", mels, labels, [f"x/{n}" for n in range(len(mels))])
        assert verify(folder) == []


def test_what_else_is_in_a_tar_is_passed_over(tmp_path: Path) -> None:
    content = [{"__key__": "README", "md": b"read me"}, *samples(3)]
    content[1]["wav"] = bytes(5000)
    write_tar(tmp_path / "x.tar", content)
    report = run(tmp_path)
    assert report.faults == [] and report.sizes == {"train": 3}
    assert any("1 groups of members that are no samples: README" in note for note in report.notes)


def test_members_that_nobody_needs_take_no_memory(tmp_path: Path) -> None:
    content = samples(3)
    content[1]["wav"] = bytes(40_000_000)
    write_tar(tmp_path / "x.tar", content)
    del content
    tracemalloc.start()
    try:
        assert run(tmp_path).faults == [] and verify(tmp_path) == []
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


def test_extensions_are_read_in_any_case(tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", [{"__key__": "a", "MEL.NPY": npy(mel()), "CLS": b"1"}])
    assert run(tmp_path).faults == []
    assert_loads(tmp_path, "train", [mel()], one_hot([1]), ["x/a"])


def test_clips_of_one_id_are_allowed_and_ids_in_two_splits_are_noted(tmp_path: Path) -> None:
    content = [{**s, "json": b'{"id": "same"}'} for s in samples(2)]
    write_tar(tmp_path / "train.tar", content)
    write_tar(tmp_path / "test.tar", content)
    report = run(tmp_path)
    assert report.faults == [] and loaded(tmp_path)[2] == ["same", "same"]
    assert any("1 ids of test stand in train too" in note for note in report.notes)


def test_spectrograms_that_may_not_be_meant_so_are_noted(tmp_path: Path) -> None:
    power = np.full((9, 6), 1e-9, np.float32)
    write_tar(tmp_path / "a.tar", [{"__key__": "0", "npy": npy(power), "cls": b"0"}])
    report = run(tmp_path)
    assert report.faults == []
    assert any("100.0% of all values are not 0 but become 0" in note for note in report.notes)
    assert any("9 mel bands and 6 frames: are the spectro" in note for note in report.notes)
    assert "tags that no sample of train has: jazz, very slow" in report.notes
    write_tar(tmp_path / "a.tar", samples())
    assert len(run(tmp_path).notes) == 1, "of the splits"


# ---- What stands in the folder already -------------------------------------------------------


def test_what_is_not_ours_is_not_overwritten(tmp_path: Path) -> None:
    make_shards(tmp_path / "own", {"train": [3]})
    with pytest.raises(ValueError, match=r"written by `shard-tools pack`.*not overwritten"):
        run(tmp_path / "own")
    (tmp_path / "half" / ".pack").mkdir(parents=True)
    write_tar(tmp_path / "half" / "a.tar", samples())
    with pytest.raises(ValueError, match="a folder of `shard-tools pack`"):
        run(tmp_path / "half")
    folder = tmp_path / "foreign"
    write_tar(folder / "a.tar", samples())
    for name in ("manifest.json", "train.labels.npy", "train.ids.json", "train.index.npy"):
        (folder / name).write_text("[]")
        with pytest.raises(ValueError, match="move it elsewhere"):
            run(folder)
        assert (folder / name).read_text() == "[]"
        (folder / name).unlink()
    assert run(folder).faults == []


def test_indexing_again_takes_the_place_of_the_earlier_index(tmp_path: Path) -> None:
    for name in ("train.tar", "valid.tar"):
        write_tar(tmp_path / name, samples())
    run(tmp_path)
    first = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    run(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == first
    write_tar(tmp_path / "valid.tar", samples(3, 7))
    assert verify(tmp_path) != []
    run(tmp_path, split_rules=("test=valid.tar",))
    assert verify(tmp_path) == [] and loaded(tmp_path, "test")[2][0] == "valid/s007"
    assert not list(tmp_path.glob("train.*.*")) and not list(tmp_path.glob("valid.*.*"))
    write_tar(tmp_path / "train.tar", [{"__key__": "0", "cls": b"1"}])
    before = (tmp_path / "manifest.json").read_bytes()
    assert run(tmp_path).faults and (tmp_path / "manifest.json").read_bytes() == before


# ---- Features --------------------------------------------------------------------------------


def test_the_recipe_is_unknown_unless_a_config_names_it(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", samples())
    run(tmp_path)
    features = shards.read_manifest(tmp_path).features
    assert features == config.FeatureConfig(n_mels=4, num_frames=6, recipe="unknown")
    known = config.FeatureConfig(n_mels=4, num_frames=6, sample_rate_hz=16000)
    settings = config.Config(features=known, dataset=config.DatasetConfig(name="mine"))
    run(tmp_path, settings=settings)
    manifest = shards.read_manifest(tmp_path)
    assert manifest.features == known and manifest.dataset == "mine"
    run(tmp_path, settings=settings, name="theirs")
    assert shards.read_manifest(tmp_path).dataset == "theirs"
    write_tar(tmp_path / "b.tar", [{"__key__": "0", "cls": b"no"}])  # never reached
    for how in ({}, {"mel": "npy"}):
        with pytest.raises(ValueError, match=r"= \(4, 6\), --config says \(128, 628\)"):
            run(tmp_path, settings=config.Config(), **how)


def test_the_printed_config_fits_the_manifest(tmp_path: Path) -> None:
    for name in ("train.tar", "valid.tar"):
        write_tar(tmp_path / name, samples())
    manifest = run(tmp_path, name='a "b"').manifest
    assert manifest
    (tmp_path / "c.toml").write_text(indexing.to_toml(manifest))
    settings = config.load_config(tmp_path / "c.toml")
    from mstag.training import runs

    small = config.load_config(tmp_path / "c.toml", ("train.batch_size=2",))
    runs.check_shards(tmp_path, shards.read_manifest(tmp_path), small)
    assert settings.dataset.kind == "shards" and settings.features == manifest.features
    assert "valid" in indexing.format_report(tmp_path, manifest)


def test_an_unknown_recipe_turns_no_audio_into_spectrograms(tmp_path: Path) -> None:
    from mstag.data.clips import Catalogue, Clip, TagCount
    from mstag.data.features import LogMel
    from shard_tools.pack import pack

    unknown = config.FeatureConfig(recipe="unknown")
    message = "made elsewhere, so audio cannot be turned into such ones; name the recipe"
    with pytest.raises(ValueError, match=message):
        LogMel(unknown)
    clips = [Clip("a", "a.wav", frozenset(["x"]), artist="", split="train")]
    catalogue = Catalogue("x", [TagCount("x", 1)], clips, "by hand", [])
    with pytest.raises(ValueError, match=message):
        pack(config.Config(features=unknown), catalogue, tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ---- Verify ----------------------------------------------------------------------------------


def vouch(folder: Path, split: str, what: str, content: bytes) -> None:
    """Changes a small file and lets the manifest vouch for it."""
    path = folder / f"{split}.{what}"
    path.write_bytes(content)
    manifest = json.loads((folder / "manifest.json").read_text())
    entry = shards.entry_of(path)
    manifest["splits"][split][what.split(".")[0]] |= {"bytes": entry.bytes, "sha256": entry.sha256}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_verify_names_what_differs(tmp_path: Path) -> None:
    for name in ("train-0.tar", "train-1.tar"):
        write_tar(tmp_path / name, samples())
    run(tmp_path)
    whole = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def restore() -> None:
        for name, content in whole.items():
            (tmp_path / name).write_bytes(content)

    def faults() -> str:
        found = "\n".join(verify(tmp_path))
        restore()
        return found

    assert faults() == ""
    tar = whole["train-1.tar"]
    (tmp_path / "train-1.tar").write_bytes(tar[:600] + b"\xff" + tar[601:])
    assert "train-1.tar: sha256" in faults()
    (tmp_path / "train-1.tar").write_bytes(tar[:1024] + b"\xff" * 512 + tar[1536:])
    found = faults()
    assert "train-1.tar: damaged at byte 1024" in found
    assert "train-1.tar: sha256" in found and "bytes, the manifest says" not in found
    (tmp_path / "train-1.tar").write_bytes(tar[:2048])
    assert "train-1.tar: 2048 bytes, the manifest says" in faults()
    (tmp_path / "train-1.tar").unlink()
    assert "train-1.tar: missing" in faults()
    (tmp_path / "train.labels.npy").write_bytes(whole["train.labels.npy"][:-1] + b"\1")
    assert "train.labels.npy: sha256" in faults()
    vouch(tmp_path, "train", "labels.npy", whole["train.labels.npy"][:-1] + b"\1")
    assert "train-1.tar: the labels of 1 samples are not what the tar says" in faults()
    vouch(tmp_path, "train", "labels.npy", npy(np.zeros((10, 2), np.uint8)))
    assert "not the labels of 10 samples" in faults()
    vouch(tmp_path, "train", "ids.json", whole["train.ids.json"].replace(b"-1/s001", b"-1/s007"))
    assert "train-1.tar: the ids of 1 samples are not" in faults()
    vouch(tmp_path, "train", "ids.json", b"[]")
    assert "not 10 ids" in faults()
    index_bytes = whole["train.index.npy"]
    vouch(tmp_path, "train", "index.npy", index_bytes[:-1] + bytes([index_bytes[-1] ^ 1]))
    assert "train-1.tar: the index of 1 samples are not" in faults()
    manifest = json.loads(whole["manifest.json"])
    manifest["tags"][0]["positives"]["train"] += 1
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    assert "train: tag rock has 4 positives, not 5" in faults()
    manifest = json.loads(whole["manifest.json"])
    manifest["splits"]["train"]["shards"][0]["clips"] -= 1
    manifest["splits"]["train"]["shards"][1]["clips"] += 1
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    assert "train-0.tar: 5 samples, the manifest says 4" in faults()
    del manifest["foreign_labels"]
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    assert "does not say where the labels came from" in faults()


# ---- The command -----------------------------------------------------------------------------


def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str | Path
) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["shard-tools", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        entry()
    assert isinstance(end.value.code, int)
    return (end.value.code, *capsys.readouterr())


def test_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run_command(*arguments: str | Path) -> tuple[int, str, str]:
        return command(monkeypatch, capsys, *arguments)

    folder, tags = tmp_path / "tars", tags_file(tmp_path)
    write_tar(folder / "0.tar", samples())
    write_tar(folder / "1.tar", samples(3, 7))
    code, out, err = run_command("index", folder, "--tags", tags, "--name", "mine")
    assert code == 0 and "note: no file name says a split" in err
    assert "8 samples in 2 tars" in out and 'name = "mine"\nkind = "shards"' in out
    assert 'n_mels = 4\nrecipe = "unknown"\nnum_frames = 6\n' in out
    splits = ["--split", "train=0.tar", "--split", "valid=1.tar"]
    code, out, _ = run_command("index", folder, "--tags", tags, *splits, "--json")
    assert code == 0 and json.loads(out)["splits"] == {"train": 5, "valid": 3}
    assert run_command("verify", folder)[0] == 0
    code, out, _ = run_command("inspect", folder)
    assert "indexed, not packed by mstag: spectrograms from member npy, labels from cls" in out
    assert "recipe unknown, n_mels 4, num_frames 6" in out and "11025" not in out
    assert json.loads(run_command("inspect", folder, "--json")[1])["foreign"]["mel"] == "npy"

    write_tar(folder / "1.tar", [{**s, "cls": b"no"} for s in samples(25)])
    code, out, err = run_command("index", folder, "--tags", tags, *splits)
    assert code == 1 and out == f"{folder}: 25 faults, nothing written\n"
    lines = [line for line in err.splitlines() if not line.startswith("note:")]
    assert len(lines) == 21 and lines[-1] == "and 5 more (--json lists all)"
    code, out, _ = run_command("index", folder, "--tags", tags, *splits, "--json")
    found = json.loads(out)
    assert code == 1 and len(found["faults"]) == 25 and found["tags"] == 3
    assert found["splits"] == {"train": 5, "valid": 0} and found["folder"] == str(folder)
    assert run_command("verify", folder)[0] == 1

    code, _, err = run_command("index", tmp_path / "none", "--tags", tags)
    assert code == 1 and err.startswith("shard-tools: error: ") and err.count("\n") == 1
