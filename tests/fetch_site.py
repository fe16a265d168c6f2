"""A server on loopback with a small dataset on it, and what it can do to a download."""

from __future__ import annotations

import hashlib
import io
import random
import tarfile
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

CLIPS = {
    "0/joram-moments-08-solipsism-59-88.mp3": random.Random(0).randbytes(90_000),
    "7/joram-moments-09-other-0-29.mp3": random.Random(1).randbytes(150_000),
    "f/yongen-moonrise-01-moonrise-0-29.mp3": b"moonrise" * 999,
}
EVIL_CLIPS = {"../evil.mp3": b"x", "/evil.mp3": b"x", "0/../../evil.mp3": b"x", "readme.txt": b"x"}
HEADER = "TRACK_ID\tARTIST_ID\tALBUM_ID\tPATH\tDURATION\tTAGS"
TRACKS = {
    f"{number % 100:02}/{number}.low.mp3": random.Random(number).randbytes(20_000 + number)
    for number in (100, 200, 301, 401, 1001, 502, 1402, 1503, 99)
}


class Site(ThreadingHTTPServer):
    """Serves what is in ``files`` (path -> content) with ranges and ETags; else 404."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, files: dict[str, bytes], port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.files = files
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.requests: list[tuple[str, int]] = []  # (path, from which byte on)
        self.cuts: list[int] = []  # an answer ends at the next of these positions in its file
        self.stalls = False  # ... or stays there, with the connection open
        self.claims: dict[str, int] = {}  # path -> what it is said to weigh
        self.says_length = True
        self.version = "1"
        self.block_s = 0.0  # pause after each 16 KiB
        self.num_at_once = 99  # more than these at a time are answered 503
        self.reached = threading.Event()  # a cut or stall
        self.go_on = threading.Event()
        self.now = 0
        self.most = 0  # answers at the same time
        self.lock = threading.Lock()

    def count(self, path: str) -> int:
        return sum(path == asked for asked, _ in self.requests)

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a client that hears enough, or was killed


class _Handler(BaseHTTPRequestHandler):
    server: Site

    def do_GET(self) -> None:
        site = self.server
        with site.lock:
            site.now += 1
            self.counts = True
            is_one_too_many = site.now > site.num_at_once
            site.most = max(site.most, site.now)
        try:
            if is_one_too_many:
                self.leave(site)
                self.send_error(503)
            else:
                self.answer(site, self.path.split("?")[0].lstrip("/"))
        finally:
            self.leave(site)

    def leave(self, site: Site) -> None:
        """Before the client has heard all: its next request may be quicker than this thread."""
        with site.lock:
            site.now -= self.counts
            self.counts = False

    def answer(self, site: Site, path: str) -> None:
        wanted = self.headers["Range"]
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
        site.requests.append((path, start))
        if path not in site.files:
            self.send_error(404)
            return
        content = site.files[path]
        tag = f'"{site.version}"'
        if self.headers["If-Range"] not in (None, tag):
            start = 0
        if start >= len(content) > 0:
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("ETag", tag)
        if site.says_length:
            self.send_header("Content-Length", str(site.claims.get(path, len(content)) - start))
        self.end_headers()
        end = next((cut for cut in site.cuts if start < cut < len(content)), len(content))
        for position in range(start, end, 1 << 14):
            if position + (1 << 14) >= end:
                self.leave(site)
            self.wfile.write(content[position : min(end, position + (1 << 14))])
            time.sleep(site.block_s)
        if end < len(content):
            site.reached.set()
            if site.stalls:
                site.go_on.wait()

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving_site(files: dict[str, bytes], port: int = 0) -> Iterator[Site]:
    with Site(files, port) as site:
        thread = threading.Thread(target=site.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield site
        finally:
            site.go_on.set()
            site.shutdown()
            thread.join()


def mtt_site() -> dict[str, bytes]:
    """MagnaTagATune as published: two tables and a zip file cut in three."""
    rows = "".join(f'"{n}"\t"1"\t"{path}"\n' for n, path in enumerate(CLIPS))
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in (CLIPS | EVIL_CLIPS).items():
            archive.writestr(name, content)
    content = packed.getvalue()
    third = len(content) // 3
    return {
        "annotations_final.csv": f'"clip_id"\t"piano"\t"mp3_path"\n{rows}'.encode(),
        "clip_info_final.csv": b'"clip_id"\t"title"\n',
        "mp3.zip.001": content[:third],
        "mp3.zip.002": content[third : 2 * third],
        "mp3.zip.003": content[2 * third :],
    }


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def tar_of(members: dict[str, bytes | tarfile.TarInfo]) -> bytes:
    """A tar with files, and with what else a TarInfo describes."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name, content in members.items():
            if isinstance(content, tarfile.TarInfo):
                archive.addfile(content)
                continue
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return packed.getvalue()


def jamendo_site(
    tracks: dict[str, bytes] = TRACKS, subset: str = "_top50tags", audio: str = "raw_30s"
) -> dict[str, bytes]:
    """MTG-Jamendo as published: tables, lists of checksums, one tar for each folder."""
    rows = [
        f"track_{n:07}\tartist_{n % 4:06}\talbum_{n:06}\t{path.replace('.low', '')}\t200.5\t"
        + ("genre---rock" if n % 2 else "genre---rock\tmood/theme---epic")
        for n, path in enumerate(tracks)
    ]
    table = "\n".join([HEADER, *rows, ""]).encode()
    source = f"data/autotagging{subset}.tsv" if subset else "data/raw_30s_cleantags_50artists.tsv"
    files = {source: table}
    for number in range(5):
        for part, some in zip(("train", "validation", "test"), split(rows), strict=True):
            content = "\n".join([HEADER, *some, ""]).encode()
            files[f"data/splits/split-{number}/autotagging{subset}-{part}.tsv"] = content
    kind = "audio-low" if next(iter(tracks)).endswith(".low.mp3") else "audio"
    tar_sums = []
    for folder in sorted({path[:2] for path in tracks}):
        entry = tarfile.TarInfo(folder)
        entry.type = tarfile.DIRTYPE
        inside = {path: content for path, content in tracks.items() if path[:2] == folder}
        content = tar_of({folder: entry, **inside, f"{folder}/notes.txt": b"unlisted"})
        name = f"{audio}_{kind}-{folder}.tar"
        files[f"{audio}/{kind}/{name}"] = content
        tar_sums.append(f"{sha256(content)} {name}\n")
    track_sums = [f"{sha256(content)} {path}\n" for path, content in tracks.items()]
    prefix = f"data/download/{audio}_{kind}_sha256"
    files[f"{prefix}_tars.txt"] = "".join(tar_sums).encode()
    files[f"{prefix}_tracks.txt"] = "".join(track_sums).encode()
    return files


def split(rows: list[str]) -> tuple[list[str], list[str], list[str]]:
    return [r for n, r in enumerate(rows) if n % 4 < 2], rows[2::4], rows[3::4]
