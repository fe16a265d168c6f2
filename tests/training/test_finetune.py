"""Fine-tuning: what is taken of a bundle, what learns, what is remembered and what refused."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import tiny_run
import torch
from click.testing import CliRunner, Result
from torch import nn

import train
from mstag import config
from mstag.data import shards
from mstag.models import build_model, head_of
from mstag.models.bundle import load_bundle, read_tagger, save_bundle
from mstag.runtime import Ranks
from mstag.training import checkpoint, finetune, runs
from mstag.training.assembly import make_engine
from mstag.training.display import Display
from mstag.training.engine import Engine

MODEL = config.ModelConfig(hidden_units=8)
OLD_TAGS = ["guitar", "slow", "techno"]
STEPS_PER_EPOCH = 25 // 4


def make_bundle(
    folder: Path,
    *,
    seed: int = 5,
    model: config.ModelConfig = MODEL,
    features: config.FeatureConfig = tiny_run.FEATURES,
) -> Path:
    """A tagger of three tags, with running statistics that no fresh network has."""
    torch.manual_seed(seed)
    network = build_model(model, features.n_mels, features.num_frames, len(OLD_TAGS))
    for buffer in network.buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 2.0)
    save_bundle(
        folder,
        network,
        model_config=model,
        features=features,
        tag_names=OLD_TAGS,
        thresholds=[0.5] * 3,
        dataset={"name": "old music", "digest": "d" * 64, "split_rule": "artist", "leaks": {}},
        scores={},
    )
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Config, shards and a bundle, shared: nothing writes to them."""
    path = tmp_path_factory.mktemp("tiny")
    tiny_run.make_config(path)
    make_bundle(path / "bundle")
    return path


def invoke(*argv: str) -> Result:
    """train.py in this process: saves the seconds that importing torch takes."""
    threads = torch.get_num_threads()
    done = CliRunner().invoke(train.main, argv)
    torch.set_num_threads(threads)
    return done


def settings_of(folder: Path, **train: Any) -> config.Config:
    whole = config.load_config(folder / "tiny.toml")
    chosen = {"init_from": str(folder / "bundle"), "ema_decay": 0.9, **train}
    return dataclasses.replace(whole, train=dataclasses.replace(whole.train, **chosen))


def engine_of(folder: Path, **train: Any) -> Engine:
    settings = settings_of(folder, **train)
    manifest = shards.read_manifest(folder / "shards")
    origin = finetune.find_origin(settings, None, "shards", manifest)
    backbone = origin.backbone if origin else None
    return make_engine(settings, manifest, torch.device("cpu"), "fp32", Ranks(), backbone)


def batch_of(step: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(step)
    return {
        "mel": torch.randn(4, 1, 16, 64, generator=generator).half(),
        "tags": (torch.rand(4, 5, generator=generator) < 0.4).byte(),
    }


def steps(ours: Engine, *numbers: int) -> None:
    for number in numbers:
        ours.step(batch_of(number), number, 1e-2)


def parts(model: nn.Module) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Copies of the backbone's weights and statistics, and of the head's."""
    state = copy.deepcopy(model.state_dict())
    backbone = finetune.backbone_of(model)
    assert backbone.keys() < state.keys()
    return {k: state[k] for k in backbone}, {k: state[k] for k in state.keys() - backbone.keys()}


def alike(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> set[str]:
    assert one.keys() == other.keys()
    return {key for key in one if torch.equal(one[key], other[key])}


# ---- What is taken -----------------------------------------------------------------------------


def test_all_but_the_head_is_the_bundles_and_the_head_the_seeds(folder: Path) -> None:
    old, _ = parts(load_bundle(folder / "bundle").model)
    ours, fresh = engine_of(folder), engine_of(folder, init_from="")
    for model in (ours.model, ours.averaged_model()):
        backbone, head = parts(model)
        assert alike(backbone, old) == set(old)
        assert alike(head, parts(fresh.model)[1]) == {"classifier.5.weight", "classifier.5.bias"}
        assert head["classifier.5.weight"].shape == (5, 8)
    assert "classifier.1.running_var" in old
    assert "classifier.1.running_var" not in alike(old, parts(fresh.model)[0])


def test_all_of_it_learns(folder: Path) -> None:
    ours = engine_of(folder)
    before, head = parts(ours.model)
    steps(ours, 0)
    assert alike(parts(ours.model)[0], before) == set()
    assert alike(parts(ours.model)[1], head) == set()


# ---- The frozen backbone -----------------------------------------------------------------------


def test_a_frozen_backbone_stays_as_it_is_bit_by_bit(folder: Path) -> None:
    ours = engine_of(folder, freeze_epochs=-1, accumulate_steps=2, weight_decay=0.1, grad_clip=0.1)
    before, head = parts(ours.model)
    steps(ours, 0, 1)
    ours.begin_epoch(1)
    steps(ours, 2)
    for model in (ours.model, ours.averaged_model()):
        assert alike(parts(model)[0], before) == set(before)
        assert alike(parts(model)[1], head) == set()
    assert len(ours.optimizer.state_dict()["state"]) == 2, "no moments of what does not learn"


def test_a_frozen_backbone_costs_no_backward_pass_and_hears_as_in_scoring(folder: Path) -> None:
    ours = engine_of(folder, freeze_epochs=-1)
    heard: list[torch.Tensor] = []
    ours.model.classifier[4].register_forward_hook(lambda _, __, y: heard.append(y))
    kept: list[int] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        steps(ours, 0)
    assert not heard[0].requires_grad
    assert max(kept) == 4 * 8, "nothing is kept for a backward pass but the head's own input"
    # Statistics of its own training, and no dropout: the same in a smaller batch.
    part = {key: value[:2] for key, value in batch_of(0).items()}
    ours.config = dataclasses.replace(ours.config, mixup_alpha=0.0, num_time_masks=0)
    for batch in (batch_of(0), part):
        ours.step(batch, 0, 0.0)
    torch.testing.assert_close(heard[-1], heard[-2][:2], rtol=1e-5, atol=1e-6)


def test_the_backbone_joins_in_after_its_epochs(folder: Path) -> None:
    ours = engine_of(folder, freeze_epochs=2)
    before, _ = parts(ours.model)
    for epoch in range(2):
        ours.begin_epoch(epoch)
        steps(ours, epoch)
    assert alike(parts(ours.model)[0], before) == set(before)
    ours.begin_epoch(2)
    steps(ours, 2)
    assert alike(parts(ours.model)[0], before) == set(), "weights and statistics move"
    assert len(ours.optimizer.state_dict()["state"]) == len(list(ours.model.parameters()))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
def test_a_compiled_network_freezes_and_learns_the_same(folder: Path) -> None:
    plain, compiled = (
        engine_of(folder, freeze_epochs=1, compile=compile_) for compile_ in (False, True)
    )
    for ours in (plain, compiled):
        before, _ = parts(ours.model)
        steps(ours, 0, 1)
        assert alike(parts(ours.model)[0], before) == set(before)
        ours.model.classifier[2].p = 0.0  # a compiled network draws lots in its own way
        ours.begin_epoch(1)
        steps(ours, 2)
        assert alike(parts(ours.model)[0], before) == set()
    # Not the backbone: biases ahead of BatchNorm have no gradient but rounding, which Adam scales.
    own, other = (parts(ours.model)[1] for ours in (plain, compiled))
    for key in own:
        torch.testing.assert_close(own[key], other[key], rtol=1e-3, atol=1e-4, msg=key)


def test_an_early_end_waits_for_the_backbones_turn() -> None:
    whole = config.TrainConfig(epochs=9, early_stop_epochs=2)
    for freeze_epochs, ends_after in ((0, 3), (4, 6), (-1, 3)):
        settings = dataclasses.replace(whole, init_from="a", freeze_epochs=freeze_epochs)
        progress = checkpoint.Progress(epoch=1, best_epoch=1)
        while not progress.is_over(settings):
            progress.epoch += 1
        assert progress.epoch == ends_after, freeze_epochs


# ---- A real run --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(folder: Path) -> Path:
    """A run from the bundle, frozen in the first of three epochs."""
    settings = ["train.freeze_epochs=1", "train.ema_decay=0.9", "train.keep_checkpoints=99"]
    argv = tiny_run.arguments(folder, "whole", *settings)
    done = invoke(*argv, "--init-from", str(folder / "bundle"))
    assert done.exception is None
    assert "starts from" in done.stderr
    assert "(old music, 3 tags, weights " in done.stderr
    return folder / "whole"


def test_the_run_tells_the_whole_story(folder: Path, whole: Path) -> None:
    settings = runs.read_config(whole).train
    assert (settings.init_from, settings.freeze_epochs) == (str(folder / "bundle"), 1)
    old = load_bundle(folder / "bundle")
    origin = {
        "dataset": "old music",
        "dataset_digest": "d" * 64,
        "tags": 3,
        "weights": old.digest,
        "backbone": "frozen for 1 epoch",
    }
    best = load_bundle(whole)
    assert best.dataset["fine_tuned_from"] == origin
    assert len(best.tag_names) == 5
    card = (whole / "best" / "README.md").read_text()
    assert f"a tagger of old music with 3 tags (weights `{old.digest[:16]}`)" in card
    assert str(folder) not in (whole / "best" / "tagger.json").read_text(), "paths are private"
    first, last = (
        checkpoint.load(whole / "checkpoints" / f"step-{epoch * STEPS_PER_EPOCH:08d}.pt")
        for epoch in (1, 3)
    )
    assert first["origin"] == last["origin"] == origin
    # Counters of batches are not averaged.
    backbone = {k: v for k, v in finetune.backbone_of(old.model).items() if v.is_floating_point()}
    for name in ("model", "ema"):
        states = (state["engine"][name] for state in (first, last))
        one, three = (state["model"] if name == "ema" else state for state in states)
        assert alike({k: one[k] for k in backbone}, backbone) == set(backbone), "frozen at first"
        assert alike({k: three[k] for k in backbone}, backbone) == set()


def test_a_run_that_was_cut_short_needs_no_bundle(
    folder: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the frozen epoch and after it, the bundle gone: it ends bit by bit alike."""
    bundle = folder / "gone"
    shutil.copytree(folder / "bundle", bundle)
    argv = tiny_run.arguments(folder, "cut", "train.ema_decay=0.9", "train.freeze_epochs=1")
    argv += ["--init-from", str(bundle)]
    step = Display.step
    for stop_at in (STEPS_PER_EPOCH - 3, STEPS_PER_EPOCH + 2):

        def signal_in_a_step(self: Display, stop_at: int = stop_at) -> None:
            step(self)
            if self._step == stop_at:
                os.kill(os.getpid(), signal.SIGTERM)

        monkeypatch.setattr(Display, "step", signal_in_a_step)
        assert invoke(*argv).exit_code == 128 + signal.SIGTERM
        shutil.rmtree(bundle, ignore_errors=True)
    monkeypatch.undo()
    assert invoke(*argv).exception is None
    tiny_run.assert_same_training(whole, folder / "cut")


def test_another_bundle_is_refused_and_the_same_in_another_place_is_not(
    folder: Path, whole: Path, caplog: pytest.LogCaptureFixture
) -> None:
    argv = tiny_run.arguments(folder, "whole", "train.ema_decay=0.9", "train.freeze_epochs=1")
    other = make_bundle(folder / "other", seed=6)
    for named, message in (
        (["--init-from", str(other)], f"train.init_from: '{folder / 'bundle'}' -> '{other}'"),
        (["--init-from", str(folder / "none")], "train.init_from (--init-from): "),
        (["--init-from", ""], "train.freeze_epochs = 1: needs train.init_from"),
    ):
        done = invoke(*argv, *named)
        assert isinstance(done.exception, ValueError), named
        assert message in str(done.exception)
    shutil.copytree(folder / "bundle", folder / "moved")
    assert "is finished" in invoke(*argv, "--init-from", str(folder / "moved")).stderr
    assert "was replaced" not in caplog.text
    make_bundle(folder / "moved", seed=7)
    settings = settings_of(folder, init_from=str(folder / "moved"))
    state = checkpoint.load_newest(whole / "checkpoints")
    assert state is not None
    state["config"]["train"]["init_from"] = str(folder / "moved")
    manifest = shards.read_manifest(folder / "shards")
    origin = finetune.find_origin(settings, state, "shards", manifest)
    assert origin == finetune.Origin(state["origin"], None)
    assert "was replaced since this run began" in caplog.text


# ---- What does not fit -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "features", "chosen", "message"),
    [
        (
            {},
            {"sample_rate_hz": 8000},
            [],
            r"features\.sample_rate_hz: 8000 -> 11025\), .*--set features\.sample_rate_hz=8000, f",
        ),
        ({"hidden_units": 9}, {}, [], r"units: 9 -> 8\).*take --set model.hidden_units=9$"),
        (
            {},
            {},
            ["features.num_frames=128", "model.chunk_frames=64"],
            r"features.num_frames: 64 -> 128",
        ),
    ],
)
def test_what_does_not_fit_is_refused_with_the_remedy(
    folder: Path,
    tmp_path: Path,
    model: dict[str, Any],
    features: dict[str, Any],
    chosen: list[str],
    message: str,
) -> None:
    bundle = make_bundle(
        tmp_path / "bundle",
        model=dataclasses.replace(MODEL, **model),
        features=dataclasses.replace(tiny_run.FEATURES, **features),
    )
    manifest = shards.read_manifest(folder / "shards")
    tables = config.to_tables(settings_of(folder, init_from=str(bundle)))
    for setting in chosen:
        config.apply_override(tables, setting)
    settings = config.from_tables(tables)
    manifest = dataclasses.replace(manifest, features=settings.features)
    with pytest.raises(ValueError, match=message) as error:
        finetune.find_origin(settings, None, "shards", manifest)
    assert "\n" not in str(error.value)


def test_another_number_of_frames_at_once_says_why(folder: Path, tmp_path: Path) -> None:
    features = dataclasses.replace(tiny_run.FEATURES, num_frames=128)
    chunked = dataclasses.replace(MODEL, chunk_frames=64)
    bundle = make_bundle(tmp_path / "bundle", model=chunked, features=features)
    settings = settings_of(folder, init_from=str(bundle))
    settings = dataclasses.replace(settings, features=features)
    manifest = dataclasses.replace(shards.read_manifest(folder / "shards"), features=features)
    with pytest.raises(ValueError, match=r"as wide as the frames.*--set model\.chunk_frames=64"):
        finetune.find_origin(settings, None, "shards", manifest)
    # Settings without a shape are the run's own affair.
    fits = dataclasses.replace(chunked, dropout=0.1, batchnorm_momentum=0.5)
    settings = dataclasses.replace(settings, model=fits)
    assert finetune.find_origin(settings, None, "shards", manifest) is not None


def test_a_bundle_that_was_itself_fine_tuned_says_from_what(folder: Path, whole: Path) -> None:
    settings = settings_of(folder, init_from=str(whole))
    card = finetune.card_of(load_bundle(whole), settings)
    assert card["backbone"] == "trained"
    assert card["fine_tuned_from"]["dataset"] == "old music"


def test_no_bundle_and_freezing_nothing(folder: Path) -> None:
    argv = tiny_run.arguments(folder, "mistake")
    done = invoke(*argv, "--init-from", str(folder / "none"))
    assert "train.init_from (--init-from): " in str(done.exception)
    assert "no such folder" in str(done.exception)
    done = invoke(*argv, "--freeze-backbone")
    assert "train.freeze_epochs = -1: needs train.init_from" in str(done.exception)
    assert not (folder / "mistake").exists(), "a refused run leaves nothing behind"


def test_a_tagger_is_read_without_its_weights(folder: Path, tmp_path: Path) -> None:
    bundle = load_bundle(folder / "bundle")
    tagger = read_tagger(folder / "bundle")
    assert tagger["weights"] == {"sha256": bundle.digest}
    assert tagger["tags"] == OLD_TAGS
    shutil.copytree(folder / "bundle", tmp_path / "bad")
    content = json.loads((tmp_path / "bad" / "tagger.json").read_text())
    content["features"]["n_mels"] = "many"
    (tmp_path / "bad" / "tagger.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"bad: tagger\.json was changed by hand"):
        read_tagger(tmp_path / "bad")


def test_the_head_is_what_depends_on_the_tags() -> None:
    few, many = (build_model(MODEL, 16, 64, num_tags).state_dict() for num_tags in (3, 5))
    other = {name for name in few if few[name].shape != many[name].shape}
    model = build_model(MODEL, 16, 64, 3)
    assert other == {name for name in few if name.rpartition(".")[0] in head_of(model)}
