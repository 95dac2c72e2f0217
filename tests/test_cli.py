"""The command line's frame: the table of commands, exit codes, one line for an error."""

import importlib
import importlib.util
import json
import subprocess
import sys

import click
import pytest

from netssmd import __version__, cli, errors
from netssmd.commands import doctor


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch):
    """`netssmd doctor` replaced by a command that raises the given exception."""

    def install(error: BaseException) -> None:
        @click.command()
        def command() -> None:
            raise error

        monkeypatch.setattr(doctor, "command", command)

    return install


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_each_command_is_a_file_with_the_help_of_the_table(name: str) -> None:
    if importlib.util.find_spec(f"netssmd.commands.{name}") is None:
        pytest.skip(f"netssmd/commands/{name}.py is not there yet")
    command = importlib.import_module(f"netssmd.commands.{name}").command
    assert isinstance(command, click.Command)
    assert command.get_short_help_str(limit=200).rstrip(".") == cli.COMMANDS[name].rstrip(".")


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in cli.COMMANDS)


def test_no_command_prints_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([]) == 0
    assert "Commands:" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["--version"]) == 0
    assert capsys.readouterr().out == f"netssmd {__version__}\n"


@pytest.mark.parametrize("argv", [["nonsense"], ["--nonsense"], ["doctor", "--nonsense"]])
def test_usage_errors_exit_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(argv) == 2
    assert "nonsense" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.CaptureError("a.pcap: cut short at byte 24"), 1),
        (errors.ConfigError("netssmd.toml: unknown key 'prot'"), 2),
    ],
)
def test_an_expected_error_is_one_line(
    failing, capsys: pytest.CaptureFixture[str], error: Exception, code: int
) -> None:
    failing(error)
    assert cli.run(["doctor"]) == code
    assert capsys.readouterr().err == f"netssmd: {error}\n"


def test_ctrl_c_exits_130_without_a_word(failing, capsys: pytest.CaptureFixture[str]) -> None:
    failing(KeyboardInterrupt())
    assert cli.run(["doctor"]) == 130
    assert capsys.readouterr().err.strip() == ""


def test_what_the_machine_lacks_is_one_line(failing, capsys: pytest.CaptureFixture[str]) -> None:
    failing(MemoryError("of 4 TiB"))
    assert cli.run(["doctor"]) == 1
    assert capsys.readouterr().err == "netssmd: not enough memory: of 4 TiB\n"
    done = subprocess.run(
        f"{sys.executable} -W ignore -m netssmd doctor > /dev/full",
        shell=True,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert done.returncode == 1 and done.stderr == "netssmd: output: cannot be written: No space left on device\n"


def test_a_command_of_a_later_version(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(cli.COMMANDS, "teleport", "Not there yet.")
    assert cli.run(["teleport"]) == 2
    assert capsys.readouterr().err == "netssmd: teleport is not part of this version yet\n"


def test_a_bug_keeps_its_traceback(failing) -> None:
    failing(ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        cli.run(["doctor"])


def test_a_reader_that_leaves_gets_no_traceback() -> None:
    program = """if True:
        import click, sys
        from netssmd import cli
        from netssmd.commands import doctor
        @click.command()
        def command():
            for _ in range(100_000):
                print("x" * 100)
        doctor.command = command
        sys.exit(cli.run(["doctor"]))
    """
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(timeout=60) == 1
    assert process.stderr.read() == b""


def test_doctor_names_every_check(capsys: pytest.CaptureFixture[str]) -> None:
    code = cli.run(["doctor", "--json"])
    report = json.loads(capsys.readouterr().out)
    assert code == (0 if report["ok"] else 1)
    assert list(report["checks"]) == list(doctor.CHECKS)
    assert {check["state"] for check in report["checks"].values()} <= {"ok", "notice", "broken"}


def test_no_error_speaks_to_the_terminal(failing, capsys: pytest.CaptureFixture[str]) -> None:
    failing(errors.CheckpointError("m/config.json: unknown key \x1b[2J\ud800"))
    assert cli.run(["doctor"]) == 1
    assert capsys.readouterr().err == "netssmd: m/config.json: unknown key \ufffd[2J\ufffd\n"
