"""Errors that a user can cause. Each message names the file, the place, what was found and what would be right.

The command line prints the message as one line, without a traceback, and exits with `exit_code`.
"""


class NetssmdError(Exception):
    """Something failed that the user can put right."""

    exit_code = 1


class CaptureError(NetssmdError):
    """A capture file is damaged, cut short or of a kind we do not read."""


class CheckpointError(NetssmdError):
    """A model folder is incomplete, inconsistent or made for another codec."""


class SnapshotError(NetssmdError):
    """A snapshot cannot be taken, or does not fit this model and version, or is damaged."""


class LedgerError(NetssmdError):
    """A ledger is damaged, of another schema, or no ledger."""


class OutputError(NetssmdError):
    """Packets cannot be written where they were asked to go."""


class ConfigError(NetssmdError):
    """A configuration file holds a wrong key or value."""

    exit_code = 2


class UsageError(NetssmdError):
    """The command was called with arguments that do not fit together."""

    exit_code = 2
