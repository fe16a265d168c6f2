"""MTG-Jamendo: tables and checksum lists from its repository, audio in a hundred tars.

What is published, and where (github.com/MTG/mtg-jamendo-dataset, README.md and
scripts/download): audio for all tracks ("raw_30s") and for the mood/theme subset
("autotagging_moodtheme"), each as 320 kbps stereo ("audio": 508 and 152 GB) and as mono VBR
("audio-low": 156 and 46 GB), each in tars 00 to 99 that hold the tracks whose ids end so. The
repository lists the sha256 of every tar and of every track in it, but no sizes.
"""

from __future__ import annotations

import functools
import hashlib
import re
import tarfile
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from mstag.data.remote import num_bytes_arrived
from mstag.data.together import Together
from mstag.files import atomic_path, remove_leftovers
from shard_tools.fetch.downloads import (
    NUM_AT_ONCE,
    Mirrors,
    RemoteFile,
    at_work_in,
    check_space,
    download_all,
    run_all,
    sizes_of,
)

# A commit, not a branch: the same tables and checksums tomorrow. It is of July 2024; the
# checksums were last changed in December 2022.
TABLE_MIRRORS = (
    "https://raw.githubusercontent.com/MTG/mtg-jamendo-dataset/"
    "1b4fa8c32e076c73b5175c1703ae805b4109309d",
)
AUDIO_MIRRORS = (
    "https://cdn.freesound.org/mtg-jamendo",
    "https://essentia.upf.edu/documentation/datasets/mtg-jamendo",
)
NUM_SPLITS = 5

_HEADER = "TRACK_ID\tARTIST_ID\tALBUM_ID\tPATH\tDURATION\tTAGS"
_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class Audio:
    """Which audio: of all tracks or of a subset, in full or in low quality."""

    tracks: str  # raw_30s or autotagging_moodtheme
    kind: str  # audio or audio-low

    @property
    def suffix(self) -> str:
        """How the names of the tracks end."""
        return ".low.mp3" if self.kind == "audio-low" else ".mp3"

    def tar_name(self, folder: str) -> str:
        """The tar that holds a folder of tracks."""
        return f"{self.tracks}_{self.kind}-{folder}.tar"


def fetch_jamendo(
    data_dir: Path,
    mirrors: Sequence[str] = (),
    *,
    subset: str = "top50tags",
    full: bool = False,
    progress: bool = True,
) -> int:
    """Bring MTG-Jamendo's tables and the audio of a subset into a folder.

    Tables come to ``data/`` as they lie in the dataset's repository (a clone of it is a good
    ``data_dir`` too), audio to ``audio/NN/ID.mp3`` or ``audio/NN/ID.low.mp3``. Each tar is
    checked, unpacked and removed before the next, so the folder never holds more than the
    tracks and a few tars. What is there already is not fetched again, and an interrupted call
    goes on where it was.

    Args:
        data_dir: made when it is not there.
        mirrors: addresses of folders, tried in order for each file: ``data/...`` as in the
            repository, ``raw_30s/audio-low/raw_30s_audio-low-00.tar`` and so on as published.
            Empty: the publisher's.
        subset: top50tags, genre, instrument, moodtheme or all. For moodtheme the smaller set
            of audio is fetched, else the one of all tracks, and all of it is unpacked: one
            subset after another costs no second download.
        full: 320 kbps stereo instead of mono VBR.
        progress: show bars when stderr is a terminal.

    Returns:
        How many tracks of the subset's table are missing because the archives lack them.

    Raises:
        ValueError: a file is not what it should be, or the disk has no room for all.
        OSError: a download failed, or the disk cannot be written.
    """
    tracks = "autotagging_moodtheme" if subset == "moodtheme" else "raw_30s"
    audio = Audio(tracks, "audio" if full else "audio-low")
    tables = _tables(data_dir, subset)
    sums = [
        RemoteFile(name, data_dir / name)
        for name in (
            f"data/download/{audio.tracks}_{audio.kind}_sha256_{what}.txt"
            for what in ("tars", "tracks")
        )
    ]
    servers = Mirrors(mirrors or TABLE_MIRRORS)
    with at_work_in(data_dir):
        download_all([*tables, *sums], servers, what="tables", progress=progress)
        table_paths, *_ = [_paths_in(table.path) for table in tables]
        tar_sums = _read_sums(sums[0].path, re.escape(audio.tar_name("NN")).replace("NN", r"\d\d"))
        track_sums = _read_sums(sums[1].path, r"\d\d/\d+" + re.escape(audio.suffix))
        audio_servers = Mirrors(mirrors or AUDIO_MIRRORS)
        _fetch_audio(data_dir / "audio", audio, audio_servers, tar_sums, track_sums, progress)
    # The tables name the full quality.
    wanted = (path.removesuffix(".mp3") + audio.suffix for path in table_paths)
    return sum(not (data_dir / "audio" / path).is_file() for path in wanted)


def _tables(data_dir: Path, subset: str) -> list[RemoteFile]:
    """The subset's table, then the tables of its splits."""
    stem = "autotagging" if subset == "all" else f"autotagging_{subset}"
    # The repository's autotagging.tsv is a symbolic link, and a web server sends what a link
    # says instead of what it means.
    source = "raw_30s_cleantags_50artists" if subset == "all" else stem
    splits = [
        f"data/splits/split-{number}/{stem}-{part}.tsv"
        for number in range(NUM_SPLITS)
        for part in ("train", "validation", "test")
    ]
    return [
        RemoteFile(f"data/{source}.tsv", data_dir / f"data/{stem}.tsv"),
        *(RemoteFile(name, data_dir / name) for name in splits),
    ]


def _paths_in(table: Path) -> list[str]:
    """The column PATH of a table.

    Raises:
        ValueError: it is not such a table; it was removed then, so that an error page in its
            place does not stay for good.
    """
    lines = table.read_text(encoding="utf-8", errors="replace").splitlines()
    rows = [line.split("\t") for line in lines[1:]]
    if not lines or lines[0] != _HEADER or any(len(row) < 6 for row in rows):
        table.unlink()
        raise ValueError(
            f"{table}: not a table of MTG-Jamendo (another first line, or too few columns), so it "
            "was removed; fetch again, or from another address with --from"
        )
    return [row[3] for row in rows]


def _read_sums(path: Path, name_form: str) -> dict[str, str]:
    """Read a list of sha256 and names.

    Raises:
        ValueError: it is no such list; it was removed then.
    """
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    form = re.compile(rf"([0-9a-f]{{64}}) [ *]?({name_form})", re.ASCII)
    found = [form.fullmatch(line) for line in lines]
    sums = {match[2]: match[1] for match in found if match}
    if not sums or len(sums) < len(lines):
        path.unlink()
        raise ValueError(
            f"{path}: not a list of sha256 checksums and names, each name once, so it was "
            "removed; fetch again, or from another address with --from"
        )
    return sums


def _fetch_audio(
    audio_dir: Path,
    audio: Audio,
    servers: Mirrors,
    tar_sums: Mapping[str, str],
    track_sums: Mapping[str, str],
    progress: bool,
) -> None:
    """Bring every listed track that is not there."""
    folders: dict[str, dict[str, str]] = {}
    for path, checksum in track_sums.items():
        folders.setdefault(path[:2], {})[path] = checksum
    tars, share_missing = [], []
    for folder, sums in sorted(folders.items()):
        name = audio.tar_name(folder)
        if name not in tar_sums:
            raise ValueError(
                f"{audio_dir.parent / 'data/download'}: the list of tracks names some in {folder}, "
                f"the list of tars no {name}: they are of two versions; remove both, fetch again"
            )
        tar = RemoteFile(f"{audio.tracks}/{audio.kind}/{name}", audio_dir / name, tar_sums[name])
        num_missing = sum(not (audio_dir / path).is_file() for path in sums)
        if num_missing:
            tars.append(tar)
            share_missing.append(num_missing / len(sums))
        else:
            tar.path.unlink(missing_ok=True)  # of a call that was killed just before it did
    if not tars:
        return
    have = sum(num_bytes_arrived(tar.path) for tar in tars)
    sizes = sizes_of(tars, servers)
    if sizes:
        tracks_bytes = sum(size * share for size, share in zip(sizes, share_missing, strict=True))
        tars_bytes = max(0, max(sizes) * min(NUM_AT_ONCE, len(sizes)) - have)
        check_space(audio_dir.parent, int(tracks_bytes) + tars_bytes)
    total = sum(sizes) if sizes else None
    with closing(Together("audio", num_bytes=total, have=have, progress=progress)) as together:
        jobs = [
            functools.partial(_fetch_tar, tar, servers, folders[tar.path.stem[-2:]], together)
            for tar in tars
        ]
        run_all(jobs, together)


def _fetch_tar(
    tar: RemoteFile, servers: Mirrors, sums: Mapping[str, str], together: Together
) -> None:
    servers.download(tar, together)
    unpack(tar.path, tar.path.parent, sums, together)
    tar.path.unlink()


def unpack(
    tar_path: Path, audio_dir: Path, sums: Mapping[str, str], together: Together | None = None
) -> None:
    """Unpack the listed tracks of a tar; each is whole and checked, or not there.

    Args:
        tar_path: an uncompressed tar.
        audio_dir: where its folders go.
        sums: ``NN/ID.mp3`` -> sha256; other files in the tar are passed over.
        together: may stop this between two tracks.

    Raises:
        ValueError: the tar is broken, or holds links, devices or names that lead elsewhere,
            or a track has another checksum than listed.
    """
    for folder in {Path(path).parent for path in sums}:
        remove_leftovers(audio_dir / folder)
    try:
        with tarfile.open(tar_path, "r:") as archive:
            for member in archive:
                if together:
                    together.check()
                _refuse_hostile(tar_path, member)
                name = member.name.removeprefix("./")
                if member.isfile() and name in sums:
                    _unpack_track(archive, member, audio_dir / name, sums[name])
    except (tarfile.TarError, EOFError) as error:
        raise ValueError(
            f"{tar_path}: not a whole tar file ({error}); remove it and fetch again"
        ) from None


def _refuse_hostile(tar_path: Path, member: tarfile.TarInfo) -> None:
    """Refuse a whole tar for one member that no honest one has."""
    is_plain = member.type in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE)
    leads_out = member.name.startswith("/") or ".." in re.split(r"[/\\]", member.name)
    if leads_out or not is_plain:
        what = "leads out of the folder" if leads_out else "is a link, a device or a sparse file"
        raise ValueError(
            f"{tar_path}: its member {member.name!r} {what}, which none of the dataset's does, "
            "so unpacking was ended; remove the file and fetch from an address you trust"
        )


def _unpack_track(
    archive: tarfile.TarFile, member: tarfile.TarInfo, target: Path, sha256: str
) -> None:
    if target.is_file() and target.stat().st_size == member.size:
        return
    source = archive.extractfile(member)
    assert source is not None, "only called for files"
    digest = hashlib.sha256()
    with source, atomic_path(target) as temporary, temporary.open("wb") as file:
        while block := source.read(_BLOCK_BYTES):
            digest.update(block)
            file.write(block)
        if digest.hexdigest() != sha256:
            raise ValueError(
                f"{archive.name!s}: the sha256 of {member.name} is {digest.hexdigest()} instead "
                f"of {sha256}; the tar or the list of checksums is not the published one: remove "
                "both and fetch again"
            )
