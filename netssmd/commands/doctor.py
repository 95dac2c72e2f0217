"""`netssmd doctor`: what this installation can do, what it lacks, and how to get it.

In: the machine. Out: one line a check on stdout (or one JSON object), and exit code 1 when something needed is broken.
A check is a function in CHECKS that returns a Finding; adding one is one function and one row.
"""

import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass

import click

from netssmd import __version__, freshness

FREE_DISK_FLOOR_BYTES = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Finding:
    """One check's outcome. `state` is ok, notice (something optional is missing) or broken."""

    state: str
    text: str
    remedy: str = ""


def check_python() -> Finding:
    implementation = f"{platform.python_implementation()} {platform.python_version()}"
    return Finding("ok", f"{implementation} on {platform.system()} {platform.machine()}, {sys.executable}")


def check_compiled() -> Finding:
    """The pure modules and the C++ backend: built, fresh, and importable?"""
    built = freshness.built_from()
    if not built:
        return Finding("notice", "no compiled modules: everything runs interpreted, several times slower",
                       "install a C++ compiler and the Python headers (python3-dev), then `make setup`")  # fmt: skip
    stale = freshness.stale_modules(package_folder(), built)
    if stale:
        return Finding("notice", f"compiled from older sources: {', '.join(stale)}", "`make setup` builds again")
    failed = [module for module in built if importlib.util.find_spec(module) is None]
    if failed:
        return Finding("broken", f"compiled modules cannot be found: {', '.join(failed)}", "install the package again")
    names = ", ".join(name.removeprefix("netssmd.") for name in built)
    return Finding("ok", f"{len(built)} compiled modules, fresh: {names}")


def check_cpu_backend() -> Finding:
    try:
        importlib.import_module(freshness.CPU_BACKEND)
    except ImportError as error:
        return Finding("notice", f"backend cpu: not available ({error})", "install a C++ compiler, then `make setup`")
    return Finding("ok", "backend cpu: available")


def check_torch_backend() -> Finding:
    """Without the compiled backend, torch is what serves: then its absence is fatal. It is not imported here: 1-2 s."""
    if importlib.util.find_spec("torch") is not None:
        return Finding("ok", "backend torch: installed")
    if importlib.util.find_spec(freshness.CPU_BACKEND) is None:
        return Finding("broken", "no backend: neither the compiled one nor torch", "pip install 'netssmd[train]'")
    return Finding("ok", "backend torch: not installed (only learning needs it)")


def check_cuda_backend() -> Finding:
    missing = [name for name in ("torch", "mamba_ssm", "causal_conv1d") if importlib.util.find_spec(name) is None]
    if not os.path.exists("/dev/nvidiactl"):
        return Finding("ok", "backend cuda: no GPU here")
    if missing:
        return Finding("notice", f"backend cuda: a GPU, but no {', '.join(missing)}", "pip install 'netssmd[cuda]'")
    return Finding("ok", "backend cuda: available")


def check_cpu_features() -> Finding:
    features = cpu_features()
    return Finding("ok", f"{os.cpu_count()} cores, instruction sets: {' '.join(features) or 'portable only'}")


def check_embedded_model() -> Finding:
    folder = os.path.join(package_folder(), "model", "embedded")
    if not os.path.isfile(os.path.join(folder, "model.safetensors")):
        return Finding("notice", "no embedded model in this installation", "use --model, or `netssmd train`")
    return Finding("ok", f"embedded model: {os.path.getsize(os.path.join(folder, 'model.safetensors')) / 1e6:.1f} MB")


def check_disk() -> Finding:
    free = shutil.disk_usage(os.getcwd()).free
    text = f"{free / 1e9:.1f} GB free in {os.getcwd()}"
    if free < FREE_DISK_FLOOR_BYTES:
        return Finding("notice", text, "captures want at least 1 GB")
    return Finding("ok", text)


def check_extras() -> Finding:
    """Extra -> a module that only it brings. What is absent is named, not complained about."""
    extras = {"train": "torch", "evaluate": "sklearn", "mqtt": "aiomqtt", "tap": "pyroute2", "test": "hypothesis"}
    found = [extra for extra, module in extras.items() if importlib.util.find_spec(module) is not None]
    absent = [extra for extra in extras if extra not in found]
    missing = f" (not installed: {', '.join(absent)})" if absent else ""
    return Finding("ok", f"extras: {', '.join(found) or 'none'}{missing}")


def check_tap() -> Finding:
    if not os.path.exists("/dev/net/tun"):
        return Finding("notice", "no /dev/net/tun: packets can go to files only", "modprobe tun")
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        return Finding("notice", "/dev/net/tun may not be opened by this user: no packets to a TAP",
                       "chmod 0666 /dev/net/tun, as udev does")  # fmt: skip
    if importlib.util.find_spec("netssmd.output._pacer") is None:
        return Finding("notice", "/dev/net/tun is there; packets leave by Python's own clock, some milliseconds late",
                       "install a C++ compiler, then `make setup`")  # fmt: skip
    return Finding("ok", "/dev/net/tun is there, and the compiled sending thread")


def check_tshark() -> Finding:
    path = shutil.which("tshark")
    if path is None:
        return Finding("notice", "tshark: not installed (tests and evaluation use it)", "apt-get install tshark")
    result = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=30, check=False)
    return Finding("ok", f"tshark: {(result.stdout.splitlines() or ['?'])[0].strip()}")


CHECKS: dict[str, Callable[[], Finding]] = {
    "python": check_python,
    "compiled": check_compiled,
    "cpu_backend": check_cpu_backend,
    "torch_backend": check_torch_backend,
    "cuda_backend": check_cuda_backend,
    "cpu_features": check_cpu_features,
    "embedded_model": check_embedded_model,
    "disk": check_disk,
    "extras": check_extras,
    "tap": check_tap,
    "tshark": check_tshark,
}

CPU_FEATURES = ("avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512_bf16", "asimd", "sve")


def package_folder() -> str:
    return os.path.dirname(os.path.abspath(freshness.__file__))


def cpu_features() -> list[str]:
    """Those of CPU_FEATURES that Linux reports for this machine."""
    try:
        with open("/proc/cpuinfo") as file:
            flags = {word for line in file if line.lower().startswith(("flags", "features")) for word in line.split()}
    except OSError:
        return []
    return [feature for feature in CPU_FEATURES if feature in flags]


@click.command(help="Check this installation and say what is missing.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(as_json: bool) -> int:
    findings = {name: check() for name, check in CHECKS.items()}
    broken = any(finding.state == "broken" for finding in findings.values())
    if as_json:
        report = {"version": __version__, "ok": not broken, "checks": {name: asdict(f) for name, f in findings.items()}}
        click.echo(json.dumps(report, indent=2))
    else:
        click.echo(f"netssmd {__version__}")
        for finding in findings.values():
            remedy = f" -> {finding.remedy}" if finding.remedy else ""
            click.echo(f"  {finding.state:<7} {finding.text}{remedy}")
    return 1 if broken else 0
