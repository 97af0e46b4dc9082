"""`python -m rlpipe`."""

from rlpipe.cli import app

app(prog_name="rlpipe")
