from __future__ import annotations

import io
import json
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from make_foreign import (
    Sample,
    assert_loads,
    loaded,
    mel,
    npy,
    npz,
    only_fault,
    run,
    samples,
    write_tar,
)

from shard_tools.inspect import format_summary, inspect
from shard_tools.verify import verify

# ---- Pickles ---------------------------------------------------------------------------------


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("extension", ["pyd", "pkl", "pickle", "pth", "mel.pt"])
def test_pickles_are_never_opened(tmp_path: Path, extension: str) -> None:
    fuse = tmp_path / "exploded"
    bomb = pickle.dumps(Bomb(fuse))
    pickle.loads(bomb)
    assert fuse.exists(), "the bomb works"
    fuse.unlink()
    folder = tmp_path / "tars"
    write_tar(folder / "a.tar", [{**s, extension: bomb} for s in samples(2)])
    assert run(folder).faults == [], "beside sound members it is passed over"
    loaded(folder)
    assert verify(folder) == []
    only = tmp_path / "only"
    write_tar(only / "a.tar", [{"__key__": "0", extension: bomb, "cls": b"1"}])
    assert f"{extension} is never opened, because a pickle can run code" in only_fault(only)
    with pytest.raises(ValueError, match="is a pickle, which can run code"):
        run(folder, mel=extension)
    with pytest.raises(ValueError, match="is a pickle, which can run code"):
        run(folder, labels=extension)
    assert not fuse.exists()


@pytest.mark.parametrize("name", ["npy", "npz", "cls", "json"])
def test_pickles_under_another_name_are_not_loaded_either(tmp_path: Path, name: str) -> None:
    fuse = tmp_path / "exploded"
    objects = np.array([[Bomb(fuse)]], object)
    payloads = {"npy": npy(objects), "npz": npz(mel=objects)}
    for number, payload in enumerate((pickle.dumps(Bomb(fuse)), payloads.get(name, b"\x80\x04."))):
        folder = tmp_path / str(number)
        write_tar(folder / "a.tar", [{"__key__": "0", name: payload}])
        fault = only_fault(folder)
        assert "no member can be read" in fault
        if number and name in payloads:
            assert "a pickle can run code" in fault
    assert not fuse.exists()


# ---- Faults of samples -----------------------------------------------------------------------

BIG = mel()
BIG[2, 3] = 70000
NOT_FINITE = mel()
NOT_FINITE[0, 1] = np.nan


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"npy": npy(BIG)}, r"npy: 70000.0 at band 2, frame 3 \(1 such values\): .*65504"),
        ({"npy": npy(NOT_FINITE)}, "npy: nan at band 0, frame 1"),
        ({"npy": npy(np.full((4, 6), -np.inf))}, r"-inf at band 0, frame 0 \(24 such values\)"),
        ({"npy": npy(mel()[:, :5])}, r"npy: shape \(4, 5\), the others have \(4, 6\)"),
        ({"npy": npy(mel(0, ">f4"))}, "npy: big-endian"),
        ({"npy": npy(np.asfortranarray(mel()))}, "npy: in Fortran order"),
        ({"npy": npy(np.array([[None]]))}, "npy: an array of Python objects"),
        ({"npy": npy(mel().astype(int))}, "npy: int64 of shape .* is no spectrogram"),
        ({"npy": npy(mel())[:-1]}, "npy: cut or damaged"),
        ({"npy": b""}, r"npy: not an \.npy file"),
        ({"npy": None}, r"no spectrogram: it has no member npy \(but cls\)"),
        ({"cls": None}, r"no labels: it has no member cls \(but npy\)"),
        ({"cls": b"3"}, "cls: class 3, but there are 3 tags, counted from 0"),
        ({"cls": b"-1"}, "cls: b'-1' is no whole number"),
        ({"cls": b"1.0"}, "no whole number"),
        ({"cls": b""}, "cls: b'' is no whole number"),
        ({"cls": b"9" * 5000}, "no whole number"),
        ({"json": b"{"}, "json: not JSON"),
        ({"json": b'{"id": "\\ud800"}'}, r"json: its id '\\ud800' is no text"),
        ({"json": b"[" * 100_000}, "json: not JSON"),
    ],
)
def test_a_faulty_sample_is_named(tmp_path: Path, change: Sample, message: str) -> None:
    content = samples()
    content[2] = {k: v for k, v in {**content[2], **change}.items() if v is not None}
    write_tar(tmp_path / "a.tar", content)
    fault = only_fault(tmp_path)
    assert fault.startswith("a.tar: sample s002: ")
    with pytest.raises(ValueError, match=message):
        raise ValueError(fault)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["rock", "polka"], "json: tag 'polka' is not in the list of tags"),
        ({"tags": ["polka"]}, "json: tag 'polka'"),
        ({"id": "x"}, 'json: an object without "tags" or "labels"'),
        ({"tags": "rock"}, "json: str instead of a list of tags"),
        ([0, 1], r"json: float64 of shape \(2,\) is no vector of 3 labels"),
        ([0, 2, 1], r"json: label 1 is 2\.0, neither 0 nor 1"),
        ([0, 10**400, 1], "json: label 1 is inf, neither 0 nor 1"),
        (["rock", 1], r"json: '1\.0' in the list of tags is no name"),
        ([["rock"]], ".* in the list of tags is no name"),
        (None, "json: NoneType instead of a list"),
        (b"{", "json: not JSON"),
        ({"tags": ["rock"], "id": "\udfff"}, r"json: its id '\\udfff' is no text"),
    ],
)
def test_faulty_labels_in_json_are_named(tmp_path: Path, labels: Any, message: str) -> None:
    content = [{"__key__": str(n), "npy": npy(mel(n)), "json": b'["rock"]'} for n in range(3)]
    content[1]["json"] = labels if isinstance(labels, bytes) else json.dumps(labels).encode()
    write_tar(tmp_path / "a.tar", content)
    with pytest.raises(ValueError, match=f"a.tar: sample 1: {message}"):
        raise ValueError(only_fault(tmp_path))
    content[0]["json"] = content[1]["json"]
    write_tar(tmp_path / "a.tar", content)
    faults = run(tmp_path).faults  # in the first sample too: still the labels, by their kind
    assert [fault.split(":")[1] for fault in faults] == [" sample 0", " sample 1"]


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array([0, 1]), r"int64 of shape \(2,\) is no vector of 3 labels"),
        (np.array([[0, 1, 0]]), r"of shape \(1, 3\) is no vector"),
        (np.array([0, 0.5, 1]), r"label 1 is 0\.5, neither 0 nor 1"),
        (np.array([0, np.nan, 1]), "label 1 is nan"),
        (np.array([0, 1, 0], ">i4"), "big-endian"),
    ],
)
def test_faulty_label_vectors_are_named(tmp_path: Path, array: np.ndarray, message: str) -> None:
    good = npy(np.array([0, 1, 0]))
    content = [{"__key__": str(n), "npy": npy(mel(n)), "y.npy": good} for n in range(3)]
    content[1]["y.npy"] = npy(array)
    write_tar(tmp_path / "a.tar", content)
    with pytest.raises(ValueError, match=rf"a.tar: sample 1: y.npy: .*{message}"):
        raise ValueError(only_fault(tmp_path))


def test_all_faults_of_all_samples_are_collected(tmp_path: Path) -> None:
    content = samples(60)
    for sample in content[1:]:
        sample |= {"npy": npy(mel())[:-1], "cls": b"x"}
    write_tar(tmp_path / "a.tar", content[:30])
    write_tar(tmp_path / "b.tar", content[30:])
    report = run(tmp_path)
    assert len(report.faults) == 2 * 59 and report.sizes == {"train": 1}
    shown = report.shown_faults()
    assert len(shown) == 21 and shown[-1] == "and 98 more (--json lists all)"


def test_keys_that_come_back_are_refused(tmp_path: Path) -> None:
    first, second = samples(2)
    write_tar(tmp_path / "a.tar", [first, second, first])
    assert "sample s000: it was there before" in only_fault(tmp_path)
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, payload in (("k.npy", first["npy"]), ("k.cls", b"1"), ("k.npy", second["npy"])):
            info = tarfile.TarInfo(name)
            info.size = len(payload)
            tar.addfile(info, io.BytesIO(payload))
    assert "sample k: member npy is there twice" in only_fault(tmp_path)


def test_members_too_large_to_be_one_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = samples(2)
    content[1]["npy"] += bytes(1000)
    write_tar(tmp_path / "a.tar", content)
    monkeypatch.setattr("shard_tools.foreign_samples.MAX_MEMBER_BYTES", 900)
    assert "sample s001: npy: 1224 bytes, at most 900 are read" in only_fault(tmp_path)
    names = [b'["rock"]', b'["' + b"x" * 1000 + b'"]']
    content = [{"__key__": str(n), "npy": npy(mel(n)), "json": names[n]} for n in range(2)]
    write_tar(tmp_path / "a.tar", content)
    assert "sample 1: json: 1004 bytes, at most 900 are read" in only_fault(tmp_path)


@pytest.mark.parametrize("cut", [700, 1024, 1536])
def test_damaged_tars_are_named_and_the_others_still_scanned(tmp_path: Path, cut: int) -> None:
    for name in "abc":
        write_tar(tmp_path / f"{name}.tar", samples())
    for name in "ac":
        whole = (tmp_path / f"{name}.tar").read_bytes()
        (tmp_path / f"{name}.tar").write_bytes(whole[:cut])
    report = run(tmp_path)
    assert [fault[:6] for fault in report.faults] == ["a.tar:", "c.tar:"]
    assert all(f"at byte {cut}" in fault for fault in report.faults), report.faults


def test_a_tar_without_samples_is_refused(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", samples(2))
    write_tar(tmp_path / "b.tar", [{"__key__": "README", "md": b"x"}])
    assert only_fault(tmp_path) == "b.tar: holds no samples; move it elsewhere"
    (tmp_path / "a.tar").unlink()
    assert "no tar holds a sample" in only_fault(tmp_path)


# ---- Which member is which -------------------------------------------------------------------


def test_where_several_could_be_it_the_user_is_asked(tmp_path: Path) -> None:
    sample = {
        "__key__": "0",
        "npz": npz(low=mel(1), high=mel(2), y=np.array([0, 1, 1]), known=np.array([1, 1, 1])),
        "cls": b"2",
    }
    write_tar(tmp_path / "a.tar", [sample])
    assert "could be the spectrogram: npz:low, npz:high; say which with --mel" in only_fault(
        tmp_path
    )
    fault = only_fault(tmp_path, mel="npz:high")
    assert "could be the labels: npz:y, npz:known, cls; say which with --labels" in fault
    assert run(tmp_path, mel="npz:high", labels=".NPZ:y").faults == []
    assert_loads(tmp_path, "train", [mel(2)], [[0, 1, 1]], ["a/0"])
    assert verify(tmp_path) == []
    assert run(tmp_path, mel="npz:low", labels="cls").faults == []
    assert_loads(tmp_path, "train", [mel(1)], [[0, 0, 1]], ["a/0"])
    assert "spectrograms from member npz:low, labels from cls" in format_summary(inspect(tmp_path))


def test_an_npz_of_one_array_needs_no_key(tmp_path: Path) -> None:
    sample = {"__key__": "0", "a.npz": npz(x=mel(1)), "b.npz": npz(x=mel(2)), "cls": b"2"}
    write_tar(tmp_path / "a.tar", [sample])
    assert run(tmp_path, mel="b.npz").faults == []
    assert_loads(tmp_path, "train", [mel(2)], [[0, 0, 1]], ["a/0"])


def test_where_nothing_can_be_it_every_member_says_why(tmp_path: Path) -> None:
    sample = {"__key__": "0", "npy": npy(mel(0, ">f4")), "x.npy": npy(np.zeros(7)), "wav": b""}
    write_tar(tmp_path / "a.tar", [sample])
    fault = only_fault(tmp_path)
    assert "no member can be read as the spectrogram: npy: big-endian" in fault
    assert "x.npy: float64 of shape (7,) is no spectrogram" in fault
    assert "not looked at: wav" in fault and "name it with --mel" in fault
    write_tar(tmp_path / "b.tar", [{"__key__": "0", "npy": npy(mel()), "x.npy": npy(np.zeros(7))}])
    (tmp_path / "a.tar").rename(tmp_path / "c.tar")
    fault = only_fault(tmp_path)
    assert "no member can be read as the labels: x.npy: float64" in fault
    (tmp_path / "b.tar").unlink()
    assert "sample 0: npy: big-endian" in run(tmp_path, mel="npy", labels="x.npy").faults[0]


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"mel": "jpg"}, "--mel jpg: read are members that end in npy, npz"),
        ({"mel": "cls"}, "--mel cls: read are"),
        ({"mel": "npy:x"}, "only an .npz has arrays with names"),
        ({"labels": "txt"}, "--labels txt: read are members that end in cls, json, npy, npz"),
        ({"name": "a/b"}, "must be a plain name"),
    ],
)
def test_options_that_cannot_be_are_refused(
    tmp_path: Path, how: dict[str, str], message: str
) -> None:
    write_tar(tmp_path / "a.tar", samples())
    with pytest.raises(ValueError, match=message):
        run(tmp_path, **how)
