"""What runs after what. No pixels, no tensors."""

import logging
import os

from pose.errors import PoseError

# Two busy cores start Prefect's embedded server more slowly than its default allows.
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")


def _without_traceback(record: logging.LogRecord) -> bool:
    """Prefect logs a failure with its traceback, once per task around it. An expected one says all in its paragraph."""
    if record.exc_info and isinstance(record.exc_info[1], PoseError):
        record.exc_info = None
    return True


for _runs in ("prefect.flow_runs", "prefect.task_runs"):
    logging.getLogger(_runs).addFilter(_without_traceback)
