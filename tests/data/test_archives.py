import hashlib
import http.server
import io
import shutil
import tarfile
import threading
import zipfile
from collections import namedtuple
from dataclasses import dataclass, field

import numpy as np
import pytest

from pose.config import ArchiveParams, ArchiveSource
from pose.data import archives, unpacking
from pose.errors import ConfigError, DataError

NAME = "set.zip"


def zip_bytes(members=(("a.txt", b"first"), ("folder/b.txt", b"second"))):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members:
            archive.writestr(name, content)
    return file.getvalue()


def large_zip(size=3_000_000):
    return zip_bytes((("noise.bin", np.random.default_rng(1).bytes(size)),))


def digest(content):
    return hashlib.sha256(content).hexdigest()


@dataclass
class Host:
    """A web server with one file, whose answers a test can bend."""

    content: bytes
    etag: str = '"one"'
    cut_after: list = field(default_factory=list)
    """Bytes after which answer 1, 2, ... breaks off; later answers are whole."""
    statuses: list = field(default_factory=list)
    """Statuses of answer 1, 2, ... ; later answers are 200."""
    ranges: bool = True
    seen: list = field(default_factory=list)
    """(Range, If-Range) of each request."""
    url: str = ""

    def answer(self, handler):
        asked, condition = handler.headers.get("Range"), handler.headers.get("If-Range")
        self.seen.append((asked, condition))
        status = self.statuses.pop(0) if self.statuses else 200
        if status != 200:
            handler.send_response(status)
            handler.send_header("Retry-After", "0")
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and self.ranges else 0
        if condition != self.etag:
            start = 0
        body = self.content[start:]
        handler.send_response(206 if start else 200)
        handler.send_header("ETag", self.etag)
        handler.send_header("Content-Length", str(len(body)))
        if start:
            handler.send_header("Content-Range", f"bytes {start}-{len(self.content) - 1}/{len(self.content)}")
        handler.end_headers()
        handler.wfile.write(body[: self.cut_after.pop(0)] if self.cut_after else body)


@pytest.fixture
def serve(monkeypatch):
    monkeypatch.delenv("POSE_MIRROR", raising=False)
    monkeypatch.setattr(archives, "BACKOFF_SECONDS", 0.01)
    servers = []

    def start(**behaviour):
        host = Host(**behaviour)

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                host.answer(self)

            def log_message(self, *_):
                """Keeps the test's output clean."""

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        host.url = f"http://127.0.0.1:{server.server_port}/{NAME}"
        return host

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def asking_for(*sources):
    return ArchiveParams(file=NAME, licence="none", sources=[ArchiveSource(**source) for source in sources])


def folder(tmp_path):
    return tmp_path / "raw" / "set"


def nothing_left(tmp_path):
    """No file anywhere but the finished one."""
    return [path.name for path in tmp_path.rglob("*") if path.is_file()] in ([], [NAME])


def test_a_cut_download_goes_on_where_it_stopped(serve, tmp_path):
    content = large_zip()
    host = serve(content=content, cut_after=[1_200_000, 700_000])
    got = archives.fetch(asking_for({"url": host.url, "sha256": digest(content)}), folder(tmp_path))
    assert got == folder(tmp_path) / NAME
    assert got.read_bytes() == content
    assert host.seen == [(None, None), ("bytes=1200000-", '"one"'), ("bytes=1900000-", '"one"')]
    assert nothing_left(tmp_path)


def test_a_partial_download_survives_the_process_and_never_has_the_final_name(serve, tmp_path, monkeypatch):
    content = large_zip()
    monkeypatch.setattr(archives, "ATTEMPTS", 1)
    host = serve(content=content, cut_after=[1_500_000])
    params = asking_for({"url": host.url, "sha256": digest(content)})
    with pytest.raises(DataError, match=r"1500000 of \d+ bytes"):
        archives.fetch(params, folder(tmp_path))
    assert not (folder(tmp_path) / NAME).exists()
    assert archives.fetch(params, folder(tmp_path)).read_bytes() == content
    assert host.seen[-1][0] == "bytes=1500000-"


def test_a_file_that_changed_meanwhile_is_fetched_from_its_start(serve, tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "ATTEMPTS", 1)
    host = serve(content=large_zip(), cut_after=[1_500_000])
    with pytest.raises(DataError):
        archives.fetch(asking_for({"url": host.url}), folder(tmp_path))
    host.content, host.etag = large_zip(2_000_000), '"two"'
    assert archives.fetch(asking_for({"url": host.url}), folder(tmp_path)).read_bytes() == host.content


def test_a_server_without_ranges_is_asked_for_the_whole_again(serve, tmp_path):
    content = large_zip()
    host = serve(content=content, cut_after=[1_200_000], ranges=False)
    assert archives.fetch(asking_for({"url": host.url}), folder(tmp_path)).read_bytes() == content


def test_wrong_hash_names_file_expected_and_got_and_leaves_nothing(serve, tmp_path):
    content = zip_bytes()
    host = serve(content=content)
    with pytest.raises(DataError) as error:
        archives.fetch(asking_for({"url": host.url, "sha256": "0" * 64}), folder(tmp_path))
    for named in (NAME, host.url, "0" * 64, digest(content)):
        assert named in str(error.value)
    assert nothing_left(tmp_path)


def test_wrong_size_is_an_error(serve, tmp_path):
    content = zip_bytes()
    host = serve(content=content)
    with pytest.raises(DataError, match=f"has {len(content)} bytes, expected 5"):
        archives.fetch(asking_for({"url": host.url, "bytes": 5}), folder(tmp_path))
    assert nothing_left(tmp_path)


def test_a_server_that_recovers_is_waited_for(serve, tmp_path):
    host = serve(content=zip_bytes(), statuses=[500, 503, 429])
    assert archives.fetch(asking_for({"url": host.url}), folder(tmp_path)).read_bytes() == host.content
    assert len(host.seen) == 4


def test_a_server_that_never_recovers_is_given_up(serve, tmp_path):
    host = serve(content=zip_bytes(), statuses=[503] * 99)
    with pytest.raises(DataError, match=r"set.zip could not be fetched.*HTTP 503.*POSE_MIRROR"):
        archives.fetch(asking_for({"url": host.url}), folder(tmp_path))
    assert len(host.seen) == archives.ATTEMPTS


def test_a_missing_file_is_not_asked_for_twice_and_the_next_source_is_tried(serve, tmp_path, capsys):
    gone, good = serve(content=b"", statuses=[404]), serve(content=zip_bytes())
    archives.fetch(asking_for({"url": gone.url}, {"url": good.url}), folder(tmp_path))
    assert len(gone.seen) == 1
    spoken = capsys.readouterr().err
    assert f"{gone.url}: HTTP 404" in spoken
    assert digest(good.content) in spoken


def test_a_web_page_is_not_an_archive(serve, tmp_path):
    host = serve(content=b"\n<!DOCTYPE html><html>Please log in</html>")
    with pytest.raises(DataError, match="web page"):
        archives.fetch(asking_for({"url": host.url}), folder(tmp_path))
    assert nothing_left(tmp_path)


def test_the_longest_pause_a_server_can_ask_for_is_bounded(serve, tmp_path, monkeypatch):
    pauses = []
    monkeypatch.setattr(archives.time, "sleep", pauses.append)
    monkeypatch.setattr(archives, "_retry_after", lambda error: 86_400.0)
    host = serve(content=zip_bytes(), statuses=[503])
    archives.fetch(asking_for({"url": host.url}), folder(tmp_path))
    assert pauses == [archives.LONGEST_PAUSE]


def test_no_room_is_said_before_anything_is_written(serve, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 1000, 1000))
    host = serve(content=large_zip())
    with pytest.raises(DataError, match=r"no room for .*set.zip: \d+ bytes .* 1000 are free"):
        archives.fetch(asking_for({"url": host.url}), folder(tmp_path))
    assert nothing_left(tmp_path)


def test_a_disk_that_fills_up_is_named_and_the_partial_file_removed(serve, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(archives, "_receive", full)
    host = serve(content=zip_bytes())
    with pytest.raises(DataError, match="filled up"):
        archives.fetch(asking_for({"url": host.url}), folder(tmp_path))
    assert nothing_left(tmp_path)


def test_the_mirror_comes_first_with_its_own_hash(serve, tmp_path, monkeypatch):
    content, other = zip_bytes(), serve(content=zip_bytes())
    (tmp_path / "mirror").mkdir()
    (tmp_path / "mirror" / NAME).write_bytes(content)
    monkeypatch.setenv("POSE_MIRROR", (tmp_path / "mirror").as_uri())
    sources = ({"url": other.url}, {"url": "mirror", "sha256": digest(content)})
    assert archives.fetch(asking_for(*sources), folder(tmp_path)).read_bytes() == content
    assert not other.seen
    (tmp_path / "mirror" / NAME).write_bytes(content + b"tail")
    with pytest.raises(DataError, match="wrong content"):
        archives.fetch(asking_for(*sources), folder(tmp_path) / "again")


def test_a_mirror_without_the_file_is_passed_over(serve, tmp_path, monkeypatch):
    monkeypatch.setenv("POSE_MIRROR", tmp_path.as_uri())
    host = serve(content=zip_bytes())
    archives.fetch(asking_for({"url": "mirror"}, {"url": host.url}), folder(tmp_path))
    assert len(host.seen) == 1


def test_an_http_mirror_serves_the_same_names(serve, tmp_path, monkeypatch):
    host = serve(content=zip_bytes())
    monkeypatch.setenv("POSE_MIRROR", host.url.rsplit("/", 1)[0] + "/")
    assert archives.fetch(asking_for({"url": "mirror"}), folder(tmp_path)).read_bytes() == host.content


def test_without_any_source_it_says_what_to_set(tmp_path, monkeypatch):
    monkeypatch.delenv("POSE_MIRROR", raising=False)
    with pytest.raises(DataError, match="POSE_MIRROR, which is not set"):
        archives.fetch(asking_for({"url": "mirror"}), folder(tmp_path))
    monkeypatch.setenv("POSE_MIRROR", "/just/a/path")
    with pytest.raises(ConfigError, match="POSE_MIRROR is '/just/a/path'"):
        archives.fetch(asking_for({"url": "mirror"}), folder(tmp_path))


def test_an_archive_that_is_there_is_not_fetched_again_unless_it_is_wrong(serve, tmp_path):
    host = serve(content=zip_bytes())
    params = asking_for({"url": host.url, "sha256": digest(host.content)})
    target = archives.fetch(params, folder(tmp_path))
    archives.fetch(params, folder(tmp_path))
    assert len(host.seen) == 1
    target.write_bytes(host.content[:-3])
    assert archives.fetch(params, folder(tmp_path)).read_bytes() == host.content
    assert len(host.seen) == 2


# ---------------------------------------------------------------- unpacking


def tar_of(path, *entries):
    with tarfile.open(path, "w:gz") as archive:
        for name, kind in entries:
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname, entry.size = kind, "target", 4 if kind == tarfile.REGTYPE else 0
            archive.addfile(entry, io.BytesIO(b"data") if entry.size else None)
    return path


def zip_with_mode(path, mode):
    with zipfile.ZipFile(path, "w") as archive:
        entry = zipfile.ZipInfo("link")
        entry.create_system, entry.external_attr = 3, mode << 16
        archive.writestr(entry, "/etc/passwd")
    return path


def refuses(tmp_path, archive, match, **limits):
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(DataError, match=match) as error:
        archives.unpack(archive, tmp_path / "out" / "set", **limits)
    assert str(archive) in str(error.value)
    left = {path for path in tmp_path.rglob("*") if path not in before}
    assert left <= {tmp_path / "out"}, "something was written"


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/etc/evil", "C:/evil", "a\\..\\evil"])
def test_paths_that_leave_the_folder_are_refused(tmp_path, name):
    bad_zip = tmp_path / "bad.zip"
    bad_zip.write_bytes(zip_bytes((("fine.txt", b"1"), (name, b"2"))))
    refuses(tmp_path, bad_zip, "Nothing was unpacked")
    bad_tar = tar_of(tmp_path / "bad.tgz", ("fine.txt", tarfile.REGTYPE), (name, tarfile.REGTYPE))
    refuses(tmp_path, bad_tar, "Nothing was unpacked")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_in_a_tar_are_refused(tmp_path, kind):
    refuses(tmp_path, tar_of(tmp_path / "bad.tgz", ("thing", kind)), "link, a device")


@pytest.mark.parametrize("mode", [0o120777, 0o020666, 0o010644])
def test_links_and_devices_in_a_zip_are_refused(tmp_path, mode):
    refuses(tmp_path, zip_with_mode(tmp_path / "bad.zip", mode), "link, a device")


def test_bombs_are_refused(tmp_path):
    bomb = tmp_path / "bomb.zip"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", bytes(unpacking.RATIO_FROM + 1))
    refuses(tmp_path, bomb, "bomb")
    many = tmp_path / "many.zip"
    many.write_bytes(zip_bytes([(f"{n}", b"") for n in range(50)]))
    refuses(tmp_path, many, "more than 49 members", max_members=49)
    refuses(tmp_path, many, "bomb", max_bytes=-1)


def test_a_repeated_member_is_refused(tmp_path):
    archive = tmp_path / "twice.zip"
    with pytest.warns(UserWarning, match="Duplicate"):
        archive.write_bytes(zip_bytes((("a", b"1"), ("a", b"2"))))
    refuses(tmp_path, archive, "occurs twice")


def test_damage_is_named_and_leaves_nothing(tmp_path):
    content = bytearray(zip_bytes())
    content[content.index(b"first")] ^= 1
    damaged = tmp_path / "damaged.zip"
    damaged.write_bytes(content)
    refuses(tmp_path, damaged, "CRC")
    nonsense = tmp_path / "nonsense.zip"
    nonsense.write_bytes(b"nothing of the kind")
    refuses(tmp_path, nonsense, "neither a zip nor a tar")


def test_no_room_to_unpack_is_said_first(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 1000, 1000))
    archive = tmp_path / NAME
    archive.write_bytes(zip_bytes())
    refuses(tmp_path, archive, "no room to unpack")


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_unpacking_is_whole_and_done_once(tmp_path, kind):
    archive = tmp_path / f"set.{kind}"
    if kind == "zip":
        archive.write_bytes(zip_bytes((("a.txt", b"data"), ("folder/b.txt", b"data"))))
    else:
        tar_of(archive, ("a.txt", tarfile.REGTYPE), ("folder", tarfile.DIRTYPE), ("folder/b.txt", tarfile.REGTYPE))
    out = archives.unpack(archive, tmp_path / "cache" / "set")
    assert {p.relative_to(out).as_posix() for p in out.rglob("*")} == {"a.txt", "folder", "folder/b.txt"}
    assert (out / "folder" / "b.txt").read_bytes() == b"data"
    assert [p.name for p in out.parent.iterdir()] == ["set"]
    archive.unlink()
    assert archives.unpack(archive, out) == out
