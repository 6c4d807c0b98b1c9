"""Set the project up in ``.venv``: `python3.11 tools/setup.py [EXTRA...]`. Needs nothing but Python itself.

What the system lacks is said first, in one line with the command that mends it; as root on Debian that command
is run. The installation is skipped when nothing that decides it has changed since the last one.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
VENV = PROJECT / ".venv"
PYTHON = (3, 11)


def java() -> bool:
    """Whether there is a Java that Spark can use: 17 or newer, with the module its vectors need."""
    home = os.environ.get("JAVA_HOME")
    binary = shutil.which("java", path=str(Path(home) / "bin") if home else None)
    if binary is None:
        return False
    asked = subprocess.run([binary, "--add-modules=jdk.incubator.vector", "-version"],
                           capture_output=True, text=True, check=False)
    version = re.search(r'version "(\d+)', asked.stderr)
    return asked.returncode == 0 and version is not None and int(version[1]) >= 17


# What must be there, how to see that it is, and the Debian package that brings it.
NEEDS = (
    ("git", lambda: shutil.which("git"), "git"),
    ("a C++ compiler", lambda: shutil.which(os.environ.get("CXX", "g++")), "g++"),
    ("Java 17 or 21", java, "openjdk-17-jre-headless"),
    ("Python's venv module", lambda: importlib.util.find_spec("ensurepip"), "python3.11-venv"),
)


def require_system() -> None:
    """Install what the system lacks, or stop with the command that does."""
    if sys.version_info[:2] != PYTHON:
        sys.exit(f"Python {sys.version.split()[0]} was started, but the project needs 3.11; "
                 "type: make PYTHON=/path/to/python3.11 ...")
    missing = [(name, package) for name, found, package in NEEDS if not found()]
    if not missing:
        return
    names, packages = ", ".join(name for name, _ in missing), [package for _, package in missing]
    if os.environ.get("JAVA_HOME") and not java():
        sys.exit(f"JAVA_HOME = {os.environ['JAVA_HOME']} is no Java 17 or 21; unset it, or set it to one")
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        sys.exit(f"Missing: {names}. Type: sudo apt-get install -y {' '.join(packages)}")
    print(f"Missing: {names}. Installing {' '.join(packages)}", flush=True)
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["apt-get", "update", "-q"], ["apt-get", "install", "-q", "-y", *packages]):
        if subprocess.run(command, env=quiet, check=False).returncode:
            sys.exit(f"`{' '.join(command)}` failed; install {' '.join(packages)} by hand, then start again")


def state(extras: list[str]) -> str:
    """Digest of everything that decides what is installed."""
    digest = hashlib.sha256(f"{sys.version} {PROJECT}".encode())
    for name in ("pyproject.toml", "constraints.txt"):
        digest.update((PROJECT / name).read_bytes())
    return f"{digest.hexdigest()} {' '.join(sorted(extras))}".strip()


def install(extras: list[str]) -> None:
    """Create ``.venv`` and install the project into it, with ``extras`` and those installed before."""
    stamp = VENV / "installed"
    before = stamp.read_text().split() if stamp.exists() else []
    extras = sorted({*extras, *before[1:]})
    if before == state(extras).split():
        return
    print("Installing into .venv (the first time takes a few minutes)", flush=True)
    stamp.unlink(missing_ok=True)
    python = VENV / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(VENV)], check=True)
    target = f"{PROJECT}[{','.join(extras)}]" if extras else str(PROJECT)
    command = [str(python), "-m", "pip", "install", "-qq", "--constraint", str(PROJECT / "constraints.txt"),
               "--editable", target]
    if subprocess.run(command, check=False).returncode:
        sys.exit("pip could not install the project: it needs a package index (see the lines above)")
    if subprocess.run([str(python), "-m", "ctrmodels.native"], stdout=subprocess.DEVNULL, check=False).returncode:
        print("The kernels of training could not be compiled (see the lines above): it will be slower", flush=True)
    stamp.write_text(state(extras))


if __name__ == "__main__":
    require_system()
    install(sys.argv[1:])
