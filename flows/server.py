"""Prefect's embedded server: started before the rest of the program is imported, awaited when that is done."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pose.errors import TrainingError


class EmbeddedServer:
    """A server of Prefect's in a process of its own, on the database of PREFECT_HOME.

    Prefect starts one by itself where no server is named, but late, and imports all of its server into the caller's
    process for it, which costs a no-op run a quarter of its time.
    """

    def __init__(self) -> None:
        import prefect
        from prefect.settings import get_current_settings

        settings = get_current_settings()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}/api"
        self._patience = settings.server.ephemeral.startup_timeout_seconds
        given = settings.to_environment_variables(exclude_unset=True)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "uvicorn", "--app-dir", str(Path(prefect.__file__).parents[1]), "--factory",
             "prefect.server.api.server:create_app", "--host", "127.0.0.1", "--port", str(port),
             "--log-level", "error", "--lifespan", "on"],
            env={**os.environ, **given, "PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1"},
        )  # fmt: skip

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Waits until it answers; within it Prefect's clients talk to it.

        Raises TrainingError for a server that has died or says nothing.
        """
        from prefect.events.worker import EventsWorker
        from prefect.logging.handlers import APILogHandler
        from prefect.settings import PREFECT_API_URL, temporary_settings

        given_up = time.monotonic() + self._patience
        while not self._healthy():
            if (code := self._process.poll()) is not None:
                raise TrainingError(
                    f"Prefect's embedded server ended with code {code} before it answered; what it printed stands "
                    f"above. Its database is in PREFECT_HOME; or name a running server in PREFECT_API_URL."
                )
            if time.monotonic() > given_up:
                raise TrainingError(
                    f"Prefect's embedded server did not answer at {self.url} within {self._patience} s; name a "
                    f"running server in PREFECT_API_URL, or raise PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS."
                )
            time.sleep(0.1)
        with temporary_settings(updates={PREFECT_API_URL: self.url}):
            yield
            # Prefect sends logs and events from threads of its own: what is still on its way has to arrive.
            APILogHandler().flush()
            EventsWorker.drain_all(timeout=5)

    def _healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=5) as answer:
                return answer.status == 200
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            return False

    def stop(self) -> None:
        """Asks it to end, and does not wait: nothing of ours needs its last words."""
        self._process.terminate()


class NamedServer:
    """The server of PREFECT_API_URL, which others look after."""

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Nothing to wait for: the flow's own client says what is wrong with it."""
        yield

    def stop(self) -> None:
        """Not ours to stop."""


@contextmanager
def starting() -> Iterator[EmbeddedServer | NamedServer]:
    """The server of this process, on its way up; stopped afterwards where it is ours."""
    from prefect.settings import get_current_settings

    settings = get_current_settings()
    ours = settings.api.url is None and settings.server.ephemeral.enabled
    server = EmbeddedServer() if ours else NamedServer()
    try:
        yield server
    finally:
        server.stop()
