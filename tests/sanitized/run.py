# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Runs Python with the package built with a sanitizer: ``python -m sanitized.run address -m pytest tests``.

The package is installed, not editable, in a virtual environment of its own in ``build``, which
finds everything else in that of the running interpreter.  The sanitizer is loaded ahead of
Python by the environment, so it and the instrumented package are what every child gets, too.

Reports go to files, since the output of many a child is not looked at.  A run is clean if its
exit code is 0 and nobody has reported anything.
"""

import ctypes
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

from steps.build import ROOT, digest_of, run, sources

# What the compiler is told, what is loaded before Python, and the sanitizers' options.
# A test may ask for more memory than there is, and handle the faults of a page that is gone.
FLAGS = {"address": "address,undefined", "thread": "thread"}
LIBRARIES = {"address": ["libasan.so", "libubsan.so"], "thread": ["libtsan.so"]}
OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=0:handle_segv=0:handle_sigbus=0:allocator_may_return_null=1",
    "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1:handle_segv=0:handle_sigbus=0",
    "TSAN_OPTIONS": "die_after_fork=0:handle_segv=0:handle_sigbus=0",
}

# What each Python does at its start.  Where there are two sanitizers, the path of the options
# becomes that of the first for both; the last is told here.
REPORT = (
    "import ctypes, os; os.environ.get('LD_PRELOAD') and 'PAGEFRAME_REPORTS' in os.environ and "
    "ctypes.CDLL(os.environ['LD_PRELOAD'].split()[-1])"
    ".__sanitizer_set_report_path(os.environ['PAGEFRAME_REPORTS'].encode())"
)
ADDR_NO_RANDOMIZE = 0x0040000


def folder(kind: str) -> Path:
    """Return where everything for a sanitizer lies."""
    return ROOT / "build" / kind / sysconfig.get_config_var("SOABI")


def install(kind: str) -> Path:
    """Install the package, unless what is there is of the present sources; return the interpreter."""
    home = folder(kind) / "venv"
    python = home / "bin" / "python"
    stamp = folder(kind) / "sources"
    digest = digest_of([Path(__file__), *sources()])
    if stamp.exists() and stamp.read_text() == digest:
        return python
    stamp.unlink(missing_ok=True)
    venv.create(home, clear=True, symlinks=True)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(home)}))
    # Such a line adds the folder; the .pth files in it, an editable install among them, are not read.
    site.joinpath("tools.pth").write_text(f"{sysconfig.get_path('purelib')}\n{REPORT}\n")
    options = [
        "--quiet", "--disable-pip-version-check", "--no-build-isolation", "--no-deps", "--no-compile",
        f"-Cbuild-dir={folder(kind) / 'meson'}", f"-Csetup-args=-Db_sanitize={FLAGS[kind]}",
        "-Csetup-args=-Db_lundef=false", "-Csetup-args=-Doptimization=1", "-Csetup-args=-Ddebug=true",
    ]  # fmt: skip
    run([sys.executable, "-m", "pip", "--python", str(python), "install", *options, str(ROOT)])
    stamp.write_text(digest)
    return python


def environment(kind: str, reports: Path) -> dict[str, str]:
    """Return the environment in which Python and its children run; reports is a prefix of files."""
    found = [
        subprocess.run(
            ["cc", f"-print-file-name={name}"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for name in LIBRARIES[kind]
    ]
    options = {name: f"{value}:log_path={reports}" for name, value in OPTIONS.items()}
    return {
        **os.environ,
        **options,
        "LD_PRELOAD": " ".join(found),
        "PAGEFRAME_REPORTS": str(reports),
        "PAGEFRAME_SANITIZE": FLAGS[kind],  # what a test builds itself is built so, too
        "PYTHONMALLOC": "malloc",
        "OPENBLAS_NUM_THREADS": "1",
    }


def fixed_addresses() -> None:
    """Have the program load where ThreadSanitizer expects it; newer kernels randomize more bits."""
    ctypes.CDLL(None).personality(ADDR_NO_RANDOMIZE)


def sanitized(kind: str, arguments: list[str], timeout: float | None = None, **extra: str) -> tuple[int, str]:
    """Run Python; return its exit code and all reports."""
    python = install(kind)
    reports = folder(kind) / "reports"
    shutil.rmtree(reports, ignore_errors=True)
    reports.mkdir(parents=True)
    done = subprocess.run(
        [python, *arguments],
        check=False,
        cwd=ROOT,
        timeout=timeout,
        env={**environment(kind, reports / "report"), **extra},
        preexec_fn=fixed_addresses,
    )
    return done.returncode, "".join(file.read_text(errors="replace") for file in sorted(reports.iterdir()))


def main() -> int:
    """Run what the command line says."""
    code, found = sanitized(sys.argv[1], sys.argv[2:])
    if found:
        print(found)
        return code or 1
    print(f"{sys.argv[1]}: nothing reported")
    return code


if __name__ == "__main__":
    sys.exit(main())
