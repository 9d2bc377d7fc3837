"""Servers on loopback that speak what adapters are fetched over: HTTP with faults, the Hub, Google's JSON API.

They are other people's protocols written down from their documentation, so that what is tested meets a real socket.
"""

from __future__ import annotations

import base64
import datetime
import hashlib
import ipaddress
import json
import re
import ssl
import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from loratory.adapters.sources.remote import Checksum, RemoteFile, RemoteListing, Reply

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"


def adapter(rank: int = 4, hidden: int = 64, seed: int = 0) -> dict[str, bytes]:
    """The files of a small adapter as PEFT's save_pretrained writes them: q_proj and v_proj of two layers."""
    draw = np.random.default_rng(seed)
    tensors = {}
    for layer in range(2):
        for module in ("q_proj", "v_proj"):
            stem = f"base_model.model.model.layers.{layer}.self_attn.{module}"
            tensors[f"{stem}.lora_A.weight"] = draw.standard_normal((rank, hidden)).astype(np.float32)
            tensors[f"{stem}.lora_B.weight"] = draw.standard_normal((hidden, rank)).astype(np.float32)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "acme/base",
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": ["q_proj", "v_proj"],
        "bias": "none",
    }
    return {CONFIG: json.dumps(config).encode(), WEIGHTS: safetensors.numpy.save(tensors, {"format": "pt"})}


@dataclass
class Fault:
    """What goes wrong with one GET: the connection ends after ``cut`` bytes of the body; or it waits there for ``go``.

    ``reached`` is set at that point. ``status`` and ``location`` answer with that instead of the file.
    """

    cut: int | None = None
    hold: int | None = None
    status: int | None = None
    location: str | None = None
    reached: threading.Event = field(default_factory=threading.Event)
    go: threading.Event = field(default_factory=threading.Event)


class Server:
    """A web server of files, kept as path -> bytes, that counts what it is asked and fails as told."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.faults: dict[str, list[Fault]] = {}
        self.ranges = True
        self.heads = True
        self.etags = "strong"
        self.headers: dict[str, str] = {}
        self.length_offset = 0
        self.password: str | None = None
        self._held: list[Fault] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                outer._serve(self)

            do_HEAD = do_GET  # noqa: N815

            def log_message(self, *args: Any) -> None:
                pass

        self._httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._httpd.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._httpd.server_port}"

    def secure(self, folder: Path) -> Path:
        """Serves over TLS from now on, with a new certificate for 127.0.0.1; returns the file that trusts it."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
        now = datetime.datetime.now(datetime.UTC)
        address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
        builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        builder = builder.not_valid_before(now - datetime.timedelta(days=1))
        builder = builder.not_valid_after(now + datetime.timedelta(days=1)).add_extension(address, critical=False)
        certificate, secret = folder / "certificate.pem", folder / "key.pem"
        certificate.write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
        secret.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, secret)
        self._httpd.socket = context.wrap_socket(self._httpd.socket, server_side=True)
        self.url = self.url.replace("http://", "https://")
        return certificate

    @contextmanager
    def running(self) -> Iterator[Server]:
        """Serves while in the block; whatever a fault holds back is let go at its end."""
        thread = threading.Thread(target=self._httpd.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            for fault in self._held:
                fault.go.set()
            self._httpd.shutdown()
            self._httpd.server_close()
            thread.join()

    def gets(self, ending: str = "") -> list[str]:
        """Paths of the GET requests so far, those with this ending."""
        return [path for method, path, _ in self.requests if method == "GET" and path.endswith(ending)]

    def _serve(self, handler: BaseHTTPRequestHandler) -> None:
        path = urllib.parse.unquote(urllib.parse.urlsplit(handler.path).path)
        self.requests.append((handler.command, path, dict(handler.headers.items())))
        try:
            self.answer(handler, path)
        except (BrokenPipeError, ConnectionResetError):
            handler.close_connection = True

    def answer(self, handler: BaseHTTPRequestHandler, path: str) -> None:
        """One request."""
        if self.password is not None:
            wanted = "Basic " + base64.b64encode(self.password.encode()).decode()
            if handler.headers.get("Authorization") != wanted:
                return self.plain(handler, 401)
        if handler.command == "HEAD" and not self.heads:
            return self.plain(handler, 405)
        if path not in self.files:
            return self.plain(handler, 404)
        return self.content(handler, path, self.files[path], self.headers)

    def plain(self, handler: BaseHTTPRequestHandler, status: int, body: bytes = b"", **headers: str) -> None:
        """An answer without ranges; underscores in header names stand for dashes."""
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        if handler.command != "HEAD":
            handler.wfile.write(body)

    def content(self, handler: BaseHTTPRequestHandler, path: str, body: bytes, headers: dict[str, str]) -> None:
        """A file, whole or in part (RFC 9110, sections 13 and 14), with the next fault of its path."""
        pending = self.faults.get(path, [])
        fault = pending[0] if pending and handler.command == "GET" else Fault()
        if pending and handler.command == "GET":
            pending.pop(0)
        if fault.location is not None:
            return self.plain(handler, fault.status or 302, Location=fault.location)
        if fault.status is not None:
            return self.plain(handler, fault.status)
        tag = f'"{hashlib.sha1(body).hexdigest()}"'
        etag = {"strong": tag, "weak": f"W/{tag}", "none": None}[self.etags]
        start, stop, status = 0, len(body), 200
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", handler.headers.get("Range", ""))
        condition = handler.headers.get("If-Range")
        if asked and self.ranges and condition in (None, etag):
            start = int(asked.group(1))
            stop = min(int(asked.group(2)) + 1, len(body)) if asked.group(2) else len(body)
            if start >= len(body):
                return self.plain(handler, 416)
            status = 206
        handler.send_response(status)
        if etag:
            handler.send_header("ETag", etag)
        if status == 206:
            handler.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(body)}")
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(stop - start + self.length_offset))
        handler.end_headers()
        if handler.command == "HEAD":
            return None
        data = body[start:stop]
        if fault.cut is not None or self.length_offset > 0:
            handler.close_connection = True
        if fault.hold is not None:
            handler.wfile.write(data[: fault.hold])
            self._held.append(fault)
            fault.reached.set()
            fault.go.wait()
            data = data[fault.hold :]
        handler.wfile.write(data if fault.cut is None else data[: fault.cut])
        return None


class HubServer(Server):
    """The Hub's endpoints that huggingface_hub calls: model and tree of a revision, models of an author, resolve.

    ``repos``: repository -> branch -> commit; ``commits``: commit -> path -> bytes. Files of a kind that the Hub keeps
    in LFS are redirected to another path, as it redirects to its store.
    """

    def __init__(self) -> None:
        super().__init__()
        self.repos: dict[str, dict[str, str]] = {}
        self.commits: dict[str, dict[str, bytes]] = {}
        self.token: str | None = None
        self.gated: set[str] = set()

    def push(self, repo: str, files: dict[str, bytes], branch: str = "main") -> str:
        """Makes a commit of these files the branch's head; returns its id."""
        commit = hashlib.sha1(repr((repo, sorted(files.items()))).encode()).hexdigest()
        self.commits[commit] = dict(files)
        self.repos.setdefault(repo, {})[branch] = commit
        return commit

    def answer(self, handler: BaseHTTPRequestHandler, path: str) -> None:
        # The revision may hold an encoded slash, so it is matched before the path is decoded.
        raw, _, query = handler.path.partition("?")
        if raw.startswith("/lfs/"):
            return self.content(handler, path, self.files[path], {})
        if self.token is not None and handler.headers.get("Authorization") != f"Bearer {self.token}":
            return self.plain(handler, 401, X_Error_Code="RepoNotFound")
        if raw == "/api/models":
            author = urllib.parse.parse_qs(query)["author"][0]
            models = [self._model(repo) for repo in self.repos if repo.startswith(f"{author}/")]
            return self.plain(handler, 200, json.dumps(models).encode(), Content_Type="application/json")
        for pattern in (
            r"/api/models/([^/]+/[^/]+)(/revision)(?:/([^/]+))(.*)",
            r"/api/models/([^/]+/[^/]+)(/tree)/([^/]+)(.*)",
            r"/api/models/([^/]+/[^/]+)()()()",
            r"/([^/]+/[^/]+)(/resolve)/([^/]+)(/.*)",
        ):
            if match := re.fullmatch(pattern, raw):
                repo, verb, revision, rest = (urllib.parse.unquote(part or "") for part in match.groups())
                return self._answer(handler, repo, verb, revision or "main", rest.lstrip("/"), query)
        return self.plain(handler, 404)

    def _model(self, repo: str) -> dict[str, Any]:
        siblings = [{"rfilename": name} for name in self.commits[self.repos[repo]["main"]]]
        return {"id": repo, "modelId": repo, "sha": self.repos[repo]["main"], "siblings": siblings}

    def _answer(
        self, handler: BaseHTTPRequestHandler, repo: str, verb: str, revision: str, rest: str, query: str
    ) -> None:
        if repo not in self.repos:
            return self.plain(handler, 404, X_Error_Code="RepoNotFound")
        if repo in self.gated:
            return self.plain(handler, 403, X_Error_Code="GatedRepo")
        commit = self.repos[repo].get(revision, revision)
        if commit not in self.commits:
            return self.plain(handler, 404, X_Error_Code="RevisionNotFound")
        files = self.commits[commit]
        if verb in ("", "/revision"):
            body = {**self._model(repo), "sha": commit}
            return self.plain(handler, 200, json.dumps(body).encode(), Content_Type="application/json")
        if verb == "/tree":
            return self._tree(handler, files, rest, "recursive=true" in query.lower())
        if rest not in files:
            return self.plain(handler, 404, X_Error_Code="EntryNotFound")
        sha256 = hashlib.sha256(files[rest]).hexdigest()
        if rest.endswith((".safetensors", ".bin")):
            stored = f"/lfs/{sha256}"
            self.files.setdefault(stored, files[rest])
            return self.plain(
                handler, 302, Location=stored, X_Repo_Commit=commit, X_Linked_ETag=f'"{sha256}"', ETag=f'"{sha256}"'
            )
        return self.content(handler, f"/{rest}", files[rest], {"X-Repo-Commit": commit})

    def _tree(self, handler: BaseHTTPRequestHandler, files: dict[str, bytes], folder: str, recursive: bool) -> None:
        start = f"{folder}/" if folder else ""
        found: dict[str, dict[str, Any]] = {}
        for path, data in files.items():
            if not path.startswith(start):
                continue
            head, slash, _ = path[len(start) :].partition("/")
            if slash:
                found[start + head] = {"type": "directory", "path": start + head, "oid": "0" * 40, "size": 0}
                if not recursive:
                    continue
            oid = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            item: dict[str, Any] = {"type": "file", "path": path, "oid": oid, "size": len(data)}
            if path.endswith((".safetensors", ".bin")):
                sha256 = hashlib.sha256(data).hexdigest()
                item["lfs"] = {"oid": sha256, "size": len(data), "pointerSize": 134}
            found[path] = item
        if start and not found:
            return self.plain(handler, 404, X_Error_Code="EntryNotFound")
        return self.plain(handler, 200, json.dumps(list(found.values())).encode(), Content_Type="application/json")


class GoogleServer(Server):
    """Google Cloud Storage's JSON API as far as a reader needs it: objects.list with pages, objects.get alt=media.

    Objects are ``files`` under ``/bucket/key``. A generation is made of the content, so it changes with it.
    """

    page = 2
    """Objects listed at a time, few so that a listing has pages."""

    def answer(self, handler: BaseHTTPRequestHandler, path: str) -> None:
        raw, _, query = handler.path.partition("?")
        asked = {key: values[0] for key, values in urllib.parse.parse_qs(query).items()}
        if match := re.fullmatch(r"(?:/download)?/storage/v1/b/([^/]+)/o/([^/]+)", raw):
            bucket, key = (urllib.parse.unquote(part) for part in match.groups())
            data = self.files.get(f"/{bucket}/{key}")
            if data is None or asked.get("generation", _generation(data)) != _generation(data):
                return self.plain(handler, 404)
            return self.content(handler, f"/{bucket}/{key}", data, {})
        if match := re.fullmatch(r"/storage/v1/b/([^/]+)/o", raw):
            return self._list(handler, match.group(1), asked)
        return self.plain(handler, 404)

    def _list(self, handler: BaseHTTPRequestHandler, bucket: str, asked: dict[str, str]) -> None:
        prefix, delimiter = asked.get("prefix", ""), asked.get("delimiter", "")
        if not any(path.startswith(f"/{bucket}/") for path in self.files):
            return self.plain(handler, 404)
        keys = sorted(path[len(bucket) + 2 :] for path in self.files if path.startswith(f"/{bucket}/{prefix}"))
        keys = [key for key in keys if not delimiter or delimiter not in key[len(prefix) :]]
        start = int(asked.get("pageToken", 0))
        body: dict[str, Any] = {"kind": "storage#objects", "items": []}
        for key in keys[start : start + self.page]:
            data = self.files[f"/{bucket}/{key}"]
            body["items"].append(
                {
                    "name": key,
                    "bucket": bucket,
                    "size": str(len(data)),
                    "generation": _generation(data),
                    "md5Hash": base64.b64encode(hashlib.md5(data).digest()).decode(),
                }
            )
        if start + self.page < len(keys):
            body["nextPageToken"] = str(start + self.page)
        return self.plain(handler, 200, json.dumps(body).encode(), Content_Type="application/json")


def _generation(data: bytes) -> str:
    return str(int.from_bytes(hashlib.sha1(data).digest()[:6], "big"))


def put(server: Server, files: dict[str, bytes], folder: str = "/lora") -> None:
    """Makes the server serve these files in a folder."""
    server.files.update({f"{folder}/{name}": data for name, data in files.items()})


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a folder, name -> bytes."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def total(files: dict[str, bytes]) -> int:
    """Bytes of these files together."""
    return sum(len(data) for data in files.values())


def other(seed: int) -> dict[str, bytes]:
    """An adapter that shares no file with one of another seed."""
    files = adapter(seed=seed)
    return {**files, CONFIG: files[CONFIG][:-1] + b', "seed": %d}' % seed}


@dataclass
class Memory:
    """A remote in memory that counts its reads."""

    files: dict[str, bytes]
    version: str | None = "1"
    declares: bool = False
    sized: bool = True
    reads: list[tuple[str, int]] = field(default_factory=list)

    @property
    def pinned(self) -> str | None:
        return None

    def listing(self) -> RemoteListing:
        files = []
        for name, data in self.files.items():
            checksum = Checksum("sha256", hashlib.sha256(data).hexdigest()) if self.declares else None
            files.append(RemoteFile(name, name, len(data) if self.sized else None, self.version, True, checksum))
        return RemoteListing(tuple(files), self.version)

    def read(self, file: RemoteFile, offset: int) -> Reply:
        self.reads.append((file.name, offset))
        data = self.files[file.name][offset:]
        return Reply(offset, iter([data[:50], data[50:]]))
