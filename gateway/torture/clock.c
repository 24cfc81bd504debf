/* Put before the C library by LD_PRELOAD: the time of day, and an offset in microseconds that the file named by
 * TORTURE_CLOCK holds. Only the torture's Valkey nodes run with it. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile int64_t nothing = 0, *offset_us = &nothing;

static int real_clock_gettime(clockid_t clock, struct timespec *at) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    return real(clock, at);
}

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("TORTURE_CLOCK");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (file >= 0) {
        void *mapped = mmap(NULL, sizeof *offset_us, PROT_READ, MAP_SHARED, file, 0);
        if (mapped != MAP_FAILED) offset_us = mapped;
        close(file);
    }
}

static int64_t now_ns(void) {
    struct timespec now;
    real_clock_gettime(CLOCK_REALTIME, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec + *offset_us * 1000;
}

int gettimeofday(struct timeval *restrict at, void *restrict zone) {
    int64_t now = now_ns();
    (void)zone;
    at->tv_sec = now / 1000000000;
    at->tv_usec = now % 1000000000 / 1000;
    return 0;
}

int clock_gettime(clockid_t clock, struct timespec *at) {
    int64_t now;
    if (clock != CLOCK_REALTIME) return real_clock_gettime(clock, at);
    now = now_ns();
    at->tv_sec = now / 1000000000;
    at->tv_nsec = now % 1000000000;
    return 0;
}

time_t time(time_t *at) {
    time_t now = now_ns() / 1000000000;
    if (at) *at = now;
    return now;
}
