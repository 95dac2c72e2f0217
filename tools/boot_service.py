"""Boots a system with netssmd.service enabled and tries what an operator relies on, under a real systemd.

In: this checkout and its virtual environment (`.venv/bin/python tools/boot_service.py`, as root, with systemd-nspawn).
Out: a line for each thing seen; exit 0 if all are right, 1 if not, 77 if it cannot run here, with the reason.

Nothing of the machine is written. In a mount and PID namespace of its own: an overlay on a read-only bind of / (that
file system alone), whose changes lie in a tmpfs; /tmp, /var/tmp and /run in it are empty tmpfs; systemd-nspawn boots
it without a network. What the daemon needs from elsewhere is bound read-only. All of it goes with the namespace.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
SKIPPED = 77
NAMESPACES = ("unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--mount-proc")
HIDDEN = ("/tmp", "/var/tmp", "/run")  # empty in the booted system
PROGRAM = str(Path(sys.prefix, "bin", "netssmd"))
PRIVATE = ("/home", "/root", "/run/user", "/tmp", "/var/tmp")  # what the unit's sandbox hides
TAP = """
[tap]
name = "nst0"
create = false
"""
STATE = Path("/var/lib/netssmd")
SEIZE, INTERRUPT, CONTINUE, WALL = 0x4206, 0x4207, 7, 0x40000000  # of ptrace(2) and waitpid(2)
HANGS = "hangs in its round"
SETTINGS = """
[traffic]
concurrency = 8
ramp = "0s"
[output]
slice_duration = "2s"
free_disk = "1MB"
[metrics]
port = {port}
"""


def main() -> int:
    if "--inside" in sys.argv:
        return inside(Path(sys.argv[-1]))
    reason = obstacle()
    if reason:
        print(f"cannot boot a system here: {reason}")
        return SKIPPED
    folder = Path(tempfile.mkdtemp(prefix="netssmd-boot-"))
    groups = [group / f"netssmd-boot-{os.getpid()}" for group in own_cgroups()]
    try:
        for group in groups:
            group.mkdir()
        # The namespace's first process is this tool: when it ends, or is killed, everything in there ends.
        inner = [sys.executable, __file__, "--inside", str(folder)]
        environment = {**os.environ, "NETSSMD_BOOT_CGROUPS": ":".join(map(str, groups))}
        return subprocess.run([*NAMESPACES, *inner], env=environment).returncode
    finally:
        for group in groups:
            remove_cgroup(group)
        folder.rmdir()


def obstacle() -> str:
    """Why it cannot run here; empty if it can."""
    for program in ("systemd-nspawn", "unshare", "nsenter", "mount", "make"):
        if not shutil.which(program):
            return f"no {program} (tools/test_programs.sh installs it)"
    if os.geteuid():
        return "not root"
    if not Path("/usr/lib/systemd/systemd").exists():
        return "no systemd"
    overlay = "mount -t overlay x -o lowerdir=l,upperdir=u,workdir=w r"
    probe = f"mount -t tmpfs x /mnt && cd /mnt && mkdir l u w r && {overlay}"
    tried = subprocess.run([*NAMESPACES, "sh", "-c", probe], capture_output=True, text=True)
    return "" if tried.returncode == 0 else f"no namespaces or no overlay: {tried.stderr.strip()}"


def own_cgroups() -> list[Path]:
    """The folders of this process in the hierarchies that systemd uses."""
    found = []
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        for root in {"": ("unified", "."), "name=systemd": ("systemd",)}.get(controllers, ()):
            folder = Path("/sys/fs/cgroup") / root / path.lstrip("/")
            if (folder / "cgroup.procs").exists():
                found.append(folder)
                break
    return found


def remove_cgroup(group: Path) -> None:
    """Its processes are dead; the kernel may need a moment to see it."""
    for _ in range(50):
        for folder in sorted([*group.rglob("*/"), group], key=lambda path: -len(path.parts)):
            with contextlib.suppress(OSError):
                folder.rmdir()
        if not group.exists():
            return
        time.sleep(0.1)
    print(f"left behind: {group}")


# --- in the namespaces
# ----------------------------------------------------------------------------------------------------------------------


def inside(folder: Path) -> int:
    for group in os.environ["NETSSMD_BOOT_CGROUPS"].split(":"):
        if group:
            Path(group, "cgroup.procs").write_text("0")
    root = prepare(folder)
    needed = needed_paths()
    binds = [f"--bind-ro={path}" for path in needed]
    if Path("/dev/net/tun").exists():  # a node of its own, open to all as udev makes it: the machine's is not touched
        os.mknod(folder / "tun", 0o600 | stat.S_IFCHR, os.makedev(10, 200))
        os.chmod(folder / "tun", 0o666)
        binds.append(f"--bind={folder / 'tun'}:/dev/net/tun")
    log = open(folder / "console", "w")  # noqa: SIM115 - in the tmpfs, which ends with the namespace
    nspawn = subprocess.Popen(
        ["systemd-nspawn", "--quiet", "--keep-unit", "--register=no", "--private-network", "--console=pipe",
         f"--machine=netssmd-boot-{os.getpid()}", "--boot", "--directory", str(root), *binds],
        stdin=subprocess.DEVNULL, stdout=log, stderr=log,
    )  # fmt: skip
    try:
        machine = Machine(nspawn, root)
        ok = check(machine)
    except Failed as failure:
        print(f"FAILED: {failure}")
        ok = False
    if not ok:
        print("--- console\n" + (folder / "console").read_text()[-6000:])
    nspawn.kill()
    return 0 if ok else 1


def prepare(folder: Path) -> Path:
    """The overlay with the unit enabled in it."""
    run("mount", "-t", "tmpfs", "-o", "size=1g,mode=755", "tmpfs", str(folder))
    lower, upper, work, root = (folder / name for name in ("lower", "upper", "work", "root"))
    for path in (lower, upper, work, root):
        path.mkdir()
    run("mount", "--bind", "/", str(lower))
    run("mount", "-o", "remount,bind,ro", str(lower))
    run("mount", "-t", "overlay", "overlay", "-o", f"lowerdir={lower},upperdir={upper},workdir={work}", str(root))
    for hidden in HIDDEN:
        run("mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(root) + hidden)
    # Of the machine's own services none shall start.
    shutil.rmtree(root / "etc/systemd/system")
    (root / "etc/systemd/system").mkdir()
    for link in root.glob("etc/rc?.d/*"):
        link.unlink()
    for path in (STATE, Path("/etc/netssmd")):
        shutil.rmtree(str(root) + str(path), ignore_errors=True)
    run("make", "-s", "-C", str(REPOSITORY), "install-units", f"DESTDIR={root}", f"PROGRAM={PROGRAM}")
    for name, port in (("netssmd", 9464), ("lab", 9465), ("tap", 9466)):
        file = root / f"etc/netssmd/{name}.toml"
        file.write_text(SETTINGS.format(port=port) + TAP * (name == "tap"))
    drop_in = root / "etc/systemd/system/netssmd@tap.service.d/tap.conf"
    drop_in.parent.mkdir()
    shutil.copy(root / "opt/netssmd/share/netssmd/drop-ins/tap.conf", drop_in)
    bind = [path for path in needed_paths() if str(path).startswith(PRIVATE)]
    for unit in ("netssmd.service", "netssmd@.service"):
        drop_in = root / f"etc/systemd/system/{unit}.d/here.conf"
        drop_in.parent.mkdir()
        # The program lies where a checkout lies, not in /opt; and nobody here waits a minute for the watchdog.
        hides_home = any(str(path).startswith(PRIVATE[:3]) for path in bind)
        drop_in.write_text(
            "[Service]\nWatchdogSec=4\n" + "ProtectHome=tmpfs\n" * hides_home
            + "".join(f"BindReadOnlyPaths={path}\n" for path in bind)
        )  # fmt: skip
    run("systemctl", f"--root={root}", "enable", "netssmd.service")
    return root


def needed_paths() -> list[Path]:
    """Folders outside /usr that the daemon's interpreter reads."""
    paths = {REPOSITORY, Path(sys.prefix), Path(sys.base_prefix), *(Path(entry) for entry in sys.path if entry)}
    kept: list[Path] = []
    for path in sorted(paths, key=lambda path: len(path.parts)):
        if path.is_dir() and not path.is_relative_to("/usr") and not any(path.is_relative_to(other) for other in kept):
            kept.append(path)
    return kept


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise Failed(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


class Failed(Exception):
    """Something was not as it should be."""


class Machine:
    """The booted system."""

    def __init__(self, nspawn: subprocess.Popen[bytes], root: Path) -> None:
        self.nspawn = nspawn
        self.root = root
        self.leader = 0
        wait_for("the system to start", self._find_leader)
        wait_for("systemd to answer", lambda: self.call("systemctl", "is-system-running", check=False).strip()
                 in ("running", "degraded"))  # fmt: skip

    def _find_leader(self) -> bool:
        if self.nspawn.poll() is not None:
            raise Failed(f"systemd-nspawn ended with {self.nspawn.returncode}")
        children = Path(f"/proc/{self.nspawn.pid}/task/{self.nspawn.pid}/children").read_text().split()
        for child in children:
            if os.readlink(f"/proc/{child}/exe").endswith("/systemd"):
                self.leader = int(child)
        return self.leader > 0

    def call(self, *command: str, check: bool = True) -> str:
        """Run a command in there."""
        enter = ["nsenter", "-t", str(self.leader), "-m", "-u", "-i", "-n", "-p", "-C", "--"]
        done = subprocess.run([*enter, *command], capture_output=True, text=True, env={"PATH": "/usr/sbin:/usr/bin"})
        if check and done.returncode:
            raise Failed(f"{' '.join(command)}: {done.stderr.strip()}")
        return done.stdout

    def show(self, name: str, unit: str = "netssmd") -> str:
        """A property of the unit."""
        return self.call("systemctl", "show", "-P", name, unit).strip()

    def main_pid(self) -> int:
        return int(self.show("MainPID"))

    def outside_pid(self, pid: int) -> int:
        """A process of the machine as it is numbered here."""
        for status in Path("/proc").glob("[0-9]*/status"):
            with contextlib.suppress(OSError):
                found = re.search(r"^NSpid:\t(\d+)\t(\d+)$", status.read_text(), re.M)
                if found and int(found[2]) == pid:
                    return int(found[1])
        raise Failed(f"no process {pid}")

    def files(self, pattern: str, folder: str = "captures") -> list[str]:
        return self.call("find", str(STATE / folder), "-name", pattern, check=False).split()

    def journal(self) -> str:
        return self.call("journalctl", "--no-pager", "-o", "cat", "-u", "netssmd")


def wait_for(what: str, done: Callable[[], object], seconds: float = 60.0) -> None:
    """Look ten times a second."""
    end = time.monotonic() + seconds
    while not done():
        if time.monotonic() > end:
            raise Failed(f"waited {seconds:g} s for {what}")
        time.sleep(0.1)


def see(what: str, right: object) -> None:
    if not right:
        raise Failed(what)
    print(f"ok: {what}", flush=True)


# --- what is tried
# ----------------------------------------------------------------------------------------------------------------------


def check(machine: Machine) -> bool:
    try:
        starts(machine)
        reloads(machine)
        comes_back(machine)
        watchdog_bites(machine)
        instance(machine)
        tap(machine)
        stops(machine)
    except Failed:
        with contextlib.suppress(Failed):
            print("--- journal\n" + machine.call("journalctl", "--no-pager", "-u", "netssmd*", "-n", "60"))
        raise
    machine.call("systemctl", "poweroff", check=False)
    with contextlib.suppress(subprocess.TimeoutExpired):
        machine.nspawn.wait(20)
    return True


def starts(machine: Machine) -> None:
    wait_for("the unit to be active", lambda: machine.show("ActiveState") == "active")
    see("the unit is active after boot: READY=1 came", machine.show("Type") == "notify")
    wait_for("a finished slice", lambda: machine.files("*.pcap"))
    capture = machine.files("*.pcap")[0]
    size = int(machine.call("stat", "-c", "%s", capture))
    see(f"a slice of {size} bytes and its ledger in {STATE}", size > 1000 and machine.files("*.jsonl"))
    see("it is the group's to read, and nobody else's", machine.call("stat", "-c", "%a %U:%G", capture).strip()
        == "640 netssmd:netssmd")  # fmt: skip
    status = machine.call("cat", f"/proc/{machine.main_pid()}/status")
    facts = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    see("no capability, no new privileges, system calls filtered, not root",
        int(facts["CapEff"], 16) == int(facts["CapBnd"], 16) == 0 and facts["NoNewPrivs"] == "1"
        and facts["Seccomp"] == "2" and not facts["Uid"].startswith("0"))  # fmt: skip
    told = json.loads(machine.call(PROGRAM, "ctl", "--json", "status"))
    see(f"root controls it by its socket: {told['state']}", told["state"] == "running")
    wait_for("a status", lambda: "packets" in machine.show("StatusText"))
    see(f"status: {machine.show('StatusText')}", True)


def reloads(machine: Machine) -> None:
    before, pid = len(machine.files("*.pcap")), machine.main_pid()
    machine.call("systemctl", "reload", "netssmd")
    see("reload returns, the process is the same", machine.main_pid() == pid)
    see("and it is active", machine.show("ActiveState") == "active")
    wait_for("the slice that the reload ends", lambda: len(machine.files("*.pcap")) > before)


def comes_back(machine: Machine) -> None:
    pid = machine.main_pid()
    machine.call("kill", "-9", str(pid))
    wait_for("a restart", lambda: machine.show("NRestarts") == "1" and machine.show("ActiveState") == "active")
    see("after kill -9 it runs again", machine.main_pid() not in (0, pid))
    before = len(machine.files("*.pcap"))
    wait_for("packets after the restart", lambda: len(machine.files("*.pcap")) > before)


def watchdog_bites(machine: Machine) -> None:
    pid = machine.main_pid()
    fed = machine.show("WatchdogTimestampMonotonic")
    wait_for("the watchdog to be fed", lambda: machine.show("WatchdogTimestampMonotonic") != fed)
    lane = hold_a_lane(machine, machine.outside_pid(pid))

    def again() -> bool:
        with contextlib.suppress(ChildProcessError):  # the lane's end is told to the one who holds it
            os.waitpid(lane, WALL | os.WNOHANG)
        return machine.show("NRestarts") == "2" and machine.show("ActiveState") == "active"

    wait_for("a restart", again)
    journal = machine.journal()
    see("a lane that hangs: the watchdog is not fed, systemd kills and restarts",
        "Watchdog timeout" in journal and machine.main_pid() not in (0, pid))  # fmt: skip
    see("the journal says which lane, and has its stack", HANGS in journal and "lanes.py" in journal)


def hold_a_lane(machine: Machine, pid: int) -> int:
    """Stop the busiest thread that is not the first, for good, by ptrace(2): an engine lane. One that holds the
    interpreter would stop all the others too, and nobody could say which it was: then it is let go and stopped again.
    """
    threads = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        fields = (task / "stat").read_text().rsplit(")", 1)[1].split()
        threads.append((int(fields[11]) + int(fields[12]), int(task.name)))
    lane = max((ticks, tid) for ticks, tid in threads if tid != pid)[1]
    _ptrace(SEIZE, lane)
    for _ in range(8):
        _ptrace(INTERRUPT, lane)
        os.waitpid(lane, WALL)
        with contextlib.suppress(Failed):
            wait_for(f"{HANGS!r} in the journal", lambda: HANGS in machine.journal(), 2.5)
            return lane
        _ptrace(CONTINUE, lane)
        time.sleep(1.5)
    raise Failed("no lane was seen to hang")


def _ptrace(request: int, thread: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    libc.ptrace.restype = ctypes.c_long
    if libc.ptrace(request, thread, None, None):
        raise Failed(f"ptrace: {os.strerror(ctypes.get_errno())}")


def instance(machine: Machine) -> None:
    machine.call("systemctl", "start", "netssmd@lab")
    see("a second instance runs beside it", machine.show("ActiveState", "netssmd@lab") == "active")
    wait_for("its packets", lambda: machine.files("*.pcap", "lab/captures"))
    machine.call("systemctl", "stop", "netssmd@lab")
    see("and stops", machine.show("Result", "netssmd@lab") == "success")


def tap(machine: Machine) -> None:
    if not Path("/dev/net/tun").exists():
        print("not tried: no /dev/net/tun for a TAP")
        return
    machine.call(PROGRAM, "tap", "create", "nst0", "--owner", "netssmd")
    machine.call("systemctl", "start", "netssmd@tap")
    counter = "/sys/class/net/nst0/statistics/rx_packets"
    wait_for("frames on the TAP", lambda: int(machine.call("cat", counter)) > 50)
    status = machine.call("cat", f"/proc/{machine.show('MainPID', 'netssmd@tap')}/status")
    see("with tap.conf frames leave on the user's TAP, without a capability", "CapEff:\t0000000000000000" in status)
    machine.call("systemctl", "stop", "netssmd@tap")
    see("and it stops", machine.show("Result", "netssmd@tap") == "success")


def stops(machine: Machine) -> None:
    machine.call("systemctl", "stop", "netssmd")
    see("stop is clean", machine.show("ActiveState") == "inactive" and machine.show("Result") == "success")
    see("no half-written slice is left", not machine.files("*.part"))
    journal = machine.journal()
    for bad in ("Traceback", "Permission denied", "Operation not permitted", "Read-only file system", "SIGSYS"):
        see(f"the journal has no {bad!r}", bad not in journal)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    sys.exit(main())
