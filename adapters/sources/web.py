"""WebSource: the folder of a web server as a source; WebClient: files over HTTP(S), with ranges."""

from __future__ import annotations

import base64
import binascii
import email.utils
import http.client
import netrc
import re
import ssl
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from email.message import Message
from typing import IO, Any

from loratory.adapters.sources.remote import (
    CONFIG,
    PICKLES,
    WEIGHTS,
    ChangedError,
    Checksum,
    DownloadLimits,
    RemoteFile,
    RemoteListing,
    Reply,
    SourceError,
    TransientError,
    pickled,
)

BLOCK = 256 * 2**10
"""Bytes read from a connection at once, at most."""

BUSY = {408, 425, 429, 500, 502, 503, 504}
"""Statuses after which another attempt may succeed."""


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects within http and https, never from https to http, and keeps credentials on their host."""

    def __init__(self, label: str) -> None:
        self._label = label

    def http_error_302(self, req: Any, fp: IO[bytes], code: int, msg: str, headers: Any) -> Any:
        target = urllib.parse.urljoin(req.full_url, headers.get("location") or headers.get("uri") or "")
        scheme = urllib.parse.urlsplit(target).scheme
        if scheme not in ("http", "https") or (scheme == "http" and req.type == "https"):
            fp.close()
            raise SourceError(
                f"source {self._label}: {req.full_url} redirects to {scheme}://, which is not followed: give the "
                "address of the files themselves"
            )
        return super().http_error_302(req, fp, code, msg, headers)

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302

    def redirect_request(self, req: Any, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str) -> Any:
        request = super().redirect_request(req, fp, code, msg, headers, newurl)
        if request is not None and request.host != req.host:
            request.remove_header("Authorization")
        return request


class WebClient:
    """HTTP requests within limits: a time-out for silence, checked redirects, failures as `SourceError`.

    ``label`` names the source in errors. Proxies are taken from the environment (``HTTPS_PROXY`` and the others).
    """

    def __init__(self, label: str, limits: DownloadLimits) -> None:
        self._label = label
        self._limits = limits
        self._opener = urllib.request.OpenerDirector()
        for handler in (
            urllib.request.ProxyHandler(),
            urllib.request.HTTPHandler(),
            urllib.request.HTTPSHandler(),
            _Redirects(label),
            urllib.request.HTTPErrorProcessor(),
            urllib.request.HTTPDefaultErrorHandler(),
        ):
            self._opener.add_handler(handler)

    def request(self, method: str, url: str, headers: Mapping[str, str]) -> http.client.HTTPResponse:
        """The response, its body unread. Raises `SourceError`, or `TransientError` where another attempt may help."""
        request = urllib.request.Request(url, method=method, headers={"Accept-Encoding": "identity", **headers})
        try:
            response: http.client.HTTPResponse = self._opener.open(request, timeout=self._limits.silence_s)
        except urllib.error.HTTPError as error:
            error.close()
            raise self._refused(error.code, url) from error
        except urllib.error.URLError as error:
            raise unreachable(self._label, url, error.reason) from error
        except (OSError, http.client.HTTPException) as error:
            raise unreachable(self._label, url, error) from error
        return response

    def _refused(self, status: int, url: str) -> SourceError:
        if status in (401, 403):
            return SourceError(
                f"source {self._label}: access to {url} is denied ({status}): give credentials that may read it "
                "(~/.netrc for a web server, HF_TOKEN for the Hub)"
            )
        if status in (404, 410):
            return MissingError(f"source {self._label}: {url} does not exist ({status}): correct the address")
        if status in BUSY:
            return TransientError(f"source {self._label}: {url} answers {status}: try again later")
        if status in (412, 416):
            return ChangedError(f"source {self._label}: {url} changed while it was fetched: fetch it again")
        return StatusError(f"source {self._label}: {url} answers {status}: correct the address or the server", status)

    def read(self, file: RemoteFile, offset: int, headers: Mapping[str, str]) -> Reply:
        """A file's bytes, from ``offset`` on if the server supports ranges.

        The range is conditional (If-Range, RFC 9110, section 13.1.5): a file that has changed arrives as a whole, and
        its ETag shows the change.
        """
        extra = {**headers}
        if offset:
            extra["Range"] = f"bytes={offset}-"
            if file.validator is not None:
                extra["If-Range"] = file.validator
        response = self.request("GET", file.locator, extra)
        seen = _validator(response.headers)
        if file.validator is not None and seen is not None and seen != file.validator:
            response.close()
            raise ChangedError(
                f"source {self._label}: {file.name} changed while it was fetched: fetch it again "
                "when no process writes it"
            )
        if response.headers.get("Content-Encoding", "identity").lower() not in ("", "identity"):
            response.close()
            raise SourceError(
                f"source {self._label}: the server compresses {file.name} although it was asked "
                "not to: disable compression for it"
            )
        start = 0
        if response.status == 206:
            match = re.fullmatch(r"bytes (\d+)-\d+/(?:\d+|\*)", response.headers.get("Content-Range", "").strip())
            start = int(match.group(1)) if match else -1
        if start not in (0, offset):
            response.close()
            raise SourceError(
                f"source {self._label}: the server answers with another range than requested: correct its handling of "
                f"Range for {file.name}"
            )
        return Reply(start, self._body(response, file.name))

    def _body(self, response: http.client.HTTPResponse, name: str) -> Iterator[bytes]:
        # read1 returns what has arrived: a read of a whole block would hide a slow server from the time limit.
        expected, received = _length(response.headers), 0
        with response:
            while True:
                try:
                    chunk = response.read1(BLOCK)
                except (OSError, http.client.HTTPException) as error:
                    raise TransientError(
                        f"source {self._label}: the connection broke while {name} was read "
                        f"({type(error).__name__}): fetch again"
                    ) from error
                if not chunk:
                    break
                received += len(chunk)
                yield chunk
        if expected is not None and received < expected:
            raise TransientError(
                f"source {self._label}: the connection ended after {received} of {expected} bytes of {name}: "
                "fetch again"
            )


class MissingError(SourceError):
    """The server has no such file (404, 410)."""


class StatusError(SourceError):
    """A response with a status that no other error describes."""

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.status = status


def unreachable(label: str, url: str, reason: object) -> SourceError:
    """The error for a request without a response, by its reason: unknown name, refusal, silence, certificate."""
    host = urllib.parse.urlsplit(url).netloc.rpartition("@")[2] or url
    words = str(reason)
    if isinstance(reason, ssl.SSLCertVerificationError):
        return SourceError(
            f"source {label}: the certificate of {host} is not trusted ({reason.verify_message}): correct it, or name "
            "its authority in SSL_CERT_FILE"
        )
    if isinstance(reason, TimeoutError) or "timed out" in words:
        return TransientError(f"source {label}: {host} does not answer: try again later, or raise silence_s")
    if isinstance(reason, ConnectionRefusedError) or "refused" in words:
        return TransientError(f"source {label}: {host} refuses the connection: start the server or correct the address")
    if (isinstance(reason, OSError) and "resolve" in words) or "Name or service" in words or "name resolution" in words:
        return TransientError(f"source {label}: the name {host} cannot be resolved: correct it, or the network's DNS")
    return TransientError(f"source {label}: {host} cannot be reached ({words}): check the network and try again")


@dataclass(frozen=True, slots=True)
class WebSource:
    """A folder of a web server: ``base`` is its URL with a slash at the end.

    HTTP has no listing, so the adapter's two files are requested by the names that PEFT gives them. Credentials come
    from the netrc file, as with curl -n.
    """

    label: str
    base: str
    limits: DownloadLimits

    @property
    def pinned(self) -> str | None:
        """None: a web server's files may change."""
        return None

    def listing(self) -> RemoteListing:
        """The two files with size and ETag (or date), from HEAD requests."""
        web = WebClient(self.label, self.limits)
        headers = self._headers()
        config = self._head(web, CONFIG, headers)
        if config is None:
            raise SourceError(
                f"source {self.label} holds no {CONFIG}: name the folder PEFT's save_pretrained wrote, as it is served"
            )
        weights = self._head(web, WEIGHTS, headers)
        if weights is None:
            for suffix in PICKLES[:2]:
                name = WEIGHTS.removesuffix(".safetensors") + suffix
                if self._head(web, name, headers) is not None:
                    raise SourceError(pickled(self.label, name))
            raise SourceError(f"source {self.label} holds no {WEIGHTS}: publish the safetensors file beside {CONFIG}")
        files = (config, weights)
        version = None
        if all(file.validator for file in files):
            version = " ".join(f"{file.validator}/{file.size}" for file in files)
        return RemoteListing(files, version)

    def read(self, file: RemoteFile, offset: int) -> Reply:
        """GET, with a range from ``offset`` on."""
        return WebClient(self.label, self.limits).read(file, offset, self._headers())

    def _head(self, web: WebClient, name: str, headers: Mapping[str, str]) -> RemoteFile | None:
        url = self.base + name
        try:
            try:
                response = web.request("HEAD", url, headers)
            except StatusError as error:
                if error.status not in (405, 501):
                    raise
                response = web.request("GET", url, headers)
        except MissingError:
            return None
        with response:
            validator = _validator(response.headers)
            return RemoteFile(
                name=name,
                locator=url,
                size=_length(response.headers),
                validator=validator,
                resumable=_is_strong(validator, response.headers),
                checksum=_declared(response.headers),
            )

    def _headers(self) -> dict[str, str]:
        try:
            login = netrc.netrc().authenticators(urllib.parse.urlsplit(self.base).hostname or "")
        except (OSError, netrc.NetrcParseError):
            return {}
        if login is None:
            return {}
        return {"Authorization": "Basic " + base64.b64encode(f"{login[0]}:{login[2]}".encode()).decode()}


def _length(headers: Message) -> int | None:
    text = headers.get("Content-Length", "")
    return int(text) if text.isascii() and text.isdigit() else None


def _validator(headers: Message) -> str | None:
    return headers.get("ETag") or headers.get("Last-Modified")


def _is_strong(validator: str | None, headers: Message) -> bool:
    """Whether two contents with this validator are the same byte for byte (RFC 9110, section 8.8)."""
    if validator is None or validator.startswith("W/"):
        return False
    if validator.startswith('"'):
        return True
    try:
        modified = email.utils.parsedate_to_datetime(validator)
        answered = email.utils.parsedate_to_datetime(headers.get("Date", ""))
    except ValueError:
        return False
    return (answered - modified).total_seconds() >= 1


def _declared(headers: Message) -> Checksum | None:
    """The sha256 a server declares: Repr-Digest (RFC 9530) or the older Digest (RFC 3230)."""
    text = f"{headers.get('Repr-Digest', '')},{headers.get('Digest', '')}"
    match = re.search(r"(?i)\bsha-256=:?([A-Za-z0-9+/]{43}=)", text)
    if match is None:
        return None
    try:
        return Checksum("sha256", base64.b64decode(match.group(1), validate=True).hex())
    except binascii.Error:
        return None
