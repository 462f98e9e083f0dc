/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

/* Where CPython keeps whether tracemalloc traces.
 *
 * PyTraceMalloc_Track() tells, too; but since 3.12.9, 3.13.2 and 3.14 it takes the state of
 * the interpreter lock and a lock of its own before it looks, which costs almost as much as
 * allocating a frame.  meson.build leaves this file out if it does not compile.
 */
#define Py_BUILD_CORE 1
#include <Python.h>
#if PY_VERSION_HEX < 0x030C0000
#include <internal/pycore_pymem.h>
const int *pf_tracing_flag(void) { return &_Py_tracemalloc_config.tracing; }
#else
#include <internal/pycore_runtime.h>
const int *pf_tracing_flag(void) { return &_PyRuntime.tracemalloc.config.tracing; }
#endif
