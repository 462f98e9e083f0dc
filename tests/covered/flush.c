/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

/* Loaded before everything else (LD_PRELOAD), so that processes that end without their exit
 * handlers leave their counters, too: forked children of the tests (os._exit), and those that
 * kill themselves at a step (step.h).
 *
 * Each module has its own list of counters; gcov's master list is what joins them, and is one
 * only because this library, which is linked with gcov, comes first.
 */
#define _GNU_SOURCE
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

void __gcov_dump(void);

void _exit(int status) {
    __gcov_dump();
    for (;;)
        syscall(SYS_exit_group, status);
}

int kill(pid_t pid, int number) {
    if (pid == getpid() && number == SIGKILL)
        __gcov_dump();
    return (int)syscall(SYS_kill, pid, number);
}
