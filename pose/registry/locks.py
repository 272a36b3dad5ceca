"""A lock that every machine sees: a registered model whose name can exist only once."""

from __future__ import annotations

import os
import socket
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from pose.alone import died_here
from pose.errors import RegistryError
from pose.registry.store import Store

PREFIX = "pose-lock-"
STALE_SECONDS = 900.0
"""A lock older than this belongs to a process that died: a promotion takes seconds, and minutes where a champion is
measured again."""
WAIT_SECONDS = 120.0
PROCESS = " process "
"""Between host and process in the name of a lock's owner."""


@dataclass(frozen=True)
class Lock:
    """A lock somebody holds, known by its token."""

    store: Store
    model: str
    token: str

    @property
    def name(self) -> str:
        """The registered model that is the lock."""
        return PREFIX + self.model

    def still_held(self) -> None:
        """Raises RegistryError when another process has broken this lock. Ask before every write."""
        if _token(self.store, self.name) != self.token:
            raise RegistryError(
                f"the promotion lock {self.name} was taken over by another process because this one held it for "
                f"more than {STALE_SECONDS:.0f} s; nothing was changed here. Run the promotion again."
            )


@contextmanager
def lock(store: Store, model: str, wait: float = WAIT_SECONDS, stale: float = STALE_SECONDS) -> Iterator[Lock]:
    """Holds the promotion lock of one registered model. Raises RegistryError when it stays busy for `wait` s."""
    held = Lock(store, model, uuid.uuid4().hex)
    deadline = time.monotonic() + wait
    while not _create(held):
        _break_if_stale(held, stale)
        if time.monotonic() > deadline:
            raise RegistryError(
                f"somebody else is promoting {model}: the lock {held.name} ({_owner(store, held.name)}) stayed busy "
                f"for {wait:.0f} s. Wait for it to end and try again; a dead owner's lock expires after {stale:.0f} s."
            )
        time.sleep(0.05)
    try:
        yield held
    finally:
        if _token(store, held.name) == held.token:
            store.client.delete_registered_model(held.name)


def _create(held: Lock) -> bool:
    from mlflow.exceptions import MlflowException

    tags = {"token": held.token, "owner": f"{socket.gethostname()}{PROCESS}{os.getpid()}"}
    try:
        held.store.client.create_registered_model(held.name, tags=tags, description="A promotion is in progress.")
    except MlflowException as error:
        if error.error_code == "RESOURCE_ALREADY_EXISTS":
            return False
        raise
    return True


def _break_if_stale(held: Lock, stale: float) -> None:
    """Renames a dead owner's lock away; of several contenders only one can.

    A contender that was too slow and renamed a fresh lock puts it back. Should the name be taken by then, the
    fresh lock's owner learns of it from `still_held`.
    """
    from mlflow.exceptions import MlflowException

    store, aside = held.store, f"{held.name}-broken-{held.token}"
    found = _read(store, held.name)
    if found is None or not (_died(found.tags) or time.time() - found.creation_timestamp / 1000 >= stale):
        return
    try:
        store.client.rename_registered_model(held.name, aside)
        moved = _read(store, aside)
        if moved is not None and moved.tags.get("token") != found.tags.get("token"):
            store.client.rename_registered_model(aside, held.name)
            return
        store.client.delete_registered_model(aside)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS"):
            raise


def _died(tags: Mapping[str, str]) -> bool:
    """Whether the lock's owner was a process of this machine that is no more."""
    host, _, process = tags.get("owner", "").partition(PROCESS)
    return died_here(host, process)


def _read(store: Store, name: str):
    from mlflow.exceptions import MlflowException

    try:
        return store.client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise


def _token(store: Store, name: str) -> str | None:
    found = _read(store, name)
    return None if found is None else found.tags.get("token")


def _owner(store: Store, name: str) -> str:
    found = _read(store, name)
    return "just released" if found is None else found.tags.get("owner", "owner unknown")
