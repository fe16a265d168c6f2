"""The README is true: its commands run, as they stand, in a small copy of the house."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from shared_data import REPOSITORY

from mstag import config

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
# These run the tests inside themselves, or take minutes; CI and people run them.
NOT_HERE = ("make test", "make train")
NUM_CLIPS = 24


def commands() -> list[str]:
    """The lines of all sh blocks."""
    blocks = re.findall(r"^```sh\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.strip()]


def run(command: str, folder: Path) -> str:
    env = {
        **os.environ,
        "PATH": f"{Path(sys.prefix) / 'bin'}:{os.environ['PATH']}",
        "WANDB_MODE": "offline",
        "PYTHONPATH": str(REPOSITORY),
    }
    # `make test` hands its own variables (ARGS) down to every make below it.
    for name in ("MAKEFLAGS", "MAKEOVERRIDES", "MAKELEVEL"):
        env.pop(name, None)
    done = subprocess.run(
        ["/bin/sh", "-c", command],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the house with a small demo dataset and a run that was trained on it."""
    if not (Path(sys.prefix) / "bin" / ".ready").exists():
        pytest.skip("not run in the .venv that `make setup` makes")
    folder = tmp_path_factory.mktemp("house")
    for name in ("Makefile", "pyproject.toml", "constraints.txt", "train.py", "eval.py"):
        shutil.copy2(REPOSITORY / name, folder / name)
    shutil.copytree(REPOSITORY / "configs", folder / "configs")
    (folder / ".venv").symlink_to(sys.prefix)
    toml = folder / "configs" / "demo.toml"
    settings = config.load_config(
        toml, (f"dataset.num_clips={NUM_CLIPS}", "train.epochs=1", "train.batch_size=4")
    )
    toml.write_text(config.to_toml(settings))
    run("make shards", folder)
    run(".venv/bin/python train.py --config configs/demo.toml", folder)
    # The demo set has MagnaTagATune's layout: it stands in for it here.
    shutil.copytree(folder / "data" / "demo", folder / "data" / "mtt", copy_function=os.link)
    first = next(path for path in sorted((folder / "data" / "demo").iterdir()) if path.is_dir())
    if first.name != "0":
        shutil.copytree(first, folder / "data" / "demo" / "0")
    return folder


def test_every_command_of_the_readme_runs(house: Path) -> None:
    here = [command for command in commands() if not command.startswith(NOT_HERE)]
    assert len(here) > 10
    for command in here:
        run(command, house)


def test_the_readme_names_both_main_commands_first() -> None:
    assert commands()[:2] == ["make train", "make test"]


def test_make_help_lists_every_target() -> None:
    makefile = (REPOSITORY / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefile, flags=re.MULTILINE))
    listed = run("make help", REPOSITORY)
    assert targets == set(re.findall(r"^  ([a-z-]+) ", listed, flags=re.MULTILINE))


def test_files_and_configs_that_the_readme_names_exist() -> None:
    for name in re.findall(r"\bconfigs/([a-z0-9-]+\.toml)", README):
        assert name == "mine.toml" or (REPOSITORY / "configs" / name).exists(), name


def test_links_lead_somewhere() -> None:
    pages = [REPOSITORY / "README.md", *(REPOSITORY / "docs").glob("*.md")]
    links = [
        (page, target)
        for page in pages
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8"))
    ]
    assert len(links) > 5
    assert [target for page, target in links if not (page.parent / target).exists()] == []


def test_the_example_config_of_the_readme_is_a_config() -> None:
    (example,) = re.findall(r"^```toml\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
    import tomllib

    assert config.from_tables(tomllib.loads(example)).dataset.kind == "table"
