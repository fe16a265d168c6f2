"""A server on loopback that answers what huggingface_hub asks: download, and upload by commits."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit


class HubSite(ThreadingHTTPServer):
    """Repositories in memory, each a list of commits: (sha, {name: content}).

    ``token``, where set, is needed for everything. ``requests`` are (method, path, token).
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.commits: dict[str, list[tuple[str, dict[str, bytes]]]] = {}
        self.private: dict[str, bool] = {}
        self.uploaded: dict[str, bytes] = {}
        self.token: str | None = None
        self.requests: list[tuple[str, str, str | None]] = []
        self.stopped = False

    def stop(self) -> None:
        """Goes away, for connections that are open too."""
        self.stopped = True
        self.shutdown()
        self.server_close()

    def commit(self, repo: str, files: dict[str, bytes]) -> str:
        """Adds a commit whose files are these alone."""
        commits = self.commits.setdefault(repo, [])
        sha = hashlib.sha1(f"{repo} {len(commits)}".encode()).hexdigest()
        commits.append((sha, dict(files)))
        return sha

    def find(self, repo: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        commits = self.commits[repo]
        if revision == "main":
            return commits[-1]
        return next((commit for commit in commits if commit[0] == revision), None)


class _Handler(BaseHTTPRequestHandler):
    server: HubSite
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def _answer(self) -> None:
        site = self.server
        if site.stopped:
            self.close_connection = True
            return None
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        authorization = self.headers.get("Authorization")
        token = authorization.removeprefix("Bearer ") if authorization else None
        site.requests.append((self.command, path, token))
        parts = path.strip("/").split("/")
        if parts[0] == "upload":
            site.uploaded[parts[1]] = body
            return self._send(200, {})
        if site.token is not None and token != site.token:
            return self._send(401, {"error": "no"}, {"X-Error-Code": "RepoNotFound"})
        if path == "/api/validate-yaml":
            front = json.loads(body)["content"].split("---\n")
            empty = len(front) < 3 or front[0]
            return self._send(200, {"warnings": [{"message": "empty"}] if empty else []})
        if path == "/api/repos/create":
            asked = json.loads(body)
            repo = f"{asked['organization']}/{asked['name']}"
            exists = repo in site.commits
            if not exists:
                site.private[repo] = asked.get("private", False)
                site.commit(repo, {".gitattributes": b""})
            return self._send(409 if exists else 200, {"url": f"{site.url}/{repo}"})
        if parts[:2] == ["api", "models"]:
            repo, rest = "/".join(parts[2:4]), parts[4:]
        else:
            repo, rest = "/".join(parts[:2]).removesuffix(".git"), parts[2:]
        if repo not in site.commits:
            return self._send(404, {"error": "none"}, {"X-Error-Code": "RepoNotFound"})
        if rest[:2] == ["info", "lfs"]:
            return self._large_files(json.loads(body))
        revision = rest[1] if len(rest) > 1 else "main"
        found = site.find(repo, revision)
        if found is None:
            return self._send(404, {"error": "none"}, {"X-Error-Code": "RevisionNotFound"})
        sha, files = found
        if rest[:1] in ([], ["revision"]):
            siblings = [{"rfilename": name} for name in files]
            return self._send(200, {"id": repo, "sha": sha, "siblings": siblings})
        if rest[0] == "tree":
            return self._send(200, [self._entry(*item) for item in files.items()])
        if rest[0] == "paths-info":
            asked = json.loads(body)["paths"]
            return self._send(200, [self._entry(n, files[n]) for n in asked if n in files])
        if rest[0] == "preupload":
            modes = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(body)["files"]
            ]
            return self._send(200, {"files": modes})
        if rest[0] == "commit":
            return self._commit(repo, files, body)
        assert rest[0] == "resolve", path
        content = files.get("/".join(rest[2:]))
        if content is None:
            return self._send(404, {"error": "none"}, {"X-Error-Code": "EntryNotFound"})
        etag = hashlib.sha256(content).hexdigest()
        return self._send(200, content, {"ETag": f'"{etag}"', "X-Repo-Commit": sha})

    def _entry(self, name: str, content: bytes) -> dict[str, Any]:
        oid = hashlib.sha1(content).hexdigest()
        return {"type": "file", "path": name, "size": len(content), "oid": oid}

    def _large_files(self, asked: dict[str, Any]) -> None:
        objects = [
            {
                "oid": item["oid"],
                "size": item["size"],
                "actions": {"upload": {"href": f"{self.server.url}/upload/{item['oid']}"}},
            }
            for item in asked["objects"]
        ]
        self._send(200, {"transfer": "basic", "objects": objects})

    def _commit(self, repo: str, files: dict[str, bytes], body: bytes) -> None:
        files = dict(files)
        for line in body.decode().splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.server.uploaded[value["oid"]]
            elif entry["key"] == "deletedFile":
                del files[value["path"]]
        sha = self.server.commit(repo, files)
        url = f"{self.server.url}/{repo}/commit/{sha}"
        self._send(200, {"success": True, "commitOid": sha, "commitUrl": url})

    def _send(self, code: int, body: Any, headers: dict[str, str] | None = None) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(code)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def hub_site() -> Iterator[HubSite]:
    with HubSite() as site:
        thread = threading.Thread(target=site.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield site
        finally:
            site.shutdown()
            thread.join()
