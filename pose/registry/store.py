"""Where runs and models are kept: an MLflow server by MLFLOW_TRACKING_URI, else SQLite and files in the storage."""

from __future__ import annotations

import fcntl
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from pose.errors import RegistryAwayError

if TYPE_CHECKING:
    from mlflow import MlflowClient

EXPERIMENT = "pose"

ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    # MLflow's own defaults keep a caller waiting for minutes when its server is gone.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}
"""What we set for MLflow where the caller's environment leaves it open."""


class Store:
    """One MLflow tracking and model store. Nothing is opened before it is needed."""

    def __init__(self, storage: Path, uri: str | None = None) -> None:
        self.storage = storage.resolve()
        self.uri = uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{self.storage / 'mlflow.db'}"

    @cached_property
    def client(self) -> MlflowClient:
        """The MLflow client. Importing MLflow takes seconds, a new database seconds more."""
        load_mlflow()
        from mlflow import MlflowClient

        with self._alone():
            client = MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)
            with translated(self.uri):
                client.search_experiments(max_results=1)
                client.search_registered_models(max_results=1)
        return client

    @cached_property
    def experiment_id(self) -> str:
        """The experiment all runs go to, made on first use."""
        from mlflow.exceptions import MlflowException

        with translated(self.uri):
            found = self.client.get_experiment_by_name(EXPERIMENT)
            if found is not None:
                return found.experiment_id
            # Without a location of its own MLflow would write artefacts below whatever directory it is run from.
            location = (self.storage / "artifacts").as_uri() if self.uri.startswith("sqlite:") else None
            try:
                return self.client.create_experiment(EXPERIMENT, artifact_location=location)
            except MlflowException as error:
                found = self.client.get_experiment_by_name(EXPERIMENT)
                if found is None:
                    raise error
                return found.experiment_id

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Only one process creates the tables of a new SQLite file."""
        if not self.uri.startswith("sqlite:"):
            yield
            return
        self.storage.mkdir(parents=True, exist_ok=True)
        with (self.storage / "mlflow.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


_loading = threading.Lock()


def load_mlflow() -> None:
    """Imports MLflow as we want it set. Its modules import each other in circles, so one thread at a time: a second
    one, architectures side by side or a run's mirror, would find half of them.
    """
    with _loading:
        for key, value in ENVIRONMENT.items():
            os.environ.setdefault(key, value)
        # Bundles are ONNX and safetensors; nothing we load may execute a pickle, whatever the shell says.
        os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"
        import mlflow.pyfunc  # noqa: F401

        for noisy in ("mlflow", "alembic"):  # importing MLflow sets them up, so this comes after
            logging.getLogger(noisy).setLevel(logging.ERROR)


@contextmanager
def translated(uri: str) -> Iterator[None]:
    """Turns MLflow's and the network's errors into a RegistryAwayError that names the store."""
    load_mlflow()
    import requests
    import sqlalchemy.exc
    from mlflow.exceptions import MlflowException

    try:
        yield
    except (MlflowException, requests.RequestException, sqlalchemy.exc.SQLAlchemyError, OSError) as error:
        text = " ".join(str(error).split())[:300]
        raise RegistryAwayError(
            f"MLflow at {uri} does not answer as expected: {text}. Start the server or unset MLFLOW_TRACKING_URI; "
            "finished work is kept locally and is logged by the next `train-all`."
        ) from error
