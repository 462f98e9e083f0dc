# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Builds the test extension as a user would build one, against the installed package."""

import hashlib
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import ModuleType

import pageframe

SOURCE = Path(__file__).with_name("probe.pyx")
BUILD = Path(__file__).parents[2] / "build" / "cimport" / sysconfig.get_config_var("SOABI")


def load_probe() -> ModuleType:
    """Return the test extension; it is built if there is none of the present sources."""
    if "probe" not in sys.modules:
        spec = importlib.util.spec_from_file_location("probe", build())
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        sys.modules["probe"] = module
    return sys.modules["probe"]


def build() -> Path:
    """Build the extension unless what was built is of the present sources; return its path."""
    headers = Path(pageframe.get_include())
    target = BUILD / f"probe{sysconfig.get_config_var('EXT_SUFFIX')}"
    stamp = BUILD / "sources"
    digest = digest_of(sources(headers))
    if target.exists() and stamp.exists() and stamp.read_text() == digest:
        return target
    BUILD.mkdir(parents=True, exist_ok=True)
    c_file = BUILD / f"probe-{os.getpid()}.c"
    unfinished = BUILD / f"probe-{os.getpid()}.so"
    package = ["-I", str(headers.parents[1])]
    run([sys.executable, "-m", "cython", "-3", *package, "--output-file", str(c_file), str(SOURCE)])
    include = ["-I", str(headers), "-I", sysconfig.get_path("include")]
    options = [*flags("CFLAGS"), *flags("CCSHARED"), "-shared", *include]
    run([*compiler(), *options, str(c_file), "-o", str(unfinished)])
    c_file.replace(BUILD / "probe.c")
    unfinished.replace(target)
    stamp.write_text(digest)
    return target


def sources(headers: Path) -> list[Path]:
    """What the extension is built from: it, the package's .pxd files and its headers."""
    return [SOURCE, *sorted(headers.glob("*.pxd")), *sorted(headers.glob("*.h"))]


def digest_of(files: list[Path]) -> str:
    """Return a digest of files and of where they are.

    Times would not do: an installed file keeps the time of the archive that it came in.
    """
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file} {file.stat().st_size}\n".encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()


def compiler() -> list[str]:
    """The compiler that the environment names, the one of the interpreter, or cc."""
    for command in (os.environ.get("CC"), sysconfig.get_config_var("CC")):
        words = shlex.split(command or "")
        if words and shutil.which(words[0]):
            return words
    return ["cc"]


def flags(name: str) -> list[str]:
    return shlex.split(sysconfig.get_config_var(name) or "")


def run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{shlex.join(command)} failed:\n{done.stdout}{done.stderr}")
