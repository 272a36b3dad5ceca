"""Prefect's embedded server, as `pose train-all` starts it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, PREFECT_SERVER_ALLOW_EPHEMERAL_MODE, temporary_settings

from flows.server import EmbeddedServer, NamedServer, starting
from pose.errors import TrainingError


@pytest.fixture
def nobody_named() -> Iterator[None]:
    """A machine where no server is configured."""
    with temporary_settings(updates={PREFECT_SERVER_ALLOW_EPHEMERAL_MODE: True}, restore_defaults={PREFECT_API_URL}):
        yield


def program(path: Path, text: str) -> str:
    """An executable that stands in for Python."""
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_it_answers_prefects_client(server: EmbeddedServer) -> None:
    with get_client(sync_client=True) as client:
        assert str(client.api_url).startswith(server.url)
        assert client.api_healthcheck() is None


def test_it_ends_with_its_context(nobody_named: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "executable", program(tmp_path / "python", "exec sleep 60"))
    with starting() as server:
        assert isinstance(server, EmbeddedServer)
        assert server._process.poll() is None
    assert server._process.wait(timeout=10) != 0


def test_one_that_dies_is_said_with_its_code(
    nobody_named: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "executable", program(tmp_path / "python", "exit 7"))
    with starting() as server, pytest.raises(TrainingError, match="ended with code 7 before it answered"):
        server.answering().__enter__()


def test_a_named_server_is_left_alone() -> None:
    named = "http://127.0.0.1:9/api"
    with temporary_settings(updates={PREFECT_API_URL: named}), starting() as server, server.answering():
        assert isinstance(server, NamedServer)
        assert PREFECT_API_URL.value() == named
