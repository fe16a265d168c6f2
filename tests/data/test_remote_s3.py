"""Downloads from a real S3 endpoint (moto's server), also through a proxy that cuts the line."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from loopback import CONTENT, CuttingProxy, cutting_proxy, sha256
from shared_data import REPOSITORY

from mstag.data import answers
from mstag.data.cache import ShardCache
from mstag.data.remote import download, read_bytes

boto3 = pytest.importorskip("boto3", reason="boto3 is not installed (pip install 'mstag[s3]')")
moto_server = pytest.importorskip("moto.server", reason="moto's server is not installed")

URL = "s3://music/demo v1/train-000000.tar"
KEY = "demo v1/train-000000.tar"
# An answer's headers take less than this.
CUT = 300_000


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield server.get_host_and_port()[1]
    server.stop()
    server._server.server_close()  # which moto forgets


@pytest.fixture
def proxy(port: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[CuttingProxy]:
    """A fresh bucket behind a proxy, with credentials in the environment."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "TOPSECRET")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    with cutting_proxy(port) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        client = admin(port)
        client.create_bucket(Bucket="music")
        client.put_object(Bucket="music", Key=KEY, Body=CONTENT)
        yield proxy
        for key in client.list_objects_v2(Bucket="music").get("Contents", []):
            client.delete_object(Bucket="music", Key=key["Key"])
        client.delete_bucket(Bucket="music")
        client.close()
        forget_clients()


def admin(port: int) -> Any:
    return boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}")


def forget_clients() -> None:
    for client in answers._clients.values():
        client.close()
    answers._clients.clear()


def fetch(path: Path, url: str = URL, *, num_tries: int = 3, **known: Any) -> None:
    download(url, path, progress=False, num_tries=num_tries, backoff_s=0.001, **known)


def test_download(proxy: CuttingProxy, tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    fetch(path, num_bytes=len(CONTENT), sha256=sha256(CONTENT))
    assert path.read_bytes() == CONTENT
    assert [file.name for file in tmp_path.iterdir()] == ["a.tar"]
    assert read_bytes(URL) == CONTENT
    with pytest.raises(ValueError, match=r"it has 1024000 bytes; no more than 7"):
        read_bytes(URL, max_bytes=7)


def test_an_endpoint_of_ones_own(
    proxy: CuttingProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    fetch(tmp_path / "a.tar", s3_endpoint=proxy.url)
    assert (tmp_path / "a.tar").read_bytes() == CONTENT
    for endpoint in ("file:///etc", "s3://x", "http://me:TOPSECRET@h"):
        with pytest.raises(ValueError, match=r"endpoint|user name") as error:
            fetch(tmp_path / "b.tar", s3_endpoint=endpoint)
        assert "TOPSECRET" not in str(error.value)


def test_the_cache_fetches_from_s3(
    proxy: CuttingProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    cache = ShardCache(tmp_path / "cache", len(CONTENT))
    for _ in range(2):
        handle = cache.fetch(URL, sha256(CONTENT), len(CONTENT), s3_endpoint=proxy.url)
        assert os.pread(handle, len(CONTENT) + 1, 0) == CONTENT
        os.close(handle)
    assert b"".join(proxy.heard).count(b"GET /") == 1


def test_threads_share_one_client(proxy: CuttingProxy, tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.tar" for i in range(6)]
    threads = [threading.Thread(target=fetch, args=(path,)) for path in paths]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(path.read_bytes() == CONTENT for path in paths)
    assert len(answers._clients) == 1
    assert answers.s3_client("") is answers.s3_client("")


def test_a_cut_connection_is_resumed(proxy: CuttingProxy, port: int, tmp_path: Path) -> None:
    proxy.limits = [CUT]
    with pytest.raises(OSError, match=r"train-000000.tar: .*1 times in a row"):
        fetch(tmp_path / "a.tar", num_tries=1)
    arrived = (tmp_path / "a.tar.part").stat().st_size
    assert CUT - 100_000 < arrived < CUT
    # Less than the whole would take: it is not asked for again.
    proxy.limits = [len(CONTENT) - arrived + 20_000, 0]
    fetch(tmp_path / "a.tar")
    assert (tmp_path / "a.tar").read_bytes() == CONTENT
    assert proxy.limits == [0]
    assert b"If-Match" not in proxy.heard[0]
    assert b"If-Match" in proxy.heard[-1]


def test_only_our_own_tries_count(proxy: CuttingProxy, tmp_path: Path) -> None:
    proxy.limits = [0] * 9
    with pytest.raises(OSError, match=r"onnection .* 2 times in a row"):
        fetch(tmp_path / "a.tar", num_tries=2)
    assert len(proxy.limits) == 7


def test_an_object_that_was_replaced_is_not_mixed(
    proxy: CuttingProxy, port: int, tmp_path: Path
) -> None:
    proxy.limits = [CUT]
    with pytest.raises(OSError, match=r"1 times in a row"):
        fetch(tmp_path / "a.tar", num_tries=1)
    other = CONTENT[::-1]
    client = admin(port)
    client.put_object(Bucket="music", Key=KEY, Body=other)
    client.close()
    fetch(tmp_path / "a.tar")
    assert (tmp_path / "a.tar").read_bytes() == other


def test_a_wrong_object_is_refused(proxy: CuttingProxy, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"sha256 is .*, twice"):
        fetch(tmp_path / "a.tar", sha256=sha256(b""))
    with pytest.raises(ValueError, match=r"1024000 bytes instead of 7"):
        fetch(tmp_path / "a.tar", num_bytes=7)
    with pytest.raises(OSError, match=r"3 times in a row"):
        fetch(tmp_path / "a.tar", num_bytes=len(CONTENT) + 1)
    assert not list(tmp_path.glob("*.tar"))


def test_what_is_not_there(proxy: CuttingProxy, tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"^s3://music/no.tar: the bucket holds no object"):
        fetch(tmp_path / "a.tar", "s3://music/no.tar")
    with pytest.raises(
        OSError, match=r"^s3://nowhere/no.tar: http://127.* holds no bucket nowhere"
    ):
        fetch(tmp_path / "a.tar", "s3://nowhere/no.tar")
    with pytest.raises(OSError, match=r"^s3://music/: .*Invalid length for parameter Key"):
        fetch(tmp_path / "a.tar", "s3://music/")
    assert list(tmp_path.iterdir()) == []


def test_without_credentials_only_the_public(
    proxy: CuttingProxy, port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = admin(port)
    client.put_object(Bucket="music", Key="public", Body=CONTENT, ACL="public-read")
    client.close()
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    fetch(tmp_path / "a.tar", "s3://music/public")
    assert (tmp_path / "a.tar").read_bytes() == CONTENT
    with pytest.raises(
        OSError, match=r"access denied .*asked without credentials.* set AWS_ACCESS_KEY_ID"
    ) as error:
        fetch(tmp_path / "b.tar")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("AWS_PROFILE", "nobody", "profile .*nobody.* could not be found"),
        ("AWS_SECRET_ACCESS_KEY", "", "Partial credentials"),
        ("AWS_ENDPOINT_URL", "nonsense", "Invalid endpoint"),
    ],
)
def test_an_environment_that_does_not_fit(
    proxy: CuttingProxy,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    value: str,
    message: str,
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises((OSError, ValueError), match=message) as error:
        fetch(tmp_path / "a.tar")
    assert "TOPSECRET" not in str(error.value)
    assert "\n" not in str(error.value)


def test_an_endpoint_that_stalls(
    proxy: CuttingProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "TIMEOUT_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        endpoint = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        with pytest.raises(OSError, match=r"timeout .* 2 times in a row"):
            fetch(tmp_path / "a.tar", s3_endpoint=endpoint, num_tries=2)


def test_an_endpoint_that_is_not_there(proxy: CuttingProxy, tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(
            OSError, match=f"^s3://music.*: {endpoint} is not reachable, 2 times in a row"
        ) as error:
            fetch(tmp_path / "a.tar", s3_endpoint=endpoint, num_tries=2)
    assert "\n" not in str(error.value)


def test_without_boto3(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['boto3'] = None\n"
        "from mstag.data.remote import read_bytes\n"
        "try: read_bytes('s3://music/x')\n"
        "except ValueError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=True
    )
    assert done.stdout == "s3:// needs boto3; pip install 'mstag[s3]'\n"
