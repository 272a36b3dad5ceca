"""Dataset archives: fetched from the first source that has them, verified before they get their name.

A download in progress lies in `.partial` beside the dataset's folder, so that what carries the final name is whole.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import shutil
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import BinaryIO

from pose.config import ArchiveParams, ArchiveSource
from pose.data.unpacking import is_archive, unpack
from pose.digests import file_sha256
from pose.errors import ConfigError, DataError
from pose.progress import say, track

__all__ = ["fetch", "unpack"]

ATTEMPTS = 5
"""Tries in a row that bring no byte before a source is given up."""
BACKOFF_SECONDS = 1.0
"""First pause between two tries; it doubles, up to LONGEST_PAUSE."""
LONGEST_PAUSE = 60.0
TIMEOUT_SECONDS = 30.0
BLOCK = 1 << 20
SPARE_BYTES = 64 << 20
"""Room that a download leaves free on the disk."""
RETRIED_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})


@dataclass(frozen=True)
class _Source:
    url: str
    sha256: str | None
    bytes: int | None


class _UnavailableError(Exception):
    """This source cannot deliver; the next one may."""


def fetch(params: ArchiveParams, directory: Path) -> Path:
    """<directory>/<file>, downloaded unless it is there already. Sources are tried in order, POSE_MIRROR first.

    A source that cannot be reached or answers with a web page is passed over with a word; wrong bytes are an error.
    Raises DataError (hash, size, no source left, no room on the disk), ConfigError (POSE_MIRROR).
    """
    target = directory / params.file
    sources = _sources(params)
    if target.exists() and _still_good(target, params):
        return target
    directory.mkdir(parents=True, exist_ok=True)
    failures = []
    for source in sources:
        try:
            partial = _download(source, _partial_path(target, source.url))
            _verify(partial, source, target.name)
        except _UnavailableError as failure:
            say(f"{source.url}: {failure}")
            failures.append(f"{source.url}: {failure}")
            continue
        partial.replace(target)
        _validator_path(partial).unlink(missing_ok=True)
        if source.sha256 is None:
            say(f"{target.name}: sha256 {file_sha256(target)} (params.yaml knows none for {source.url})")
        return target
    tried = "; ".join(failures) if failures else "its only source is POSE_MIRROR, which is not set"
    raise DataError(
        f"{target.name} could not be fetched: {tried}. Set POSE_MIRROR to a folder (file:///...) or a server "
        f"(http://...) that has {target.name}, or put the file at {target} yourself."
    )


def _sources(params: ArchiveParams) -> list[_Source]:
    """What to try, in order: the mirror with its entry's folder and hash, then every other entry."""
    mirror = os.environ.get("POSE_MIRROR", "").rstrip("/")
    elsewhere = [source for source in params.sources if source.url.split("/")[0] != "mirror"]
    mirrored = [source for source in params.sources if source not in elsewhere] or [ArchiveSource(url="mirror")]
    found = []
    if mirror:
        if urllib.parse.urlsplit(mirror).scheme not in ("file", "http", "https"):
            raise ConfigError(f"POSE_MIRROR is {mirror!r}, expected a URL: file:///folder, http://... or https://...")
        file = urllib.parse.quote(params.file)
        for source in mirrored:
            found.append(_Source(f"{mirror}{source.url.removeprefix('mirror')}/{file}", source.sha256, source.bytes))
    found += [_Source(source.url, source.sha256, source.bytes) for source in elsewhere]
    return found


def _still_good(target: Path, params: ArchiveParams) -> bool:
    """Whether the file there is one that some source may deliver; says so when it is not."""
    known = [source.sha256 for source in params.sources]
    digest = file_sha256(target)
    if digest in known:
        return True
    if not all(known) and is_archive(target):
        say(
            f"warning: {target} has the sha256 {digest}, which params.yaml does not name; taken, because the hash of "
            "one of its sources is not known"
        )
        return True
    say(f"{target} is not what params.yaml names (sha256 {', '.join(filter(None, known))}); fetching it again")
    return False


def _partial_path(target: Path, url: str) -> Path:
    directory = target.parent.parent / ".partial"
    directory.mkdir(parents=True, exist_ok=True)
    return directory / f"{target.name}.{hashlib.sha256(url.encode()).hexdigest()[:8]}"


def _validator_path(partial: Path) -> Path:
    return partial.with_name(partial.name + ".json")


def _verify(partial: Path, source: _Source, name: str) -> None:
    """Raises DataError and removes the file if it is not the archive that was asked for."""
    with partial.open("rb") as file:
        head = file.read(512).lstrip().lower()
    size = partial.stat().st_size
    problem: Exception | None = None
    if head.startswith((b"<!doctype html", b"<html")):
        problem = _UnavailableError("answered with a web page (HTML) instead of the archive")
    elif source.bytes is not None and size != source.bytes:
        problem = DataError(f"{name} from {source.url} has {size} bytes, expected {source.bytes}")
    elif source.sha256 is not None and (got := file_sha256(partial)) != source.sha256:
        problem = DataError(
            f"{name} from {source.url} has the wrong content: sha256 {got}, expected {source.sha256}. The download was "
            f"removed. Take the file from another mirror, or correct sha256 in params.yaml if this is a new release."
        )
    elif not is_archive(partial):
        problem = _UnavailableError(f"sent {size} bytes that are neither a zip nor a tar archive")
    if problem is not None:
        _discard(partial)
        raise problem


def _discard(partial: Path) -> None:
    partial.unlink(missing_ok=True)
    _validator_path(partial).unlink(missing_ok=True)


# ---------------------------------------------------------------- transfer


def _download(source: _Source, partial: Path) -> Path:
    """The whole file at `partial`, resumed where an earlier attempt stopped."""
    try:
        if urllib.parse.urlsplit(source.url).scheme == "file":
            _copy(source, partial)
        else:
            _transfer(source, partial)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        _discard(partial)
        raise DataError(f"the disk of {partial.parent} filled up while fetching {source.url}: {error}") from error
    return partial


def _copy(source: _Source, partial: Path) -> None:
    origin = Path(urllib.request.url2pathname(urllib.parse.urlsplit(source.url).path))
    if not origin.is_file():
        raise _UnavailableError("no such file")
    size = origin.stat().st_size
    _require_space(partial.parent, size, origin.name)
    with origin.open("rb") as file, partial.open("wb") as out:
        for block in track(_blocks(file), f"fetch {origin.name} (MiB)", math.ceil(size / BLOCK)):
            out.write(block)


def _transfer(source: _Source, partial: Path) -> None:
    """Tries again after whatever may pass by itself; an attempt that brought bytes starts the count anew."""
    fruitless = 0
    while True:
        before = _size(partial)
        try:
            _attempt(source, partial)
            return
        except urllib.error.HTTPError as error:
            if error.code not in RETRIED_STATUS:
                raise _UnavailableError(f"HTTP {error.code} {error.reason}") from error
            reason, pause = f"HTTP {error.code} {error.reason}", _retry_after(error)
        except (urllib.error.URLError, HTTPException, ConnectionError, TimeoutError, ssl.SSLError) as error:
            reason, pause = str(getattr(error, "reason", error)) or type(error).__name__, 0.0
        fruitless = 1 if _size(partial) > before else fruitless + 1
        if fruitless >= ATTEMPTS:
            raise _UnavailableError(f"{reason} ({ATTEMPTS} tries)")
        pause = min(max(pause, BACKOFF_SECONDS * 2 ** (fruitless - 1)), LONGEST_PAUSE)
        say(f"{source.url}: {reason}; trying again in {pause:.0f} s with {_size(partial)} bytes in hand")
        time.sleep(pause)


def _attempt(source: _Source, partial: Path) -> None:
    """One request. Appends to what is there if the server says it is still the same file."""
    offset, validator = _size(partial), _validator(partial)
    request = urllib.request.Request(source.url, headers={"User-Agent": "pose-data", "Accept-Encoding": "identity"})
    if offset and validator:
        request.add_header("Range", f"bytes={offset}-")
        request.add_header("If-Range", validator)
    try:
        response: HTTPResponse = urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        _discard(partial)  # more bytes here than the file has there
        raise ConnectionError("the partial download does not fit the file; starting over") from error
    with response:
        if response.status != 206 or not response.headers.get("Content-Range", "").startswith(f"bytes {offset}-"):
            offset = 0
        _receive(response, source, partial, offset)


def _receive(response: HTTPResponse, source: _Source, partial: Path, offset: int) -> None:
    length = response.headers.get("Content-Length")
    total = offset + int(length) if length else None
    _require_space(partial.parent, (total or offset) - offset, source.url)
    etag = response.headers.get("ETag", "")
    validator = etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified")
    _validator_path(partial).write_text(json.dumps({"url": source.url, "validator": validator}))
    name = source.url.rsplit("/", 1)[-1]
    count = math.ceil((total - offset) / BLOCK) if total is not None else None
    with partial.open("r+b" if offset else "wb") as out:
        out.seek(offset)
        out.truncate()
        for block in track(_blocks(response), f"fetch {name} (MiB)", count):
            out.write(block)
    if total is not None and _size(partial) < total:
        raise ConnectionError(f"the connection closed after {_size(partial)} of {total} bytes")


def _blocks(file: BinaryIO | HTTPResponse) -> Iterator[bytes]:
    while block := file.read(BLOCK):
        yield block


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _validator(partial: Path) -> str | None:
    """ETag or date that came with the partial file; without one a server's change would go unseen."""
    path = _validator_path(partial)
    return json.loads(path.read_text())["validator"] if path.exists() else None


def _retry_after(error: urllib.error.HTTPError) -> float:
    """Seconds the server asks to wait, given as a number or a date; 0 where it does not say."""
    value = error.headers.get("Retry-After", "").strip()
    if not value:
        return 0.0
    try:
        return float(value)
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return 0.0


def _require_space(directory: Path, need: int, what: str) -> None:
    free = shutil.disk_usage(directory).free
    if free < need + SPARE_BYTES:
        raise DataError(
            f"no room for {what}: {need} bytes and {SPARE_BYTES} to spare are needed at {directory}, {free} are free"
        )
