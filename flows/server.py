"""Prefect's embedded server, started while the rest of the program is still being imported."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def starting() -> Iterator[None]:
    """Within it the embedded server starts on a thread; it is up afterwards. Nothing to do where a server is named.

    A start that fails is tried again, and reported, by the flow's own client.
    """
    from prefect.settings import get_current_settings

    if get_current_settings().api.url is not None:
        yield
        return
    # Imported before the thread: Prefect's modules import each other in circles, which only one thread may do.
    from prefect.server.api.server import SubprocessASGIServer

    thread = threading.Thread(target=SubprocessASGIServer().start, daemon=True)
    thread.start()
    yield
    thread.join()
