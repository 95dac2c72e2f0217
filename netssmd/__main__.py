"""`python -m netssmd` is `netssmd`."""

from netssmd.cli import main

main()
