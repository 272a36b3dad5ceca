"""What runs after what. No pixels, no tensors."""

import os

# Two busy cores start Prefect's embedded server more slowly than its default allows.
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
