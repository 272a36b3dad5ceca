from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from pose import lineage
from pose.config_loading import load
from pose.digests import file_sha256, json_sha256, tree_sha256


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(lineage, "ROOT", tmp_path)
    monkeypatch.delenv("GIT_COMMIT", raising=False)
    for words in (["init", "-q"], ["config", "user.email", "a@b.c"], ["config", "user.name", "a"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    for name in ("code.py", "dvc.lock", "requirements.lock"):
        (tmp_path / name).write_text("1\n")
    subprocess.run(["git", "add", "."], cwd=tmp_path, check=True)
    subprocess.run(["git", "commit", "-qm", "a"], cwd=tmp_path, check=True)
    return tmp_path


def test_a_changed_file_makes_the_commit_dirty_but_dvc_lock_does_not(checkout: Path) -> None:
    clean = lineage.git_commit()
    assert len(clean) == 40
    (checkout / "dvc.lock").write_text("2\n")
    assert lineage.git_commit() == clean
    (checkout / "code.py").write_text("2\n")
    assert lineage.git_commit() == f"{clean}-dirty"


def test_an_image_says_its_commit(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_COMMIT", "abc")
    assert lineage.git_commit() == "abc"


def test_lineage_answers_where_a_model_came_from(checkout: Path) -> None:
    params = load("demo")
    found = lineage.collect(params, "d41d8", "pose train-all --profile demo")
    assert found["data_hash"] == "d41d8"
    assert found["lock_hash"] == file_sha256(checkout / "requirements.lock")
    assert found["dataset"] == "demo"
    assert "torch==" in found["packages"]
    assert all(isinstance(value, str) and value for value in found.values())
    assert lineage.collect(load("demo", ["seed=21"]), "d41d8", "x")["params"] != found["params"]


def test_digests_depend_on_names_and_bytes_and_not_on_order(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("1")
    (tmp_path / "b.txt").write_text("2")
    first = tree_sha256(tmp_path, ["*.txt"])
    assert first == tree_sha256(tmp_path, ["b.txt", "a.txt"])
    (tmp_path / "b.txt").rename(tmp_path / "c.txt")
    assert tree_sha256(tmp_path, ["*.txt"]) != first
    assert json_sha256({"a": 1, "b": 2}) == json_sha256({"b": 2, "a": 1}) != json_sha256({"a": 2, "b": 1})
