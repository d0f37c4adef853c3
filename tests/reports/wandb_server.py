"""A local stand-in for W&B's server: as much of its API as the real client calls for a run and for a report.

It keeps what it is sent: history by line number, as the real one does, so that a line sent twice is one line. `mode` makes it
misbehave: hang (accepts and never answers), error (500), reset (cuts the answer off in its middle), wrong (200 and nonsense).
"""

import contextlib
import gzip
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PROJECT = {"id": "P", "internalId": "UDox", "name": "ldmlab", "entity": {"id": "E", "name": "me"}, "entityName": "me"}


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.mode, self.modes = "ok", None  # modes: an iterator of modes, one a request
        self.stop = threading.Event()
        self.requests: list[tuple[str, str]] = []  # (mode, what)
        self.runs: dict[str, dict[str, Any]] = {}
        self.artifacts: dict[str, dict[str, Any]] = {}  # by collection and digest
        self.views: dict[str, dict[str, Any]] = {}
        self.files: set[str] = set()
        self.lock = threading.Lock()
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def history(self, id: str) -> list[dict[str, Any]]:
        lines = self.runs[id]["history"]
        return [lines[n] for n in sorted(lines)]

    def close(self) -> None:
        self.stop.set()
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *args: Any) -> None:
        pass

    def handle(self) -> None:
        with contextlib.suppress(OSError):  # the client was ended
            super().handle()

    def do_GET(self) -> None:
        self._answer({})

    def do_PUT(self) -> None:
        self._body()
        self.server.files.add(self.path)
        self._answer({})

    def do_POST(self) -> None:
        body = self._body()
        server = self.server
        mode = next(server.modes) if server.modes is not None else server.mode
        server.requests.append((mode, self.path))
        if mode == "hang":
            server.stop.wait(30)
            self.close_connection = True
        elif mode == "error":
            self._answer({"error": "no"}, 500)
        elif mode == "wrong":
            self._answer({"data": {"upsertBucket": {"bucket": "?"}, "who": [1]}})
        else:
            with server.lock:
                answer = self._graphql(json.loads(body)) if self.path == "/graphql" else self._stream(body)
            self._answer(answer, cut=mode == "reset")

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            body = b"".join(parts)
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

    def _answer(self, value: Any, code: int = 200, cut: bool = False) -> None:
        text = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text[: len(text) // 2] if cut else text)
        self.close_connection = self.close_connection or cut

    def _stream(self, body: bytes) -> Any:
        """/files/<entity>/<project>/<run>/file_stream: lines of history at their numbers."""
        parts = self.path.strip("/").split("/")
        if parts[0] != "files":
            return {}
        run, said = self.server.runs.setdefault(parts[3], new_run()), json.loads(body or b"{}")
        chunk = (said.get("files") or {}).get("wandb-history.jsonl")
        if chunk:
            for n, line in enumerate(chunk["content"], chunk["offset"]):
                run["history"][n] = json.loads(line)
        summary = (said.get("files") or {}).get("wandb-summary.json")
        if summary:
            run["summary"] = json.loads(summary["content"][-1])
        if "exitcode" in said:
            run["exit"] = said["exitcode"]
        return {}

    def _graphql(self, said: dict[str, Any]) -> Any:
        query, v, server = said["query"], said.get("variables") or {}, self.server
        asked = v.get("input") or v
        if "LdmlabRows" in query:
            run = server.runs.get(v["name"])
            return {"data": {"project": {"run": run and {"historyLineCount": len(run["history"])}}}}
        if "LdmlabArtifact" in query:
            name, _, alias = v["name"].rpartition(":")
            found = [a for a in server.artifacts.values() if a["name"] == name and alias in a["aliases"]]
            return {"data": {"project": {"artifact": found[0] and {"state": found[0]["state"]} if found else None}}}
        if "GetProjects" in query:
            node = PROJECT | {"createdAt": "2026-01-01T00:00:00Z", "isBenchmark": False, "user": None}
            page = {"edges": [{"node": node, "cursor": ""}], "pageInfo": {"endCursor": None, "hasNextPage": False}}
            return {"data": {"models": page}}
        for name in CALLS:
            if f"{name}(" in query:
                return {"data": CALLS[name](server, v, asked)}
        if "serverInfo" in query and "viewer" not in query:
            return {"data": {"serverInfo": {"features": []}}}
        return {"data": {"viewer": {"id": "U", "entity": "me", "username": "me", "email": "me@lab", "name": "me", "flags": "{}",
                                    "admin": False, "teams": {"edges": []}, "apiKeys": {"edges": []}},
                         "serverInfo": {"cliVersionInfo": {}}, "project": PROJECT}}  # fmt: skip


def new_run() -> dict[str, Any]:
    return {"history": {}, "summary": {}, "upserts": 0}


def upsert_run(server: Server, v: dict[str, Any], asked: dict[str, Any]) -> Any:
    run = server.runs.setdefault(v["name"], new_run())
    run["upserts"] += 1
    run |= {name: v[name] for name in ("groupName", "jobType", "tags", "displayName", "notes") if v.get(name)}
    run["config"] = json.loads(v.get("config") or "{}")
    run["project"] = v.get("project")
    bucket = {"id": f"B-{v['name']}", "name": v["name"], "displayName": v.get("displayName") or "", "description": ""}
    bucket |= {"config": v.get("config"), "sweepName": None, "historyLineCount": len(run["history"])}
    return {"upsertBucket": {"bucket": bucket | {"project": PROJECT}, "inserted": run["upserts"] == 1}}


def create_artifact(server: Server, v: dict[str, Any], asked: dict[str, Any]) -> Any:
    key = f"{asked['artifactCollectionName']}:{asked['digest']}"
    found = server.artifacts.setdefault(
        key, {"id": f"A-{len(server.artifacts)}", "runs": set(), "used": set(), "state": "PENDING", "aliases": set()}
    )
    found |= {"name": asked["artifactCollectionName"], "type": asked["artifactTypeName"]}
    found["aliases"] |= {each["alias"] for each in asked["aliases"]}
    found["runs"].add(asked["runName"])
    return {
        "createArtifact": {
            "artifact": {
                "id": found["id"],
                "state": found["state"],
                "artifactSequence": {"id": "S", "latestArtifact": None},
            }
        }
    }


def commit_artifact(server: Server, v: dict[str, Any], asked: dict[str, Any]) -> Any:
    for found in server.artifacts.values():
        if found["id"] == v["artifactID"]:
            found["state"] = "COMMITTED"
    return {"commitArtifact": {"artifact": {"id": v["artifactID"], "digest": "d"}}}


def use_artifact(server: Server, v: dict[str, Any], asked: dict[str, Any]) -> Any:
    for found in server.artifacts.values():
        if found["id"] == asked.get("artifactID"):
            found["used"].add(asked["runName"])
    return {"useArtifact": {"artifact": {"id": asked.get("artifactID"), "digest": "d"}}}


def create_manifest(server: Server, v: dict[str, Any], asked: dict[str, Any]) -> Any:
    file = {"id": "F", "uploadUrl": f"{server.url}/storage/manifest/{v['artifactID']}", "uploadHeaders": []}
    return {"createArtifactManifest": {"artifactManifest": {"id": "M", "file": file}}}


def create_artifact_files(server: Server, v: dict[str, Any], asked: dict[str, Any]) -> Any:
    nodes = [
        {"node": {"storagePath": "x", "uploadUrl": f"{server.url}/storage/{f['artifactID']}/{f['name']}", "uploadHeaders": [],
                  "uploadMultipartUrls": None, "artifact": {"id": f["artifactID"]}, "name": f["name"], "displayName": f["name"]}}
        for f in asked["artifactFiles"]
    ]  # fmt: skip
    return {"createArtifactFiles": {"files": {"edges": nodes}}}


def create_run_files(server: Server, v: dict[str, Any], asked: dict[str, Any]) -> Any:
    files = [{"name": name, "uploadUrl": f"{server.url}/storage/{v['run']}/{name}"} for name in v["files"]]
    return {"createRunFiles": {"runID": f"B-{v['run']}", "uploadHeaders": [], "files": files}}


def upsert_view(server: Server, v: dict[str, Any], asked: dict[str, Any]) -> Any:
    id = v.get("id") or f"Vmlldzo{len(server.views) + 1}"
    server.views[id] = {**v, "id": id, "saves": server.views.get(id, {}).get("saves", 0) + 1}
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(0))
    view = {
        "id": id,
        "name": v["name"],
        "displayName": v["displayName"],
        "description": v["description"],
        "type": v["type"],
    }
    view |= {"project": {"id": "P", "name": v["projectName"], "entityName": v["entityName"]}, "spec": v["spec"]}
    view |= {"createdAt": now, "updatedAt": now, "user": {"name": "me", "username": "me", "userInfo": {}}}
    return {"upsertView": {"view": view, "inserted": v.get("id") is None}}


CALLS = {
    "upsertBucket": upsert_run, "createArtifact": create_artifact, "commitArtifact": commit_artifact, "useArtifact": use_artifact,
    "createArtifactManifest": create_manifest, "createArtifactFiles": create_artifact_files, "createRunFiles": create_run_files,
    "upsertView": upsert_view,
}  # fmt: skip
