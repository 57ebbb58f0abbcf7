"""Many processes: where a training job runs, how its ranks meet, and what they report."""

import os

os.environ.setdefault("RAY_AUTH_MODE", "token")  # before anything here has Ray read it
