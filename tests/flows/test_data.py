"""bring_up_to_date on a small DVC repository with one dataset, `tiny`, whose preparation is a short script."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import yaml

from flows import data
from flows.data import DatasetBusyError, DatasetVersion, bring_up_to_date
from pose.data.shards import seal
from pose.errors import DataError

STAGES = """
stages:
  prepare:
    foreach: [tiny]
    do:
      cmd: python prepare.py
      deps: [content.txt, prepare.py]
      outs: ["data/prepared/${item}"]
"""
PREPARE = """
import pathlib, sys
pathlib.Path("used-python").write_text(sys.executable)
content = pathlib.Path("content.txt").read_text()
if content == "bad":
    print("auditing: 3/3", file=sys.stderr)
    print("DataError: images/im00002.jpg ends early. Fetch it again.", file=sys.stderr)
    sys.exit(3)
out = pathlib.Path("data/prepared/tiny")
out.mkdir(parents=True)
(out / "train-00000.arrow").write_text(content)
(out / "SHA256SUMS").write_text(pathlib.Path("SUMS").read_text())
"""


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared once, from the content `first`."""
    root = tmp_path_factory.mktemp("repository")
    (root / ".dvc").mkdir()
    (root / ".dvc" / "config").write_text("[core]\n    no_scm = true\n    analytics = false\n")
    (root / "dvc.yaml").write_text(STAGES)
    (root / "prepare.py").write_text(PREPARE)
    return root


def write_content(root: Path, content: str) -> None:
    """What the dataset is made of, and the digests that belong to it."""
    (root / "content.txt").write_text(content)
    scratch = root / "scratch"
    scratch.mkdir(exist_ok=True)
    (scratch / "train-00000.arrow").write_text(content)
    seal(scratch)
    shutil.copy(scratch / "SHA256SUMS", root / "SUMS")


@pytest.fixture(autouse=True)
def _here(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "ROOT", repository)
    monkeypatch.delenv("VIRTUAL_ENV", raising=False)


@pytest.fixture(scope="module")
def first(repository: Path) -> DatasetVersion:
    write_content(repository, "first")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(data, "ROOT", repository)
        return bring_up_to_date("tiny")


def recorded(root: Path) -> str:
    return yaml.safe_load((root / "dvc.lock").read_text())["stages"]["prepare@tiny"]["outs"][0]["md5"]


def test_what_is_new_is_prepared_by_this_python(repository: Path, first: DatasetVersion) -> None:
    assert first == DatasetVersion("tiny", repository / "data/prepared/tiny", recorded(repository), changed=True)
    assert first.data_hash.endswith(".dir")
    assert Path((repository / "used-python").read_text()) == Path(sys.executable)


def test_what_is_unchanged_is_said_to_be(repository: Path, first: DatasetVersion) -> None:
    (repository / "used-python").unlink()
    again = bring_up_to_date("tiny")
    assert (again.data_hash, again.changed) == (first.data_hash, False)
    assert not (repository / "used-python").exists()


def test_a_damaged_shard_is_named(repository: Path, first: DatasetVersion) -> None:
    """DVC restores it from a damaged cache without a word."""
    shutil.rmtree(first.directory)
    (damaged,) = (p for p in (repository / ".dvc/cache").rglob("*") if p.is_file() and p.read_bytes() == b"first")
    damaged.chmod(0o644)
    damaged.write_bytes(b"fir5t")
    damaged.chmod(0o444)
    with pytest.raises(DataError, match=rf"{first.directory}/train-00000\.arrow is damaged.*dvc repro --force") as e:
        bring_up_to_date("tiny")
    assert "\n" not in str(e.value)


def test_a_failed_preparation_ends_in_its_own_paragraph(repository: Path, first: DatasetVersion) -> None:
    before = (repository / "dvc.lock").read_bytes()
    write_content(repository, "bad")
    with pytest.raises(DataError) as raised:
        bring_up_to_date("tiny")
    assert not isinstance(raised.value, DatasetBusyError)
    text = str(raised.value)
    assert text.startswith("prepare@tiny failed (exit code ")
    assert text.endswith("DataError: images/im00002.jpg ends early. Fetch it again.")
    assert (repository / "dvc.lock").read_bytes() == before


def test_another_process_at_work_is_told_from_a_failure(repository: Path, first: DatasetVersion) -> None:
    write_content(repository, "second")
    holder = {"pid": os.getpid(), "cmd": "dvc repro prepare@tiny"}
    lock = repository / ".dvc" / "tmp" / "rwlock"
    lock.write_text(json.dumps({"write": {str(first.directory): holder}, "read": {}}))
    with pytest.raises(DatasetBusyError, match=rf"prepare@tiny: another process .*blocked by: \(PID {os.getpid()}\)"):
        bring_up_to_date("tiny")
    lock.unlink()
    changed = bring_up_to_date("tiny")
    assert changed.changed
    assert changed.data_hash == recorded(repository) != first.data_hash


@pytest.mark.parametrize(
    ("printed", "paragraph"),
    [
        ("a warning\nERROR: Stage 'prepare@x' not found inside 'dvc.yaml' file\n",
         "ERROR: Stage 'prepare@x' not found inside 'dvc.yaml' file"),
        ("'./dvc.yaml' is invalid.\n\nWhile parsing, in line 8\n  8 | outs: [\n",
         "'./dvc.yaml' is invalid. While parsing, in line 8 8 | outs: ["),
        ("", "it printed nothing"),
    ],
)  # fmt: skip
def test_what_dvc_says_is_quoted_in_one_paragraph(
    printed: str, paragraph: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "ROOT", tmp_path)
    (tmp_path / "dvc.py").write_text(f"import sys\nprint({printed!r}, end='')\nsys.exit(255)")
    with pytest.raises(DataError) as raised:
        bring_up_to_date("x")
    assert str(raised.value) == f"prepare@x failed (exit code 255): {paragraph}"
