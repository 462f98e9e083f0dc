# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Which lines the tests run: Python, Cython and C, in one report.

A copy of the package is built with gcov's counters and with the hook of tests/test_crash_points.py,
and installed in an environment of its own.  coverage.py watches Python; gcov counts lines of C, and
`cython_lines` tells which line of a .pyx or .pxd each was generated from, so that code without the
interpreter lock is counted like any other.  Processes that end by ``os._exit`` or kill themselves
are counted, too (flush.c); what another process kills is not.

Each line of the core that nobody ran must be named in uncovered.toml, with the reason; one that is
not named there, or is named and was run, fails the command.  Run by ``make coverage``.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import time
import tomllib
import venv
from collections import Counter as Multiset
from collections import defaultdict
from pathlib import Path

import coverage

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SOURCE = ROOT / "src" / "pageframe"
BUILD = ROOT / "build" / "coverage" / sysconfig.get_config_var("SOABI")
LISTED = HERE / "uncovered.toml"
CORE = SOURCE / "_core"
CC = os.environ.get("CC", "cc").split()

# A build with counters is slow, and what another user starts can't leave any.
NOT_HERE = [
    "tests/test_commands.py::test_stat_of_16_gib_of_which_three_million_frames_are_used_takes_less_than_"
    "a_tenth_of_a_second",
    "tests/test_commands.py::test_another_users_arena_is_listed_and_refused",
    "tests/test_damaged_arena.py::test_another_user_is_refused_and_told_why",
]

Counts = dict[int, int]  # how often the lines of a file were run


def run(*command: object, check: bool = True, **env: str) -> int:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    done = subprocess.run(
        [str(word) for word in command], cwd=ROOT, env={**os.environ, "PATH": path, **env}, check=False
    )
    if check and done.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, command))} failed")
    return done.returncode


# -- the run -----------------------------------------------------------------------------------


def site_of(home: Path) -> Path:
    return Path(sysconfig.get_path("platlib", "venv", {"base": str(home), "platbase": str(home)}))


def build() -> Path:
    """Build and install the package with counters; return the home of the environment that has it."""
    home = BUILD / "venv"
    python = home / "bin" / "python"
    if not python.exists():
        venv.create(home, symlinks=True)
        # All else comes from the environment that runs us, but not the package that is installed there.
        ours = Path(sysconfig.get_path("purelib"))
        (site_of(home) / "a0_others.pth").write_text(f"{ours}\n")
        shutil.copy(ours / "a1_coverage.pth", site_of(home))
    setup = ["-Dbuildtype=debug", "-Doptimization=0", "-Db_coverage=true", "-Dsteps=true"]
    options = [*(f"-Csetup-args={option}" for option in setup), f"-Cbuild-dir={BUILD / 'meson'}"]
    options += ["--quiet", "--disable-pip-version-check", "--no-build-isolation", "--no-deps"]
    run(python, "-m", "pip", "install", "--force-reinstall", *options, ROOT)
    run(*CC, "-shared", "-fPIC", HERE / "flush.c", "-lgcov", "-o", BUILD / "flush.so")
    return home


def run_tests(home: Path, arguments: list[str]) -> int:
    """Run the tests; return how that ended."""
    for old in [*BUILD.glob("meson/**/*.gcda"), *BUILD.glob("python*")]:
        old.unlink()
    (BUILD / "coveragerc").write_text(
        "[run]\n"
        "source_pkgs = pageframe\n"
        f"data_file = {BUILD / 'python'}\n"
        "parallel = true\n"
        "patch = _exit, fork, subprocess\n"
        "[paths]\n"
        f"source =\n  {SOURCE}\n  {site_of(home) / 'pageframe'}\n"
    )
    left_out = [f"--deselect={test}" for test in NOT_HERE]
    watched = ["-m", "coverage", "run", f"--rcfile={BUILD / 'coveragerc'}"]
    return run(
        home / "bin" / "python", *watched, "-m", "pytest", *left_out, *arguments, check=False,
        LD_PRELOAD=str(BUILD / "flush.so"),
        GCOV_ERROR_FILE=os.devnull,  # some tests run a process that must not write files
        PAGEFRAME_TEST_STEPS=str(site_of(home)),
    )  # fmt: skip


# -- what it came to ---------------------------------------------------------------------------


def cython_lines(c_file: Path) -> dict[int, tuple[Path, int]]:
    """Of each line of generated C, the line of ours that it is for; none of what Cython adds.

    Cython writes a comment before the code of each line, and one before what ends a function.
    """
    found, current = {}, None
    for number, text in enumerate(c_file.read_text().splitlines(), 1):
        if marker := re.match(r'\s*/\* "pageframe/(\S+\.p(?:yx|xd))":(\d+)$', text):
            current = SOURCE / marker[1], int(marker[2])
        elif text == "}" or re.match(r"\s*/\* (function exit code|Python wrapper) \*/", text):
            current = None
        elif current:
            found[number] = current
    return found


def counted() -> dict[Path, Counts]:
    """Return how often each line of Cython and C in the core was run."""
    counts: dict[Path, Counts] = defaultdict(lambda: defaultdict(int))
    folder = BUILD / "meson"
    for notes in sorted(folder.glob("src/**/*.gcno")):
        command = ["gcov", "--json-format", "--stdout", str(notes)]
        told = subprocess.run(command, capture_output=True, check=True, cwd=folder).stdout
        (c_file,) = notes.parent.glob("*.pyx.c")
        ours = cython_lines(c_file)
        for file in json.loads(told)["files"]:
            path = (folder / file["file"]).resolve()
            for line in file["lines"]:
                place = path, line["line_number"]
                if path == c_file:
                    place = ours.get(line["line_number"])
                elif path.parent != CORE:
                    place = None
                if place:
                    of_file = counts[place[0]]
                    of_file[place[1]] = max(of_file[place[1]], line["count"])
    return counts


class Counted(coverage.FileReporter):
    """A file of Cython or C, for coverage.py to report on."""

    def __init__(self, file: str, counts: Counts) -> None:
        super().__init__(file)
        self.counts = counts

    def lines(self) -> set[int]:
        return set(self.counts)


class Core(coverage.CoveragePlugin):
    """What coverage.py asks about files that are not Python."""

    def __init__(self, counts: dict[Path, Counts]) -> None:
        self.counts = counts

    def file_reporter(self, filename: str) -> Counted:
        return Counted(filename, self.counts[Path(filename)])


def report() -> dict[Path, set[int]]:
    """Print a table and write the pages; return the lines of each file that were not run."""
    core = Core(counted())
    whole = coverage.Coverage(
        config_file=str(BUILD / "coveragerc"), plugins=[lambda plugins: plugins.add_file_tracer(core)]
    )
    whole.combine(keep=True)
    data = whole.get_data()
    data.add_lines({str(file): [n for n in counts if counts[n]] for file, counts in core.counts.items()})
    data.add_file_tracers(dict.fromkeys(map(str, core.counts), core._coverage_plugin_name))
    whole.report(show_missing=False, sort="name")
    whole.html_report(directory=str(BUILD.parent / "html"))
    whole.json_report(outfile=str(BUILD.parent / "coverage.json"), pretty_print=True)
    missing = {}
    for file in sorted(data.measured_files()):
        missing[Path(file)] = set(whole.analysis2(file)[3])
    return missing


# -- what may be left --------------------------------------------------------------------------

BEGINS = re.compile(r"(?:async |cp?|cdef )?(?:def|class)\b|static\b")

Place = tuple[str, str, str]  # a file of the core, a function, and the text of a line


def function_of(text: list[str], number: int) -> str:
    """Return the name of the function, with its class, that a line stands in."""
    names, depth = [], indent_of(text[number - 1]) + 1
    for line in reversed(text[:number]):
        if line.strip() and line.strip() != "}" and indent_of(line) < depth:
            depth = indent_of(line)
            if head := BEGINS.match(line.strip()) and re.match(r"[^=(:]*?(\w+)\s*[(:]", line.strip()):
                names.append(head[1])
    return ".".join(reversed(names)) or "module"


def indent_of(line: str) -> int:
    return len(line) - len(line.lstrip())


def places(missing: dict[Path, set[int]]) -> Multiset[Place]:
    """Name lines of the core so that a change elsewhere in the file does not matter."""
    found: Multiset[Place] = Multiset()
    for file, numbers in missing.items():
        if file.parent == CORE:
            text = file.read_text().splitlines()
            for number in sorted(numbers):
                found[file.name, function_of(text, number), text[number - 1].strip()] += 1
    return found


def listed() -> tuple[Multiset[Place], Multiset[Place]]:
    """Return the lines that no run reaches, and those that some runs reach."""
    never: Multiset[Place] = Multiset()
    seldom: Multiset[Place] = Multiset()
    for file, entries in tomllib.loads(LISTED.read_text()).items():
        for entry in entries:
            lines = seldom if entry.get("seldom") else never
            for text in entry["lines"]:
                lines[file, entry["in"], text] += 1
    return never, seldom


def told(title: str, found: Multiset[Place]) -> bool:
    """Print lines in the form of uncovered.toml; tell whether there are some."""
    if found:
        print(f"\n{title}:")
    functions = defaultdict(list)
    for file, function, text in found.elements():
        functions[file, function].append(text)
    for (file, function), lines in functions.items():
        print(f'\n[["{file}"]]\nin = "{function}"\nreason = ""\nlines = {json.dumps(lines, indent=2)}')
    return bool(found)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--report-only", action="store_true", help="report on the last run once more")
    parser.add_argument("arguments", nargs="*", default=["tests"], help="for pytest")
    chosen = parser.parse_args()
    start = time.monotonic()
    failed = 0
    if not chosen.report_only:
        home = build()
        print(f"built in {time.monotonic() - start:.0f} s", flush=True)
        failed = run_tests(home, chosen.arguments)
    missing = places(report())
    if chosen.arguments != ["tests"]:
        return failed
    never, seldom = listed()
    wrong = told(
        "Lines of the core that nobody ran and uncovered.toml does not name", missing - never - seldom
    )
    wrong |= told("Lines that uncovered.toml names and that were run, or are gone", never - missing)
    print(f"\n{missing.total()} lines of the core were not run; {time.monotonic() - start:.0f} s")
    return 1 if failed or wrong else 0


if __name__ == "__main__":
    sys.exit(main())
