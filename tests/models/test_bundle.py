"""Bundles: whole at every moment, refused when they are not what mstag wrote."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from mstag.config import FeatureConfig, ModelConfig
from mstag.models import build_model, frames_at_once
from mstag.models.bundle import find_bundle, load_bundle, save_bundle

FEATURES = FeatureConfig(n_mels=16, num_frames=64)
MODEL = ModelConfig(hidden_units=4)
SETTINGS = dataclasses.asdict(MODEL)


def save(folder: Path, seed: int = 0, **changes: Any) -> str:
    torch.manual_seed(seed)
    content = {
        "model": build_model(MODEL, 16, 64, 3).to(memory_format=torch.channels_last),
        "model_config": MODEL,
        "features": FEATURES,
        "tag_names": ["guitar", "slow", "techno"],
        "thresholds": [0.5, 0.25, 0.125],
        "dataset": {"name": "demo", "digest": "d", "split_rule": "artist", "leaks": {"test": 0.0}},
        "scores": {"split": "valid", "roc_auc": 0.91, "roc_auc_ci": [0.9, 0.92], "pr_auc": None},
    }
    return save_bundle(folder, **{**content, **changes})


def save_of(folder: Path, settings: ModelConfig, features: FeatureConfig) -> str:
    torch.manual_seed(0)
    model = build_model(settings, features.n_mels, features.num_frames, 3)
    return save(folder, model=model, model_config=settings, features=features)


def card(folder: Path) -> str:
    return (folder / "README.md").read_text()


def test_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    digest = save(tmp_path / "runs" / "best")
    state = torch.random.get_rng_state()
    bundle = load_bundle(tmp_path / "runs" / "best")
    assert torch.equal(state, torch.random.get_rng_state())
    assert not bundle.model.training
    assert (bundle.model_config, bundle.features) == (MODEL, FEATURES)
    assert bundle.tag_names == ["guitar", "slow", "techno"]
    assert bundle.thresholds == [0.5, 0.25, 0.125]
    assert bundle.dataset["split_rule"] == "artist"
    assert bundle.scores["roc_auc_ci"] == [0.9, 0.92]
    assert bundle.digest == digest
    torch.manual_seed(0)
    weights = build_model(MODEL, 16, 64, 3).state_dict()
    loaded = bundle.model.state_dict()
    assert all(torch.equal(weights[key], loaded[key]) for key in weights)


def test_chunks_belong_to_the_model_and_stand_on_its_card(tmp_path: Path) -> None:
    chunked, features = ModelConfig(hidden_units=4, chunk_frames=64), FeatureConfig(n_mels=16)
    assert len(save_of(tmp_path, chunked, features)) == 64
    bundle = load_bundle(tmp_path)
    assert (bundle.model_config, frames_at_once(bundle.model)) == (chunked, 64)
    # 63 hops of 512 samples at 11,025 Hz; a window has 627.
    assert "windows of 29.1 s at 11025 Hz, heard in chunks of 2.9 s." in card(tmp_path)
    save(tmp_path)
    assert "windows of 2.9 s at 11025 Hz.\n" in card(tmp_path)


def test_a_bundle_from_before_there_were_chunks_takes_whole_windows(tmp_path: Path) -> None:
    save(tmp_path)
    model = json.loads((tmp_path / "tagger.json").read_text())["model"]
    assert model.pop("chunk_frames") == 0
    edit(tmp_path, model=model, format_version=1)
    bundle = load_bundle(tmp_path)
    assert bundle.model_config == MODEL
    assert frames_at_once(bundle.model) == 64


def test_a_new_best_replaces_the_old_one(tmp_path: Path) -> None:
    first, second = save(tmp_path, seed=1), save(tmp_path, seed=2)
    assert load_bundle(tmp_path).digest == second != first
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "README.md",
        "tagger.json",
        f"weights-{second[:16]}.safetensors",
    ]
    assert save(tmp_path, seed=2) == second


def test_the_card_stands_in_the_folder(tmp_path: Path) -> None:
    save(tmp_path)
    for words in ("| roc\\_auc | 0.9100 |", "| split\\_rule | artist |", "| guitar | 0.5000 |"):
        assert words in card(tmp_path)


def test_a_run_folder_stands_for_its_best(tmp_path: Path) -> None:
    save(tmp_path / "best")
    assert find_bundle(tmp_path) == tmp_path / "best"
    assert find_bundle(tmp_path / "best") == tmp_path / "best"
    assert load_bundle(tmp_path).tag_names[0] == "guitar"


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "tagger.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def weights(folder: Path) -> Path:
    return next(folder.glob("*.safetensors"))


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


FAULTS = {
    "no tagger.json": lambda b: (b / "tagger.json").unlink(),
    "is missing; copy": lambda b: weights(b).unlink(),
    "is not the file that was saved": lambda b: flip_a_bit(weights(b)),
    "is not the file that was": lambda b: weights(b).write_bytes(weights(b).read_bytes()[:-1]),
    "newer than this mstag": lambda b: edit(b, format_version=3),
    "not what mstag writes": lambda b: (b / "tagger.json").write_text("{}"),
    "not what mstag": lambda b: (b / "tagger.json").write_bytes(b"\xff\x00"),
    r"what mstag writes \('weights'\)": lambda b: edit(
        b, weights={"file": "../weights-0123456789abcdef.safetensors", "sha256": ""}
    ),
    "changed by hand": lambda b: edit(b, tags=["slow", "guitar", "techno"]),
    "lacks or garbles": lambda b: edit(b, thresholds=None),
    "2 thresholds for 3 tags": lambda b: edit(b, thresholds=[0.5, 0.5]),
    "size mismatch|damaged": lambda b: edit(b, model={**SETTINGS, "hidden_units": 5}),
    "no such architecture": lambda b: edit(b, model={**SETTINGS, "name": "mscn"}),
}


@pytest.mark.parametrize("words", FAULTS)
def test_faults_are_named_in_one_line(words: str, tmp_path: Path) -> None:
    save(tmp_path)
    FAULTS[words](tmp_path)
    with pytest.raises(ValueError, match=words) as caught:
        load_bundle(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no such folder.*; name one such as"):
        load_bundle(tmp_path / "nothing")


def test_a_name_that_is_wrong_shows_those_that_are_there(tmp_path: Path) -> None:
    save(tmp_path / "jazz" / "best")
    save(tmp_path / "rock")
    (tmp_path / "other").mkdir()
    for name in ("jaz", "jaz/best"):
        with pytest.raises(ValueError, match="no such folder") as caught:
            load_bundle(tmp_path / name)
        assert str(caught.value).endswith(f"; there are {tmp_path / 'jazz'}, {tmp_path / 'rock'}")


def test_a_reader_overtaken_by_a_new_best_reads_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, seed=1)
    read_bytes = Path.read_bytes

    def overtaken(path: Path) -> bytes:
        monkeypatch.undo()
        save(tmp_path, seed=2)
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", overtaken)
    digest = load_bundle(tmp_path).digest
    assert weights(tmp_path).name == f"weights-{digest[:16]}.safetensors"


KILLED_AT_EVERY_STEP = """
import os, sys
from pathlib import Path
import torch
from mstag.models.bundle import load_bundle
from models.test_bundle import save

torch.set_num_threads(1)
folder = Path(sys.argv[1])
old = save(folder, seed=1)
digests, step, status = [], 0, 9
while status == 9:
    step += 1
    child = os.fork()
    if child == 0:
        events = 0
        def kill_at_step(event, args):
            # Audit events tell of each file that is opened, renamed, removed, before it happens.
            global events
            if event.startswith(("open", "os.")) and str(folder) in str(args):
                events += 1
                if events == step:
                    os._exit(9)
        sys.addaudithook(kill_at_step)
        save(folder, seed=2)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    digests.append(load_bundle(folder).digest)
    assert len(list(folder.glob("weights*"))) <= 2
    if digests[-1] != old:
        assert save(folder, seed=1) == old
new = digests[-1]
assert status == 0 and new != old
print(digests.count(old), digests.count(new))
"""


def test_a_whole_bundle_at_every_moment(tmp_path: Path) -> None:
    tests = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", KILLED_AT_EVERY_STEP, str(tmp_path / "best")],
        cwd=tests,
        env={"PYTHONPATH": f"{tests.parent}:{tests}", "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    # Killed before tagger.json is replaced: the old one; after it: the new one.
    num_old, num_new = map(int, done.stdout.split())
    assert num_old > 5 and num_new > 2
