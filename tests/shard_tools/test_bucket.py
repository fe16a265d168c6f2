"""Shards written into a real S3 endpoint (moto's server)."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from loopback import sha256
from make_audio import SETTINGS, contents, make_audio, table_dataset
from shared_data import REPOSITORY

from mstag.data.stream import ShardLoader
from shard_tools import bucket
from shard_tools.bucket import BucketOutput
from shard_tools.merge import merge
from shard_tools.output import open_output
from shard_tools.pack import pack

boto3 = pytest.importorskip("boto3", reason="boto3 is not installed (pip install 'mstag[s3]')")
moto_server = pytest.importorskip("moto.server", reason="moto's server is not installed")

ADDRESS = "s3://music/tones/v1"


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield server.get_host_and_port()[1]
    server.stop()
    server._server.server_close()  # which moto forgets


@pytest.fixture
def client(port: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """An empty bucket, and credentials in the environment."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "TOPSECRET")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    client = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}")
    client.create_bucket(Bucket="music")
    yield client
    for key in client.list_objects_v2(Bucket="music").get("Contents", []):
        client.delete_object(Bucket="music", Key=key["Key"])
    client.delete_bucket(Bucket="music")
    client.close()


def output(port: int) -> BucketOutput:
    found = open_output(ADDRESS, f"http://127.0.0.1:{port}")
    assert isinstance(found, BucketOutput)
    return found


def refuses(place: BucketOutput, part: str) -> None:
    with pytest.raises(ValueError, match="another pack is at work here, or"), place.lock(part):
        pass


def objects(client: Any) -> dict[str, bytes]:
    """The bucket's files less the receipts."""
    found = client.list_objects_v2(Bucket="music", Prefix="tones/v1/").get("Contents", [])
    keys = [row["Key"] for row in found if "/.pack/" not in row["Key"]]
    return {
        key.removeprefix("tones/v1/"): client.get_object(Bucket="music", Key=key)["Body"].read()
        for key in keys
    }


def test_a_bucket_gets_the_bytes_of_a_folder_and_serves_them(
    tmp_path: Path, client: Any, port: int
) -> None:
    catalogue = make_audio(tmp_path / "data", 24)
    pack(SETTINGS, catalogue, tmp_path / "data", tmp_path / "out", num_workers=1, progress=False)
    for expected in (7, 0):
        packed = pack(
            SETTINGS, catalogue, tmp_path / "data", output(port), num_workers=1, progress=False
        )
        assert packed.num_packed == expected
    assert objects(client) == contents(tmp_path / "out")
    client.delete_object(Bucket="music", Key="tones/v1/train-000001.tar")
    again = pack(
        SETTINGS, catalogue, tmp_path / "data", output(port), num_workers=1, progress=False
    )
    assert again.num_packed == 1 and objects(client) == contents(tmp_path / "out")
    leases = client.list_objects_v2(Bucket="music", Prefix="tones/v1/.pack/lock")
    assert "Contents" not in leases, "no lease outlives its pack"
    from mstag.data.store import open_store

    store = open_store(
        f"{ADDRESS}/", cache_folder=tmp_path / "cache", s3_endpoint=f"http://127.0.0.1:{port}"
    )
    loader = ShardLoader(store, "train", batch_size=4, shuffle=False)
    ids = [clip_id for batch in loader for clip_id in batch["id"]]
    assert len(ids) == 12


def test_parts_in_a_bucket_merge(tmp_path: Path, client: Any, port: int) -> None:
    catalogue = make_audio(tmp_path / "data", 24)
    data = tmp_path / "data"
    for number in (1, 0):
        pack(
            SETTINGS,
            catalogue,
            data,
            output(port),
            num_workers=1,
            part=(number, 2),
            progress=False,
        )
    assert "manifest.json" not in objects(client)
    merge(output(port))
    pack(SETTINGS, catalogue, data, tmp_path / "out", num_workers=1, progress=False)
    assert objects(client) == contents(tmp_path / "out")


def test_a_living_lease_keeps_others_out_and_a_dead_one_does_not(
    client: Any, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket, "RENEW_S", 0.2)
    monkeypatch.setattr(bucket, "LEASE_S", 2.0)
    with output(port).lock(""):
        time.sleep(3)
        for part in ("", "0-of-2"):
            with (
                pytest.raises(ValueError, match="another pack is at work"),
                output(port).lock(part),
            ):
                pass
    with output(port).lock("0-of-2"), output(port).lock("1-of-2"):
        for part in ("", "0-of-2"):
            with (
                pytest.raises(ValueError, match="another pack is at work"),
                output(port).lock(part),
            ):
                pass
    client.put_object(Bucket="music", Key="tones/v1/.pack/lock", Body=b"of a killed pack")
    refuses(output(port), "")
    time.sleep(3)
    with output(port).lock(""):
        pass


def test_a_killed_upload_leaves_nothing_half_written(
    tmp_path: Path, client: Any, port: int
) -> None:
    settings = table_dataset(tmp_path, 60, clips_per_shard=3)
    command = [sys.executable, "-m", "shard_tools", "pack", "--config", str(settings)]
    command += ["--data", str(tmp_path / "data"), "--workers", "1"]
    remote = [*command, "--out", ADDRESS, "--s3-endpoint", f"http://127.0.0.1:{port}"]
    killed = subprocess.Popen(remote, cwd=REPOSITORY, stderr=subprocess.DEVNULL)
    while len(objects(client)) < 3 and killed.poll() is None:
        time.sleep(0.02)
    killed.kill()
    killed.wait()
    there = objects(client)
    assert 3 <= len(there) < 21 and "manifest.json" not in there
    client.delete_object(Bucket="music", Key="tones/v1/.pack/lock")  # as its time would have
    subprocess.run(remote, cwd=REPOSITORY, check=True, capture_output=True)
    local = [*command, "--out", str(tmp_path / "out")]
    subprocess.run(local, cwd=REPOSITORY, check=True, capture_output=True)
    assert objects(client) == contents(tmp_path / "out")
    assert all(there[name] == contents(tmp_path / "out")[name] for name in there)


def test_what_is_wrong_with_a_bucket_is_said(
    tmp_path: Path, client: Any, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for bad, words in (("s3:///x", "names no bucket"), ("https://host/x", "s3://BUCKET/PREFIX")):
        with pytest.raises(ValueError, match=words):
            open_output(bad)
    nowhere = open_output("s3://no-such-bucket/x", f"http://127.0.0.1:{port}")
    with pytest.raises(OSError, match=r"no-such-bucket/x: the bucket refuses \(NoSuchBucket"):
        nowhere.read_text("manifest.json")


def test_an_object_says_what_it_is_made_of(client: Any, port: int) -> None:
    place = output(port)
    (place.scratch / "a.tar").write_bytes(b"content")
    place.publish("a.tar")
    assert place.size("a.tar") == 7 and place.sha256("a.tar") == sha256(b"content")
    assert place.size("b.tar") is None and place.sha256("b.tar") is None
    assert place.names() == ["a.tar"] and not (place.scratch / "a.tar").exists()
    place.remove("a.tar")
    place.remove("a.tar")
    assert place.names() == []
    place.scratch.rmdir()
