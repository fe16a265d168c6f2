"""A loopback stand-in for W&B's servers: as much of their API as runs need, and what arrived.

It is what W&B 0.31 asks for, found by listening to it: a change of its protocol shows as a
failing test, not as a silent pass, because what is not known here is answered with nothing.
"""

from __future__ import annotations

import gzip
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import yaml

ME = {"id": "u", "entity": "me", "username": "me", "email": "me@example.org", "flags": "{}"}
PROJECT = {"id": "p", "name": "mstag", "entity": {"id": "e", "name": "me"}}


class Server(ThreadingHTTPServer):
    """What it has been told, to be looked at by tests."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.is_dead = threading.Event()
        """Set: requests are taken and never answered."""
        self.runs: dict[str, dict[str, Any]] = {}
        """Id -> what it was made with."""
        self.lines: dict[str, list[dict[str, Any]]] = {}
        """Id of a run -> its history."""
        self.uploads: dict[str, bytes] = {}
        """Path -> content."""
        self.artifacts: dict[str, dict[str, Any]] = {}
        """Id -> what it was made of, and "state"."""
        self.used: list[tuple[str, str]] = []
        """(run, id of an artifact), for each that a run takes in."""
        self.views: dict[str, dict[str, Any]] = {}
        """Name -> specification, of workspaces that were saved."""
        self.sweep: dict[str, Any] = {}
        """The last sweep that was handed over."""
        self.num_heartbeats = 0
        self.asked: list[str] = []
        """The first lines of queries, for those who extend this."""

    def handle_error(self, *_: Any) -> None:
        """Nothing: clients that hang up are no news."""

    def answer(self, query: str, given: dict[str, Any]) -> dict[str, Any]:
        """The ``data`` of a GraphQL query."""
        self.asked.append(query.strip().split("\n")[0])
        if "upsertBucket" in query:
            run = given["name"]
            inserted = run not in self.runs
            about = self.runs.setdefault(run, {})
            about |= {key: value for key, value in given.items() if value is not None}
            return {"upsertBucket": {"bucket": self.bucket(run), "inserted": inserted}}
        if "viewer" in query:
            return {"viewer": {**ME, "teams": {"edges": []}}}
        if "createRunFiles" in query:
            files = [
                {"name": name, "uploadUrl": f"{self.address}/run/{name}"} for name in given["files"]
            ]
            return {"createRunFiles": {"runID": "x", "uploadHeaders": [], "files": files}}
        if "bucket(name" in query:
            found = self.bucket(given["name"]) if given["name"] in self.runs else None
            return {"model": {**PROJECT, "bucket": found}}
        if found := self.answer_of_sweeps(query, given):
            return found
        if "upsertView" in query:
            inserted = given["name"] not in self.views
            self.views[given["name"]] = json.loads(given["spec"])
            view = {"id": f"id-{given['name']}", "name": given["name"]}
            return {"upsertView": {"view": view, "inserted": inserted}}
        if "allViews" in query:
            spec = self.views.get(given["viewName"])
            node = {"id": f"id-{given['viewName']}", "displayName": "mstag"}
            edges = [{"node": node | {"spec": json.dumps(spec)}}] if spec else []
            return {"project": {"allViews": {"edges": edges}}}
        return self.answer_of_artifacts(query, given)

    def answer_of_sweeps(self, query: str, given: dict[str, Any]) -> dict[str, Any]:
        """The same, of queries for sweeps: one trial, of the first of each list of values."""
        if "mutation UpsertSweep" in query:
            self.sweep = yaml.safe_load(given["config"])
            sweep = {"name": "sweep1", "project": PROJECT}
            return {"upsertSweep": {"sweep": sweep, "configValidationWarnings": []}}
        if "query SweepWithRuns" in query:
            about = {"id": "s", "name": "sweep1", "method": "random", "state": "RUNNING"}
            about |= {"config": yaml.safe_dump(self.sweep), "createdAt": "2026-01-01T00:00:00"}
            absent = ("description", "heartbeatAt", "updatedAt", "controller", "scheduler")
            about |= {"runs": {"edges": []}, "earlyStopJobRunning": False, "runCount": 0}
            return {"project": {"sweep": {**dict.fromkeys(absent), **about}}}
        if "mutation CreateAgent" in query:
            return {"createAgent": {"agent": {"id": "agent1"}}}
        if "agentHeartbeat" in query:
            self.num_heartbeats += 1
            drawn = {k: {"value": v["values"][0]} for k, v in self.sweep["parameters"].items()}
            trial = {"type": "run", "run_id": "trial1", "program": "train.py", "args": drawn}
            commands = [trial] if self.num_heartbeats == 1 else []
            beat = {"agent": {"id": "agent1"}, "commands": json.dumps(commands)}
            return {"agentHeartbeat": beat}
        return {}

    def answer_of_artifacts(self, query: str, given: dict[str, Any]) -> dict[str, Any]:
        """The same, of queries for artifacts."""
        wanted = given.get("input") or given
        if "mutation CreateArtifactManifest" in query:
            return {"createArtifactManifest": {"artifactManifest": self.manifest(given)}}
        if "mutation UpdateArtifactManifest" in query:
            return {"updateArtifactManifest": {"artifactManifest": self.manifest(given)}}
        if "mutation CreateArtifactFiles" in query:
            specs = given.get("artifactFiles") or given["input"]["artifactFiles"]
            edges = [
                {
                    "node": {
                        "id": spec["name"],
                        "name": spec["name"],
                        "displayName": spec["name"],
                        "uploadUrl": f"{self.address}/artifact/{spec['artifactID']}/{spec['name']}",
                        "uploadHeaders": [],
                        "storagePath": spec["name"],
                        "uploadMultipartUrls": None,
                        "artifact": {"id": spec["artifactID"]},
                    }
                }
                for spec in specs
            ]
            return {"createArtifactFiles": {"files": {"edges": edges}}}
        if "mutation CreateArtifact" in query:
            # The same content is the same version, as W&B has it.
            number = next(
                (
                    number
                    for number, made in self.artifacts.items()
                    if (made["digest"], made["artifactCollectionName"])
                    == (wanted["digest"], wanted["artifactCollectionName"])
                ),
                f"artifact{len(self.artifacts)}",
            )
            made = self.artifacts.setdefault(number, {**wanted, "state": "PENDING"})
            made["aliases"] = [*made["aliases"], *wanted["aliases"]]
            made.setdefault("runs", []).append(wanted["runName"])
            artifact = {"id": number, "state": made["state"], "artifactSequence": None}
            artifact["artifactSequence"] = {"latestArtifact": None}
            return {"createArtifact": {"artifact": artifact}}
        if "mutation CommitArtifact" in query:
            number = wanted["artifactID"]
            self.artifacts[number]["state"] = "COMMITTED"
            return {"commitArtifact": {"artifact": {"id": number, "digest": "d"}}}
        if "mutation UseArtifact" in query:
            self.used.append((wanted["runName"], wanted["artifactID"]))
            return {"useArtifact": {"artifact": {"id": wanted["artifactID"], "digest": "d"}}}
        if "query ArtifactType" in query:
            return {"project": None}
        if "query ArtifactByID" in query:
            return {"artifact": self.artifact(given["id"])}
        return {}

    def artifact(self, number: str) -> dict[str, Any]:
        """What the servers say of an artifact."""
        made = self.artifacts[number]
        sequence = {"__typename": "ArtifactSequence", "name": made["artifactCollectionName"]}
        absent = ("description", "historyStep", "updatedAt")
        return {
            **{"__typename": "Artifact", "id": number, "state": made["state"], "versionIndex": 0},
            **{"artifactSequence": sequence | {"project": PROJECT | {"internalId": "1"}}},
            **{"artifactType": {"name": made["artifactTypeName"]}, "metadata": made["metadata"]},
            **{"ttlIsInherited": False, "tags": [], "aliases": [], "size": 1, "fileCount": 1},
            **{"digest": made["digest"], "commitHash": "c", "createdAt": "2026-01-01T00:00:00Z"},
            "ttlDurationSeconds": 0,
            **dict.fromkeys(absent),
        }

    def name_of(self, number: str) -> str:
        """An artifact's name, without its version."""
        return str(self.artifacts[number]["artifactCollectionName"])

    def manifest(self, given: dict[str, Any]) -> dict[str, Any]:
        """Where a manifest is uploaded to."""
        wanted = given.get("input") or given
        number = wanted.get("artifactManifestID") or wanted.get("artifactID")
        file = {"id": number, "name": "m", "displayName": "m", "uploadHeaders": []}
        url = f"{self.address}/manifest/{number}"
        return {"id": number, "file": {**file, "uploadUrl": url}}

    def bucket(self, run: str) -> dict[str, Any]:
        """What the servers say of a run."""
        about, lines = self.runs[run], self.lines.get(run, [])
        tail = [json.dumps(line) for line in lines[-1:]]
        return {
            **{"id": f"id-{run}", "name": run, "project": PROJECT, "description": None},
            **{"displayName": about.get("displayName"), "config": about.get("config", "{}")},
            **{"sweepName": None, "tags": [], "notes": None, "wandbConfig": '{"t": 1}'},
            **{"summaryMetrics": tail[0] if tail else "{}"},
            **{"historyLineCount": len(lines), "logLineCount": 0, "eventsLineCount": 0},
            **{"historyTail": json.dumps(tail), "eventsTail": "[]"},
        }

    def take_stream(self, run: str, content: dict[str, Any]) -> None:
        """Lines of a run's history, each at the place that they are said to have."""
        found = content.get("files", {}).get("wandb-history.jsonl")
        if found:
            lines = self.lines.setdefault(run, [])
            del lines[found["offset"] :]
            lines += [json.loads(line) for line in found["content"]]


class Handler(BaseHTTPRequestHandler):
    """Takes a request apart."""

    protocol_version = "HTTP/1.1"
    server: Server

    def do_POST(self) -> None:
        """Answers everything."""
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Content-Encoding") == "gzip":
            content = gzip.decompress(content)
        if self.server.is_dead.is_set():
            time.sleep(600)
        data: dict[str, Any] = {}
        if self.path.startswith("/graphql"):
            request = json.loads(content)
            data = self.server.answer(request["query"], request.get("variables") or {})
        elif self.path.endswith("/file_stream"):
            self.server.take_stream(self.path.split("/")[-2], json.loads(content))
        elif self.command == "PUT":
            self.server.uploads[self.path] = content
        answer = json.dumps({"data": data}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_GET = do_PUT = do_POST  # noqa: N815 (http.server's names)

    def log_message(self, *_: Any) -> None:
        """Nothing: the test's output is no server's log."""


@contextmanager
def wandb_server() -> Iterator[Server]:
    """A server on this machine, for as long as the block lasts."""
    with Server() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()
