# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""With a fault planted in the core, the sanitizers must report it where it is: ``make planted``.

The sanitized package is copied by links and one line of the copy replaced.  A module is built anew;
a header goes into what includes it, which is the stress module (cimport/stress.pyx).
"""

import os
import shutil
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import pytest

from cimport.build import compile_extension
from sanitized.run import FLAGS, ROOT, folder, install, sanitized

STRESS = ["tests/sanitized/stress.py", "--seed", "1", "--operations", "100000", "--kinds"]


@dataclass
class Fault:
    """A line of a file of the core, what is in its place, a run that comes by, and what is reported."""

    file: str
    line: str
    instead: str
    arguments: list
    reported: list


FAULTS = {
    "address": {
        "a table that is too short": Fault(
            "vector.pyx",
            "    vec.frames = <uint64_t *>calloc(max(count, 1), sizeof(uint64_t))",
            "    vec.frames = <uint64_t *>calloc(max(count - 1, 1), sizeof(uint64_t))",
            ["-m", "pytest", "-x", "tests/test_vector.py"],
            ["AddressSanitizer: heap-buffer-overflow", "allocator_claim_round"],
        ),
        "a table that is used after it was freed": Fault(
            "audit.pyx",
            "        tickets = count_holders(mem, expected, kept)",
            "        tickets = count_holders(mem, expected, kept); free(kept)",
            ["-m", "pytest", "-x", "tests/test_reap.py"],
            ["AddressSanitizer: heap-use-after-free", "audit_audit"],
        ),
        "a shift by more than a word": Fault(
            "allocator.pyx",
            "    return 1ull << (frame & (WORD_BITS - 1))",
            "    return 1ull << frame",
            ["-m", "pytest", "-x", "tests/test_allocator.py"],
            ["runtime error: shift exponent", "allocator"],
        ),
    },
    "thread": {
        "a count that is published by a plain store": Fault(
            "slot.h",
            "    pf_store_release_u64(&s->count, count);",
            "    s->count = count;",
            [*STRESS, "private"],
            ["ThreadSanitizer: data race", "pf_slot_publish"],
        ),
        "a reference that is counted without atomics": Fault(
            "slot.h",
            "    if (pf_add_release_u64(&s->count, 1) >= PF_MAX) {",
            "    if (s->count++ >= PF_MAX) {",
            [*STRESS, "private"],
            ["ThreadSanitizer: data race", "pf_slot_inc"],
        ),
        "a last reference that acquires nothing": Fault(
            "slot.h",
            "    pf_fence_acquire_u64(&s->count);",
            "    ;",
            [*STRESS, "private"],
            ["ThreadSanitizer: data race", "stress_end"],
        ),
        "a kept frame that is not released": Fault(
            "allocator.pyx",
            "        pf_store_release_u64(&lane.kept, frame + 1)",
            "        pf_store_relaxed_u64(&lane.kept, frame + 1)",
            [*STRESS, "private"],
            ["ThreadSanitizer: data race", "stress_begin"],
        ),
        "bits that are cleared without atomics": Fault(
            "allocator.pyx",
            "        pf_and_release_u64(&a.bits[word], ~left)",
            "        a.bits[word] &= ~left",
            [*STRESS, "private"],
            ["ThreadSanitizer: data race", "give_back_owned"],
        ),
    },
}


def source_of(fault):
    """Return the text of the file that a fault is put in, in which its line stands once."""
    text = (ROOT / "src" / "pageframe" / "_core" / fault.file).read_text()
    assert text.count(f"{fault.line}\n") == 1, f"{fault.file} has not one line {fault.line!r}"
    return text


def plant(kind, name, fault):
    """Make a copy of the sanitized package with a fault; return the folder to find it in."""
    python = install(kind)
    package = sysconfig.get_path("purelib", vars={"base": str(python.parents[1])})
    home = folder(kind) / "planted" / name.replace(" ", "-")
    shutil.rmtree(home, ignore_errors=True)
    shutil.copytree(Path(package, "pageframe"), home / "pageframe", copy_function=os.link)
    core = home / "pageframe" / "_core"
    source = core / fault.file
    source.unlink(missing_ok=True)  # a link, whose other name stays as it is
    source.write_text(source_of(fault).replace(f"{fault.line}\n", f"{fault.instead}\n"))
    if source.suffix == ".pyx":
        target = source.with_suffix(sysconfig.get_config_var("EXT_SUFFIX"))
        target.unlink()
        compile_extension(source, source.with_suffix(".c"), target, core)
    return home


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in FAULTS for name in FAULTS[kind]])
def test_a_planted_fault_is_reported_where_it_is(monkeypatch, kind, name):
    fault = FAULTS[kind][name]
    monkeypatch.setenv("PAGEFRAME_SANITIZE", FLAGS[kind])
    home = plant(kind, name, fault)
    path = os.pathsep.join([str(home), str(ROOT / "tests")])
    code, found = sanitized(kind, fault.arguments, timeout=600, PYTHONPATH=path)
    assert code != 0
    for words in fault.reported:
        assert words in found, found
