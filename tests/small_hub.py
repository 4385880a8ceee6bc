"""A small server on the loopback that speaks the routes of the Hugging Face Hub, for the Hub's own client."""

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlparse

LARGE = (".safetensors", ".bin", ".npz", ".pth")  # kept in large-file storage, which another address serves


class SmallHub:
    """Repositories in memory, and what the server does wrong on purpose.

    Attributes:
      requests: `(method, path, headers)` of every request.
      gated, private: names of repositories.
      renamed: by former name of a repository, the one it has now.
      cut: by name of a file, after how many bytes its next downloads end.
      altered: by name of a file, what is sent in its place.
      down: whether every answer is 503.
    """

    def __init__(self):
        self.address, self.repositories, self.requests, self.blobs = "", {}, [], {}
        self.gated, self.private, self.renamed, self.cut, self.altered = set(), set(), {}, {}, {}
        self.down = False

    def commit(self, name, files, revision="main"):
        """Add a commit with all of its files, to which a revision points; return its hash."""
        files = {path: json.dumps(file).encode() if isinstance(file, dict) else file for path, file in files.items()}
        repository = self.repositories.setdefault(name, {"commits": {}, "revisions": {}})
        sha = hashlib.sha1(repr((name, sorted(files.items()))).encode()).hexdigest()
        repository["commits"][sha], repository["revisions"][revision] = files, sha
        return sha

    def __enter__(self):
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: SmallHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self._answer()

    def do_GET(self):
        self._answer()

    def _answer(self):
        path = unquote(urlparse(self.path).path)
        self.hub.requests.append((self.command, path, dict(self.headers)))
        if self.hub.down:
            return self._send(503)
        if match := re.fullmatch(r"/large/(\w+)/(.+)", path):
            return self._content(match[2], self.hub.blobs[match[1]])
        match = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path)
        match = match or re.fullmatch(r"/([^/]+/[^/]+)/resolve/(refs/pr/\d+|[^/]+)/(.+)", path)
        if not match:
            return self._send(404)
        name, revision, *file = match.groups()
        if name in self.hub.renamed:
            return self._send(307, {"Location": path.replace(name, self.hub.renamed[name])})
        repository = self.hub.repositories.get(name)
        if repository is None or (name in self.hub.private and self.headers.get("authorization") != "Bearer secret"):
            return self._send(401, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
        sha = repository["revisions"].get(revision or "main", revision)
        if sha not in repository["commits"]:
            return self._send(404, {"X-Error-Code": "RevisionNotFound"})
        files = repository["commits"][sha]
        if not file:
            return self._listing(name, sha, files)
        if name in self.hub.gated and self.headers.get("authorization") != "Bearer secret":
            return self._send(403, {"X-Error-Code": "GatedRepo", "X-Error-Message": "ask for access"})
        if file[0] not in files:
            return self._send(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": sha})
        self._file(file[0], files[file[0]], sha)

    def _listing(self, name, sha, files):
        siblings = []
        for path, content in files.items():
            facts = {"rfilename": path, "size": len(content), "blobId": hashlib.sha1(content).hexdigest()}
            if path.endswith(LARGE):
                facts["lfs"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
            siblings.append(facts)
        body = {"id": name, "modelId": name, "sha": sha, "siblings": siblings, "tags": ["license:apache-2.0"]}
        self._send(200, {"Content-Type": "application/json"}, json.dumps(body).encode())

    def _file(self, path, content, sha):
        if not path.endswith(LARGE):
            return self._content(path, content, {"X-Repo-Commit": sha, "ETag": f'"{hashlib.sha1(content).hexdigest()}"'})
        digest = hashlib.sha256(content).hexdigest()
        self.hub.blobs[digest] = content
        # Another host, so that the client does not take it for a renamed repository and leaves its token out.
        address = f"{self.hub.address.replace('127.0.0.1', 'localhost')}/large/{digest}/{path}"
        facts = {"X-Repo-Commit": sha, "X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(content))}
        self._send(302, {"Location": address, **facts})

    def _content(self, path, content, headers=None):
        content, status = self.hub.altered.get(path, content), 200
        headers = {"Accept-Ranges": "bytes", **(headers or {})}
        if match := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            headers["Content-Range"] = f"bytes {match[1]}-{len(content) - 1}/{len(content)}"
            content, status = content[int(match[1]) :], 206
        # The end of a download that is cut is announced, but never arrives.
        sent = self.hub.cut[path].pop(0) if self.command == "GET" and self.hub.cut.get(path) else len(content)
        self._send(status, headers, content, sent)

    def _send(self, status, headers=None, content=b"", sent=None):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content[: len(content) if sent is None else sent])
        if sent is not None and sent < len(content):
            self.close_connection = True
