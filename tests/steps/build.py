# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Builds the package with the hook that kills a process at a step of the shared protocol (step.h)."""

import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "src" / "pageframe"
BUILD = ROOT / "build" / "steps" / sysconfig.get_config_var("SOABI")


def build() -> Path:
    """Build the package unless what was built is of the present sources; return where it is.

    ``PAGEFRAME_TEST_STEPS`` says where there is one built already (tests/covered).
    """
    if built := os.environ.get("PAGEFRAME_TEST_STEPS"):
        return Path(built)
    site = BUILD / "site"
    stamp = BUILD / "sources"
    digest = " ".join([digest_of(sources()), *sanitizers()])
    if stamp.exists() and stamp.read_text() == digest:
        return site
    stamp.unlink(missing_ok=True)
    if site.exists():
        shutil.rmtree(site)
    options = [
        "--quiet", "--disable-pip-version-check", "--no-build-isolation", "--no-deps", "--no-compile",
        "--target", str(site), f"-Cbuild-dir={BUILD / 'meson'}", "-Csetup-args=-Dsteps=true",
        "-Csetup-args=-Doptimization=1", *sanitizers(),
    ]  # fmt: skip
    run([sys.executable, "-m", "pip", "install", *options, str(ROOT)])
    stamp.write_text(digest)
    return site


def sanitizers() -> list[str]:
    """What the tested package was built with (sanitized/run.py), if that is so."""
    names = os.environ.get("PAGEFRAME_SANITIZE")
    return [f"-Csetup-args=-Db_sanitize={names}", "-Csetup-args=-Db_lundef=false"] if names else []


def sources() -> list[Path]:
    """What the package is built from."""
    files = [
        file
        for suffix in ("*.pyx", "*.pxd", "*.h", "*.py", "meson.build")
        for file in SOURCES.rglob(suffix)
        if file.is_file()
    ]
    return [Path(__file__), ROOT / "meson.build", ROOT / "meson.options", *sorted(files)]


def digest_of(files: list[Path]) -> str:
    """Return a digest of files and of where they are."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file} {file.stat().st_size}\n".encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()


def run(command: list[str]) -> None:
    # The build finds Meson and Cython beside the interpreter, whether or not they are on the path.
    # The sanitizer that may be loaded into this process would only slow it down.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    environment = {**os.environ, "PATH": path, "LD_PRELOAD": ""}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=environment)
    if done.returncode != 0:
        raise RuntimeError(f"{shlex.join(command)} failed:\n{done.stdout}{done.stderr}")


def environment(site: Path) -> dict[str, str]:
    """Return the environment of a child that is to use what was built, run with ``python -S``.

    Without ``site`` the interpreter does not run what an editable install has put in its way.
    """
    path = os.pathsep.join(map(str, [site, Path(numpy.__file__).parents[1], ROOT / "tests"]))
    return {**os.environ, "PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


def step_names() -> list[str]:
    """Return the names of all steps, in the order of their numbers."""
    text = (SOURCES / "_core" / "step.h").read_text()
    return re.findall(r"\bS\((\w+)\)", text.partition("PF_STEPS_LIST(S)")[2].partition("#define")[0])


def used_names() -> set[str]:
    """Return the names that some code passes to pf_step()."""
    used = set()
    for file in sources():
        if file.suffix in (".pyx", ".pxd", ".h"):
            for call in re.findall(r"pf_step\(([^)]*PF_S_[^)]*)\)", file.read_text()):
                used |= set(re.findall(r"PF_S_(\w+)", call))
    return used
