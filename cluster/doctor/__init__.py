"""What fails in practice, looked at before it does, and how to mend it."""
