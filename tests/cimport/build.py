# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Builds test extensions as a user would build one, against the installed package."""

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

BUILD = Path(__file__).parents[2] / "build" / "cimport" / sysconfig.get_config_var("SOABI")


def load(name: str) -> ModuleType:
    """Return a test extension; it is built if there is none of the present sources."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, build(Path(__file__).with_name(f"{name}.pyx")))
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        sys.modules[name] = module
    return sys.modules[name]


def build(source: Path) -> Path:
    """Build an extension unless what was built is of the present sources; return its path."""
    headers = Path(pageframe.get_include())
    name = source.stem
    target = BUILD / f"{name}{sysconfig.get_config_var('EXT_SUFFIX')}"
    stamp = BUILD / f"{name}-sources"
    digest = digest_of([source, *sorted(headers.glob("*.pxd")), *sorted(headers.glob("*.h"))])
    if target.exists() and stamp.exists() and stamp.read_text() == digest:
        return target
    BUILD.mkdir(parents=True, exist_ok=True)
    c_file = BUILD / f"{name}-{os.getpid()}.c"
    unfinished = BUILD / f"{name}-{os.getpid()}.so"
    compile_extension(source, c_file, unfinished, headers)
    c_file.replace(BUILD / f"{name}.c")
    unfinished.replace(target)
    stamp.write_text(digest)
    return target


def compile_extension(source: Path, c_file: Path, target: Path, headers: Path) -> None:
    package = ["-I", str(headers.parents[1])]
    run([sys.executable, "-m", "cython", "-3", *package, "--output-file", str(c_file), str(source)])
    include = ["-I", str(headers), "-I", sysconfig.get_path("include")]
    options = [*flags("CFLAGS"), *flags("CCSHARED"), "-shared", *sanitizers(), *include]
    run([*compiler(), *options, str(c_file), "-o", str(target)])


def sanitizers() -> list[str]:
    """What the package was built with (sanitized/run.py), if that is so."""
    names = os.environ.get("PAGEFRAME_SANITIZE")
    return ["-O1", "-g", "-Wno-tsan", f"-fsanitize={names}"] if names else []


def digest_of(files: list[Path]) -> str:
    """Return a digest of files and of where they are.

    Times would not do: an installed file keeps the time of the archive that it came in.
    """
    digest = hashlib.sha256(" ".join(sanitizers()).encode())
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
    # The sanitizer that is loaded into this process would only slow the compiler down.
    environment = {**os.environ, "LD_PRELOAD": ""}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode != 0:
        raise RuntimeError(f"{shlex.join(command)} failed:\n{done.stdout}{done.stderr}")
