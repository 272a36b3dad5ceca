"""Unpacking archives that nobody vouches for: every member is judged before the first byte is written."""

from __future__ import annotations

import errno
import lzma
import shutil
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from pose.errors import DataError
from pose.progress import track

MAX_MEMBERS = 500_000
MAX_BYTES = 64 << 30
MAX_RATIO = 100
"""Unpacked over packed size above which an archive is a bomb..."""
RATIO_FROM = 32 << 20
"""...if it unpacks to more than this."""
SPARE_BYTES = 64 << 20


@dataclass(frozen=True)
class _Member:
    name: str
    size: int
    is_file: bool
    is_directory: bool
    handle: zipfile.ZipInfo | tarfile.TarInfo


def is_archive(path: Path) -> bool:
    """Whether the file can be opened as a zip or a tar."""
    return zipfile.is_zipfile(path) or tarfile.is_tarfile(path)


def unpack(
    archives: Path | Sequence[Path],
    directory: Path,
    *,
    max_members: int = MAX_MEMBERS,
    max_bytes: int = MAX_BYTES,
    max_ratio: float = MAX_RATIO,
) -> Path:
    """The content of zips and tars at `directory`, whole or not at all; a directory that exists is taken as done.

    Raises DataError for paths that leave the directory, links, devices, encrypted or repeated members, bombs,
    damaged archives and full disks.
    """
    if directory.exists():
        return directory
    directory.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    try:
        for archive in [archives] if isinstance(archives, Path) else archives:
            _unpack_into(temporary, archive, directory, (max_members, max_bytes, max_ratio))
        _publish(temporary, directory)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return directory


def _unpack_into(folder: Path, archive: Path, directory: Path, limits: tuple[int, int, float]) -> None:
    try:
        with _open(archive) as opened:
            members = _judge(archive, _members(opened), *limits)
            _require_space(archive, directory, sum(member.size for member in members))
            for member in track(members, f"unpack {archive.name}"):
                _extract(opened, member, folder)
            _read_to_the_end(opened)
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, NotImplementedError) as error:
        raise DataError(f"{archive} is damaged ({error}). Remove it and fetch it again.") from error
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise DataError(f"{archive} cannot be unpacked into {directory}: {error}") from error
        raise DataError(f"the disk filled up while unpacking {archive} into {directory}: {error}") from error


def _read_to_the_end(opened: zipfile.ZipFile | tarfile.TarFile) -> None:
    """A compressed tar's own checksum stands behind its last member; a zip has one for each member."""
    if isinstance(opened, tarfile.TarFile) and opened.fileobj is not None:
        while opened.fileobj.read(1 << 20):
            pass


def _open(archive: Path) -> zipfile.ZipFile | tarfile.TarFile:
    if zipfile.is_zipfile(archive):
        return zipfile.ZipFile(archive)
    if tarfile.is_tarfile(archive):
        return tarfile.open(archive)
    raise DataError(f"{archive} is neither a zip nor a tar archive. Remove it and fetch it again.")


def _members(opened: zipfile.ZipFile | tarfile.TarFile) -> Iterator[_Member]:
    """Members in archive order; lazily, so that a bomb is seen before it is listed to its end."""
    if isinstance(opened, zipfile.ZipFile):
        for info in opened.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)
            is_file = not info.is_dir() and kind in (0, stat.S_IFREG) and not info.flag_bits & 1
            # orig_filename: zipfile itself cuts names at a NUL byte
            yield _Member(info.orig_filename, info.file_size, is_file, info.is_dir(), info)
    else:
        for entry in opened:
            yield _Member(entry.name, entry.size, entry.isreg(), entry.isdir(), entry)


def _judge(
    archive: Path, members: Iterable[_Member], max_members: int, max_bytes: int, max_ratio: float
) -> list[_Member]:
    """The members, if not one of them is wrong. Raises DataError naming the first that is."""
    packed = archive.stat().st_size
    accepted: list[_Member] = []
    names: set[PurePosixPath] = set()
    total = 0
    for member in members:
        if fault := _fault(member):
            raise DataError(f"{archive} is refused: member {member.name!r} {fault}. Nothing was unpacked.")
        path = PurePosixPath(member.name)
        if member.is_file and path in names:
            raise DataError(f"{archive} is refused: member {member.name!r} occurs twice. Nothing was unpacked.")
        if member.is_file:
            names.add(path)
        accepted.append(member)
        total += member.size
        if len(accepted) > max_members:
            raise DataError(f"{archive} is refused: it has more than {max_members} members. Nothing was unpacked.")
        if total > max_bytes or (total > RATIO_FROM and total > max_ratio * packed):
            raise DataError(
                f"{archive} is refused as a decompression bomb: at {member.name!r} its {packed} bytes have unpacked to "
                f"{total}, expected at most {max_bytes} and {max_ratio:g} times its size. Nothing was unpacked."
            )
    return accepted


def _fault(member: _Member) -> str | None:
    """What is wrong with one member, in words that follow its name."""
    name = member.name
    if not name or "\0" in name:
        return "has an impossible name"
    if name.startswith("/") or "\\" in name or (len(name) > 1 and name[1] == ":"):
        return "has an absolute or foreign path"
    if ".." in PurePosixPath(name).parts:
        return "would leave the folder ('..')"
    if not member.is_file and not member.is_directory:
        return "is a link, a device or encrypted; only files and folders are allowed"
    return None


def _require_space(archive: Path, directory: Path, need: int) -> None:
    free = shutil.disk_usage(directory.parent).free
    if free < need + SPARE_BYTES:
        raise DataError(
            f"no room to unpack {archive}: {need} bytes and {SPARE_BYTES} to spare are needed at {directory.parent}, "
            f"{free} are free"
        )


def _extract(opened: zipfile.ZipFile | tarfile.TarFile, member: _Member, root: Path) -> None:
    path = root / member.name
    if member.is_directory:
        path.mkdir(parents=True, exist_ok=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with _read(opened, member) as source, path.open("xb") as out:
        shutil.copyfileobj(source, out, 1 << 20)


def _read(opened: zipfile.ZipFile | tarfile.TarFile, member: _Member) -> IO[bytes]:
    if isinstance(opened, zipfile.ZipFile):
        assert isinstance(member.handle, zipfile.ZipInfo)
        return opened.open(member.handle)
    assert isinstance(member.handle, tarfile.TarInfo)
    stream = opened.extractfile(member.handle)
    if stream is None:
        raise tarfile.ReadError(f"{member.name!r} has no content")
    return stream


def _publish(temporary: Path, directory: Path) -> None:
    """Gives the finished folder its name; another process may have been first, with the same content."""
    temporary.chmod(0o755)
    try:
        temporary.rename(directory)
    except OSError:
        if not directory.is_dir():
            raise
