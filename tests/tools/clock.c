/* A clock that can be set, for one process: LD_PRELOAD this, and FORWARDER_TEST_CLOCK names a file of 8 bytes, the nanoseconds by
 * which the time of day is ahead. What is waited for by the time of day comes when that is reached, as the kernel has it: later
 * when the clock is set back meanwhile. Monotonic clocks are left alone.
 *
 * libfaketime 0.9.10 does not know cnd_timedwait, by which librdkafka waits. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <threads.h>
#include <time.h>
#include <unistd.h>

#define SECOND 1000000000LL
#define SLICE (20 * 1000000LL)
static const volatile int64_t *ahead_by;
static int (*real_wait)(cnd_t *restrict, mtx_t *restrict, const struct timespec *restrict);

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("FORWARDER_TEST_CLOCK");
    int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    void *page = fd < 0 ? MAP_FAILED : mmap(NULL, sizeof *ahead_by, PROT_READ, MAP_SHARED, fd, 0);
    if (page == MAP_FAILED) abort();
    close(fd);
    ahead_by = page;
    *(void **)&real_wait = dlsym(RTLD_NEXT, "cnd_timedwait");
    if (!real_wait) abort();
}

static int64_t true_time(void) {
    struct timespec now;
    syscall(SYS_clock_gettime, CLOCK_REALTIME, &now);
    return now.tv_sec * SECOND + now.tv_nsec;
}

static int64_t told_time(void) { return true_time() + (ahead_by ? *ahead_by : 0); }

static struct timespec to_timespec(int64_t time) { return (struct timespec){time / SECOND, time % SECOND}; }

int clock_gettime(clockid_t clock, struct timespec *now) {
    if (clock != CLOCK_REALTIME && clock != CLOCK_REALTIME_COARSE) return (int)syscall(SYS_clock_gettime, clock, now);
    *now = to_timespec(told_time());
    return 0;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    int64_t time = told_time();
    (void)zone;
    *now = (struct timeval){time / SECOND, time % SECOND / 1000};
    return 0;
}

time_t time(time_t *now) {
    time_t seconds = told_time() / SECOND;
    if (now) *now = seconds;
    return seconds;
}

int timespec_get(struct timespec *now, int base) {
    *now = to_timespec(told_time());
    return base;
}

int cnd_timedwait(cnd_t *restrict condition, mtx_t *restrict mutex, const struct timespec *restrict until) {
    int64_t end = until->tv_sec * SECOND + until->tv_nsec;
    for (;;) {
        int64_t left = end - told_time();
        struct timespec slice = to_timespec(true_time() + (left < 0 ? 0 : left < SLICE ? left : SLICE));
        int result = real_wait(condition, mutex, &slice);
        if (result != thrd_timedout || told_time() >= end) return result;
    }
}
