from __future__ import annotations

import atexit
import hashlib
import io
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shard_tools.foreign_tars import Member, TarDamageError, TarReader, shown, split_name

FOLDER = Path(tempfile.mkdtemp(prefix="mstag-tars-"))
atexit.register(shutil.rmtree, FOLDER, ignore_errors=True)


def make_tar(members: dict[str, bytes], form: int = tarfile.GNU_FORMAT) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return file.getvalue()


def walk(content: bytes) -> tuple[list[tuple[str, bytes]], TarReader]:
    path = FOLDER / "x.tar"
    path.write_bytes(content)
    found = []
    with TarReader(path) as tar:
        for number, member in enumerate(tar.members()):
            piece = content[member.start : member.start + member.num_bytes]
            if number % 2:  # members that nobody reads are passed over
                assert tar.read(member.num_bytes) == piece
            found.append((member.name, piece))
    return found, tar


NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0/"), min_size=1, max_size=20)


@given(
    folders=st.lists(NAMES, max_size=3),
    names=st.lists(NAMES, max_size=4, unique=True),
    long=st.sampled_from(["", "n" * 90, "d" * 120 + "/" + "n" * 200]),
    sizes=st.lists(st.sampled_from([0, 1, 511, 512, 513, 3000]), min_size=4, max_size=4),
    form=st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
)
def test_members_are_what_tarfile_wrote(
    folders: list[str], names: list[str], long: str, sizes: list[int], form: int
) -> None:
    members = {
        "/".join([*folders, long + name]): bytes([65 + n]) * sizes[n]
        for n, name in enumerate(names)
    }
    content = make_tar(members, form)
    found, tar = walk(content)
    assert found == list(members.items())
    assert tar.position == len(content)
    assert tar.sha256 == hashlib.sha256(content).hexdigest()


@pytest.mark.skipif(not shutil.which("tar"), reason="no tar command")
@pytest.mark.parametrize("form", ["gnu", "oldgnu", "pax", "posix", "ustar", "v7"])
def test_members_are_what_the_tar_command_wrote(tmp_path: Path, form: str) -> None:
    long = "" if form in ("ustar", "v7") else "n" * 200
    (tmp_path / "in" / "sub").mkdir(parents=True)
    for name, size in (("a", 0), ("sub/b.txt", 700), (f"c{long}.bin", 3000)):
        (tmp_path / "in" / name).write_bytes(b"x" * size)
    done = subprocess.run(
        ["tar", f"--format={form}", "--sort=name", "-cf", "x.tar", "-C", "in", "."],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        pytest.skip(f"this tar command cannot: {done.stderr}")
    found, _ = walk((tmp_path / "x.tar").read_bytes())
    assert found == [
        ("./a", b""),
        (f"./c{long}.bin", b"x" * 3000),
        ("./sub/b.txt", b"x" * 700),
    ]


def test_sizes_of_8_gib_and_more_are_understood() -> None:
    info = tarfile.TarInfo("big.npy")
    info.size = 9 * 2**30
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        path = FOLDER / "big.tar"
        with path.open("wb") as file:
            head = info.tobuf(form)
            file.write(head)
            file.truncate(len(head))
        with TarReader(path) as tar, pytest.raises(TarDamageError, match="cut at byte"):
            for member in tar.members():
                assert member == Member("big.npy", len(head), info.size)


def test_links_devices_and_folders_are_passed_over() -> None:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, kind in (
            ("folder", tarfile.DIRTYPE),
            ("soft.npy", tarfile.SYMTYPE),
            ("hard.npy", tarfile.LNKTYPE),
            ("device.npy", tarfile.CHRTYPE),
            ("pipe.npy", tarfile.FIFOTYPE),
            ("odd.npy", b"Z"),
            ("plain.npy", tarfile.REGTYPE),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            if kind in (tarfile.REGTYPE, b"Z"):
                info.size = 5
            tar.addfile(info, io.BytesIO(b"bytes") if info.size else None)
        info = tarfile.TarInfo("hard2.npy")
        info.type, info.linkname = tarfile.LNKTYPE, "plain.npy"
        info.size = 700  # old tars say the size of what is linked to, and hold none of it
        tar.addfile(info)
        tar.addfile(tarfile.TarInfo("last.npy"))
    assert walk(file.getvalue())[0] == [("plain.npy", b"bytes"), ("last.npy", b"")]


WHOLE = make_tar({"a.npy": b"1" * 600, "b.npy": b"2" * 600})
PAX = make_tar({"n" * 300: b"1"}, tarfile.PAX_FORMAT)


def without_end(content: bytes = WHOLE) -> bytes:
    return content.rstrip(b"\0") + bytes(-len(content.rstrip(b"\0")) % 512)


def damaged(content: bytes, at: int, to: bytes) -> bytes:
    return content[:at] + to + content[at + len(to) :]


def sparse_header() -> bytes:
    info = tarfile.TarInfo("hole.npy")
    info.type = tarfile.GNUTYPE_SPARSE
    return info.tobuf(tarfile.GNU_FORMAT)


def pax_header(records: bytes, kind: bytes = tarfile.XHDTYPE) -> bytes:
    info = tarfile.TarInfo("pax")
    info.type, info.size = kind, len(records)
    return info.tobuf(tarfile.USTAR_FORMAT) + records + bytes(-len(records) % 512)


def huge_header(kind: bytes) -> bytes:
    info = tarfile.TarInfo("long")
    info.type, info.size = kind, 2 << 20
    return info.tobuf(tarfile.USTAR_FORMAT) + bytes(2 << 20)


def negative_header() -> bytes:
    block = bytearray(tarfile.TarInfo("a.npy").tobuf(tarfile.GNU_FORMAT))
    block[124:136] = b"\xff" * 10 + b"\xfe\x00"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cut at byte 0: a whole tar ends with two blocks of zeros"),
        (b"x" * 512, "damaged at byte 0: no tar header there"),
        (WHOLE[:300], "cut at byte 300"),
        (WHOLE[:700], r"cut at byte 700, within the member at byte 0, which ends at byte 1536"),
        (WHOLE[:1536], "cut at byte 1536: a whole tar"),
        (without_end(), "cut at byte 3072: a whole tar"),
        (without_end() + bytes(512), "cut or damaged at byte 3584"),
        (without_end() + bytes(512) + WHOLE, "cut or damaged at byte 3584"),
        (damaged(WHOLE, 1540, b"!"), r"damaged at byte 1536: no tar header there \(bad checksum\)"),
        (damaged(WHOLE, 1536, bytes(512)), "cut or damaged at byte 2048"),
        (WHOLE + WHOLE, "something follows the tar's end at byte 4096"),
        (b"\x1f\x8b" + bytes(600), "compressed with gzip.*gunzip"),
        (b"BZh9" + bytes(600), "compressed with bzip2.*bunzip2"),
        (b"\xfd7zXZ\0" + bytes(600), "compressed with xz.*unxz"),
        (b"\x28\xb5\x2f\xfd" + bytes(600), "compressed with zstd.*unzstd"),
        (sparse_header() + WHOLE, "member at byte 0 is a sparse file.*--sparse"),
        (pax_header(b"22 GNU.sparse.major=1\n") + WHOLE, "byte 0 is a sparse file"),
        (pax_header(b"12 path=a.b\n", tarfile.XGLTYPE) + WHOLE, "byte 0 names all members alike"),
        (pax_header(b"99 path=a.b\n") + WHOLE, "byte 0: no records in its extended header"),
        (pax_header(b"0 path=a.b\n") + WHOLE, "byte 0: no records in its extended header"),
        (pax_header(b"words\n") + WHOLE, "byte 0: no records in its extended header"),
        (pax_header(b"12 size=-10\n") + WHOLE, "byte 0: size '-10' in its extended header"),
        (PAX[:1000], r"cut: \d+ bytes from byte 512 on"),
        (huge_header(tarfile.XHDTYPE) + WHOLE, "extended header of 2097152 bytes"),
        (huge_header(tarfile.GNUTYPE_LONGNAME) + WHOLE, "extended header of 2097152 bytes"),
        (huge_header(tarfile.GNUTYPE_LONGLINK) + WHOLE, "extended header of 2097152 bytes"),
        (negative_header() + WHOLE, "a member of -512 bytes"),
    ],
)
def test_a_tar_that_is_not_whole_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(TarDamageError, match=message):
        walk(content)


def test_a_global_comment_and_a_size_of_zero_do_no_harm() -> None:
    comment = pax_header(b"18 comment=a text\n", tarfile.XGLTYPE)
    assert walk(comment + pax_header(b"10 size=0\n") + make_tar({"a.npy": b""}))[0] == [
        ("a.npy", b"")
    ]


@given(cut=st.integers(0, len(WHOLE) - 1))
def test_every_cut_before_the_second_block_of_zeros_is_noticed(cut: int) -> None:
    content = make_tar({"a.npy": b"1" * 600, "b.npy": b"2" * 600})[:cut]
    if cut < 3072 + 1024:
        with pytest.raises(TarDamageError):
            walk(content)
    else:
        assert len(walk(content)[0]) == 2


@given(place=st.integers(0, len(PAX) - 1), byte=st.integers(1, 255))
def test_a_flipped_byte_is_an_error_or_another_tar(place: int, byte: int) -> None:
    content = bytearray(PAX)
    content[place] ^= byte
    try:
        walk(bytes(content))
    except TarDamageError:
        return


def test_names_are_split_as_webdataset_splits_them() -> None:
    from webdataset.tariterators import base_plus_ext

    for name in ("a.npy", "a/b.c.mel.npy", "x.y/b.NPY", "./a.cls", "/a/../b.json", "../a.npz"):
        key, extension = base_plus_ext(name)
        assert split_name(name) == (key, extension.lower())
    assert base_plus_ext("README") == (None, None) and split_name("README") is None
    assert split_name(".hidden") is None and split_name("a/.b.npy") is None


def test_names_are_safe_to_print() -> None:
    assert shown("caf\u00e9.npy") == "caf\u00e9.npy"
    assert shown("a\x1b[31m\n") == "'a\\x1b[31m\\n'"
