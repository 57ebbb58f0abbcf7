"""Many processes: where a training job runs, how its ranks meet, and what they report.

`from cluster import launch` is for programs of one's own: see docs/own-model.md.
"""

import os

os.environ.setdefault("RAY_AUTH_MODE", "token")  # before anything here has Ray read it

from cluster.library import launch

__all__ = ["launch"]
