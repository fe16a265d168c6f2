"""The house's own rules: who imports whom, and what must stay light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from shared_data import REPOSITORY

LEVELS = [
    {"mstag.__main__"},
    {"train", "eval", "mstag.cli", "shard_tools"},
    {"mstag.cli_tag"},
    {"mstag.cli_model"},
    {"mstag.tagging", "mstag.training"},
    {"mstag.models"},
    {"mstag.data"},
    {"mstag.show", "mstag.metrics", "mstag.curves"},
    {
        "mstag.checks",
        "mstag.compiling",
        "mstag.config",
        "mstag.runtime",
        "mstag.stopping",
        "mstag.console",
        "mstag.doctor",
        "mstag.files",
        "mstag",
    },
]
SOURCES = [
    *(REPOSITORY / "mstag").rglob("*.py"),
    *(REPOSITORY / "shard_tools").rglob("*.py"),
    REPOSITORY / "train.py",
    REPOSITORY / "eval.py",
]


def module_name(path: Path) -> str:
    parts = path.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def wing(module: str) -> str | None:
    """The longest named wing or room that ``module`` belongs to."""
    names = [name for level in LEVELS for name in level]
    fitting = [n for n in names if module == n or (n != "mstag" and module.startswith(f"{n}."))]
    return max(fitting, key=len) if fitting else None


def height(name: str) -> int:
    return next(i for i, level in enumerate(LEVELS) if name in level)


def imports(path: Path) -> list[str]:
    """Absolute names of the house's modules that a file imports, anywhere in it."""
    modules = {module_name(p) for p in SOURCES}
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                found.append(full if full in modules else node.module)
    return [
        name for name in found if name.split(".")[0] in ("mstag", "shard_tools", "train", "eval")
    ]


def violations(path: Path) -> list[str]:
    importer = module_name(path)
    own = wing(importer)
    assert own, f"{importer} belongs to no wing"
    bad = []
    for name in imports(path):
        other = wing(name)
        assert other, f"{importer} imports {name}, which belongs to no wing"
        if other == own or (own == "mstag" and other == "mstag.tagging"):
            continue  # load_tagger, the library's front door, opens the wing when called
        up = height(other) < height(own)
        across = height(other) == height(own) and height(own) < height("mstag.show")
        if up or across:
            bad.append(f"{importer} imports {name}")
    return bad


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(REPOSITORY)))
def test_imports_go_downwards_only(path: Path) -> None:
    assert violations(path) == []


def test_an_upward_import_would_be_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    room = REPOSITORY / "mstag" / "data" / "audio.py"
    monkeypatch.setattr(
        Path,
        "read_text",
        lambda self, **_: "from mstag.training import engine\nimport shard_tools.cli",
    )
    assert len(violations(room)) == 2


@pytest.mark.parametrize(
    ("code", "heavy"),
    [
        ("import mstag", ["torch", "numpy", "wandb", "sklearn"]),
        ("import shard_tools.cli", ["torch", "wandb", "sklearn", "matplotlib", "music21"]),
        ("import mstag.cli", ["torch", "numpy", "wandb", "sklearn", "matplotlib"]),
        (
            "import mstag.data.stream, mstag.data.shards",
            ["torch", "wandb", "webdataset", "soundfile"],
        ),
        ("import shard_tools.catalogs", ["torch", "soundfile", "music21"]),
        ("import shard_tools.pack, shard_tools.engines", ["torch", "numba"]),
        ("import mstag.tagging.tagger, mstag.tagging.batch", ["numba", "torchaudio", "scipy"]),
    ],
)
def test_light_rooms_stay_light(code: str, heavy: list[str]) -> None:
    check = f"import sys; {code}; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", check], capture_output=True, text=True, cwd=REPOSITORY, check=True
    )
    assert done.stdout.strip() == "[]"


def test_text_files_are_ascii() -> None:
    for path in [*SOURCES, *(REPOSITORY / "tests").rglob("*.py"), REPOSITORY / "Makefile"]:
        assert path.read_bytes().isascii(), path
