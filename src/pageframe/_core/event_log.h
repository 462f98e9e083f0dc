/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

/* A log of events as lines of CSV, written without Python: frames are let go of where no
 * Python code may run, with and without the interpreter lock.
 *
 * Frames next to one another that the same event took in one thread make one line.  Those
 * of an allocation end with it (pf_log_break()); those that are let go within a millisecond
 * are taken together, and the time is that of the first.
 *
 * A mutex guards a log.  Nothing that is done under it waits for the interpreter lock.  It
 * is of one process: a forked child does not write to the log of its parent, nor take the
 * mutex, which a thread of the parent may have held.
 */
#ifndef PAGEFRAME_EVENT_LOG_H
#define PAGEFRAME_EVENT_LOG_H

#include <errno.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "atomic.h"

enum { PF_LOG_ALLOCATE, PF_LOG_RELEASE, PF_LOG_FAILURE };

#define PF_LOG_HEADER "time,thread,event,paddr,bytes,type\n"
#define PF_LOG_LINE 512         /* no line is longer: a type's name has 224 bytes at the most */
#define PF_LOG_TOGETHER 1000000 /* nanoseconds */

typedef struct {
    pthread_mutex_t mutex;
    int fd;            /* -1: closed */
    int error;         /* errno of the write that failed, after which nothing is written */
    uint32_t forks;    /* of the process that opened it */
    size_t used;
    /* The line that may still grow; 0 bytes: none. */
    int event;
    unsigned long thread;
    int64_t time;
    uint64_t paddr;
    uint64_t bytes;
    char type[225];
    char buffer[1 << 16];
} pf_log;

/* Forks that led to this process. */
static uint32_t pf_log_forks;

static void pf_log_after_fork(void) {
    pf_log_forks++;
}

/* Once per process, when the module is imported. */
static int pf_log_setup(void) {
    return pthread_atfork(NULL, NULL, pf_log_after_fork);
}

static void pf_log_write(pf_log *log) {
    size_t done = 0;
    while (done < log->used && log->error == 0) {
        ssize_t n = write(log->fd, log->buffer + done, log->used - done);
        if (n >= 0)
            done += (size_t)n;
        else if (errno != EINTR)
            log->error = errno;
    }
    log->used = 0;
}

static void pf_log_end_line(pf_log *log) {
    int n;
    if (log->bytes == 0)
        return;
    if (log->used + PF_LOG_LINE > sizeof(log->buffer))
        pf_log_write(log);
    n = snprintf(log->buffer + log->used, PF_LOG_LINE, "%lld.%06lld,%lu,",
                 (long long)(log->time / 1000000000), (long long)(log->time / 1000 % 1000000),
                 log->thread);
    log->used += (size_t)n;
    if (log->event == PF_LOG_FAILURE)
        n = snprintf(log->buffer + log->used, PF_LOG_LINE, "failure,,%llu,\n",
                     (unsigned long long)log->bytes);
    else
        n = snprintf(log->buffer + log->used, PF_LOG_LINE, "%s,%llu,%llu,%s\n",
                     log->event == PF_LOG_ALLOCATE ? "allocate" : "release",
                     (unsigned long long)log->paddr, (unsigned long long)log->bytes, log->type);
    log->used += (size_t)n;
    log->bytes = 0;
}

/* Whether the log is open, and of this process; then its mutex is ours. */
static int pf_log_lock(pf_log *log) {
    if (log->forks != pf_log_forks)
        return 0;
    pthread_mutex_lock(&log->mutex);
    if (log->fd >= 0)
        return 1;
    pthread_mutex_unlock(&log->mutex);
    return 0;
}

/* A run of frames, whose type has a name of size bytes at the most. */
static void pf_log_event(pf_log *log, int event, uint64_t paddr, uint64_t bytes, const char *type,
                         size_t size) {
    struct timespec now;
    int64_t time;
    unsigned long thread = (unsigned long)pthread_self();
    size_t i;
    if (!pf_log_lock(log))
        return;
    clock_gettime(CLOCK_REALTIME, &now);
    time = (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
    size = strnlen(type, size < sizeof(log->type) ? size : sizeof(log->type) - 1);
    if (log->bytes && log->event == event && event != PF_LOG_FAILURE && log->thread == thread &&
        log->paddr + log->bytes == paddr && strncmp(log->type, type, size) == 0 &&
        log->type[size] == 0 && time - log->time < PF_LOG_TOGETHER && time >= log->time) {
        log->bytes += bytes;
    } else {
        pf_log_end_line(log);
        log->event = event;
        log->thread = thread;
        log->time = time;
        log->paddr = paddr;
        log->bytes = bytes;
        memcpy(log->type, type, size);
        log->type[size] = 0;
        /* What another process has registered may have any name. */
        for (i = 0; i < size; i++)
            if ((unsigned char)type[i] < ' ' || type[i] == ',' || type[i] == '"')
                log->type[i] = '?';
    }
    pthread_mutex_unlock(&log->mutex);
}

/* What comes next begins a line of its own. */
static void pf_log_break(pf_log *log) {
    if (pf_log_lock(log)) {
        pf_log_end_line(log);
        pthread_mutex_unlock(&log->mutex);
    }
}

/* NULL: no memory.  The descriptor is the log's from then on. */
static pf_log *pf_log_open(int fd) {
    pf_log *log = malloc(sizeof(pf_log));
    if (log == NULL)
        return NULL;
    pthread_mutex_init(&log->mutex, NULL);
    log->fd = fd;
    log->error = 0;
    log->forks = pf_log_forks;
    log->bytes = 0;
    log->used = sizeof(PF_LOG_HEADER) - 1;
    memcpy(log->buffer, PF_LOG_HEADER, log->used);
    return log;
}

/* Write what is still there; and, if it is to be closed, nothing more.  Returns the errno
 * of what could not be written. */
static int pf_log_flush(pf_log *log, int closes) {
    int error = 0;
    if (pf_log_lock(log)) {
        pf_log_end_line(log);
        pf_log_write(log);
        error = log->error;
        if (closes) {
            /* In this order: a child forked in between must not close what another has opened. */
            int fd = log->fd;
            log->fd = -1;
            close(fd);
        }
        pthread_mutex_unlock(&log->mutex);
    }
    return error;
}

static void pf_log_free(pf_log *log) {
    if (log == NULL)
        return;
    if (log->forks == pf_log_forks)
        pf_log_flush(log, 1);
    else if (log->fd >= 0)
        close(log->fd);
    free(log);
}

#endif
