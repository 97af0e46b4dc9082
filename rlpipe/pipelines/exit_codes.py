"""What `run`, `study` and `supervise` end with."""

DONE, FAILED, MISTAKE, INTERRUPTED = 0, 1, 2, 130
