"""Many processes: where a training job runs, how its ranks meet, and what they report."""
