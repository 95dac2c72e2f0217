"""The commands: one file each, one click command named `command` in it. netssmd/cli.py lists them."""
