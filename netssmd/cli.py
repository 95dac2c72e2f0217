"""The command line: `netssmd COMMAND ...`.

In: argv. Out: a command of `netssmd/commands/` is run and the process exits 0, 1 (runtime error) or 2 (usage).
Nothing but click is imported until a command is chosen, so that `netssmd --help` answers at once: the table below
holds the help lines, and `netssmd/commands/<name>.py` holds each command as one click command named `command`.

An error that a user can cause is a NetssmdError: one line `netssmd: ...` on stderr (one for each mistake in a file), no
traceback. stdout belongs to the commands' results.
"""

import errno
import importlib
import importlib.util
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType

import click

from netssmd import __version__
from netssmd.errors import NetssmdError, UsageError

COMMANDS = {
    "run": "Run the daemon in the foreground: live sessions into rotating captures.",
    "ctl": "Ask a running daemon, or a fleet: status, start, stop, pause, rate, mix, watch ...",
    "top": "Live view of running daemons: sessions, rates, lateness, findings, sinks.",
    "generate": "Generate sessions once, into a capture file or a folder.",
    "check": "Check captures against the rules of TCP/IP: findings by capture and by flow.",
    "ledger": "Turn ledgers into a table of labelled flows.",
    "codec": "Round-trip captures through the codec: exactness, escapes, tokens and bits a packet.",
    "prepare": "Turn folders of captures into a training set.",
    "train": "Train a model on a prepared training set.",
    "calibrate": "Weigh a model's tokens, so that its sessions say in the sum what training says.",
    "evaluate": "Judge generated captures beside real ones.",
    "model": "Show, list and import models.",
    "tap": "Make, remove and list the TAP devices that packets leave on.",
    "bench": "Measure packets and tokens a second on this machine.",
    "untaint": "Clear the provenance mark from a capture.",
    "doctor": "Check this installation and say what is missing.",
}

INTERRUPTED = 130  # 128 + SIGINT, as shells count it
READER_LEFT = 1  # click's code for it


class LazyGroup(click.Group):
    """A group that knows its commands' names and help lines, and imports a command when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        if importlib.util.find_spec(f"netssmd.commands.{cmd_name}") is None:
            raise UsageError(f"{cmd_name} is not part of this version yet")
        command = importlib.import_module(f"netssmd.commands.{cmd_name}").command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, "--version", message="netssmd %(version)s")
def cli() -> None:
    """Live, labelled, realistic network traffic from a Mamba-2 state-space model.

    Sizes, rates and durations carry units: 10MB, 5mbit, 2s. With --json a command prints one object on stdout.
    """


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the `netssmd` script. Never returns: the process exits with the command's code."""
    open_standard_streams()
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:  # under nohup HUP is ignored, and stays so
            signal.signal(number, leave)
    sys.exit(run(argv))


def open_standard_streams() -> None:
    """A stream that was closed (`netssmd ... >&-`) becomes /dev/null, lest the next file opened take its place."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            fd = os.open(os.devnull, os.O_RDWR)
            if fd != number:
                os.dup2(fd, number)
                os.close(fd)
            setattr(sys, name, open(number, "r" if number == 0 else "w", closefd=False))  # noqa: SIM115


def leave(number: int, frame: FrameType | None) -> None:
    """TERM and HUP unwind like Ctrl-C, so that temporary files go. `run` and `train` have handlers of their own."""
    sys.exit(128 + number)


def run(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code, with every expected failure told in one line on stderr."""
    try:
        result = cli.main(args=list(sys.argv[1:] if argv is None else argv), prog_name="netssmd", standalone_mode=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help() if error.ctx else "")
        return 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except NetssmdError as error:
        return complain(str(error), error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        return INTERRUPTED
    except MemoryError as error:
        return complain(f"not enough memory{f': {error}' if str(error) else ''}", 1)
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EIO):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or else Python tries again at exit
        if error.errno == errno.EPIPE:  # `netssmd ... | head`: the reader has had enough
            return READER_LEFT
        return complain(f"{error.filename or 'output'}: cannot be written: {error.strerror}", 1)


def complain(text: str, exit_code: int) -> int:
    for line in text.splitlines() or [""]:
        # Names out of files may be in it: no terminal shall obey them.
        shown = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line)
        print(f"netssmd: {shown}", file=sys.stderr)
    return exit_code


if __name__ == "__main__":
    main()
