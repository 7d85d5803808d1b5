"""The peers' environments: virtual ones of their own, pinned by constraints.txt beside this file.

FFCV has one to itself: it wants another OpenCV than the rest, and it is compiled, which may fail.
"""

import shutil
import subprocess
import sys
from pathlib import Path

DEFAULT = Path(".peers")
CONSTRAINTS = Path(__file__).with_name("constraints.txt")
LIBRARIES = ("opencv4", "libturbojpeg")
"""What FFCV is compiled with, as pkg-config calls them."""

PACKAGES = {
    "general": ("torch", "pillow", "simplejpeg", "opencv-python-headless", "spdl-core", "nvidia-dali-cuda130",
                "tensorflow-cpu"),
    "ffcv": ("torch", "ffcv", "pillow"),
}  # fmt: skip
"""Per environment; the versions are the constraints'."""


def interpreter(folder: Path, environment: str) -> Path:
    """The Python of an environment, which need not exist."""
    return (folder / environment / "bin" / "python").absolute()


def obstacle(folder: Path, environment: str) -> str | None:
    """Why an environment cannot be used, or None: it is there."""
    if interpreter(folder, environment).exists():
        return None
    note = _note(folder, environment)
    if note.exists():
        return note.read_text()
    return "not installed: python -m benchmarks.peers install"


def install(folder: Path, torch_index: str | None) -> int:
    """Make the environments that are missing; returns how many there are then.

    One that cannot be made leaves a note with the reason, which ``obstacle`` returns.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for environment, packages in PACKAGES.items():
        if obstacle(folder, environment) is None:
            continue
        print(f"{environment}: {', '.join(packages)} …", file=sys.stderr)
        reason = missing_libraries() if environment == "ffcv" else None
        reason = reason or _make(folder / environment, packages, torch_index)
        note = _note(folder, environment)
        note.unlink(missing_ok=True)
        if reason:
            shutil.rmtree(folder / environment, ignore_errors=True)
            note.write_text(reason)
            print(f"{environment}: {reason}", file=sys.stderr)
    return sum(obstacle(folder, environment) is None for environment in PACKAGES)


def missing_libraries() -> str | None:
    """What FFCV cannot be compiled without, or None."""
    programs = [name for name in ("pkg-config", "g++") if shutil.which(name) is None]
    if "pkg-config" in programs:
        missing = programs
    else:
        missing = programs + [
            name for name in LIBRARIES if subprocess.run(["pkg-config", "--exists", name], check=False).returncode
        ]
    if not missing:
        return None
    packages = "pkg-config g++ libopencv-dev libturbojpeg0-dev"
    return f"{', '.join(missing)} missing; on Debian: apt-get install {packages}"


def _make(environment: Path, packages: tuple[str, ...], torch_index: str | None) -> str | None:
    """A virtual environment with these packages; the reason where that fails."""
    python = interpreter(environment.parent, environment.name)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--constraint",
           str(CONSTRAINTS)]  # fmt: skip
    steps = [[sys.executable, "-m", "venv", str(environment)], [*pip, *packages]]
    if torch_index:
        steps.insert(1, [*pip, "--index-url", torch_index, "torch"])
    for step in steps:
        done = subprocess.run(step, check=False, capture_output=True, text=True)
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if line.lower().startswith("error")]
            return (errors or done.stderr.splitlines() or [f"{step[0]} failed"])[-1].strip()
    return None


def _note(folder: Path, environment: str) -> Path:
    return folder / f"{environment}.failed"
