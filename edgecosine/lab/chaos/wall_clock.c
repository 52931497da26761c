/* Shifts the wall clock of the process that it is preloaded into, and no other clock.
 *
 * The file named by LAB_WALL_CLOCK holds eight bytes: the shift in nanoseconds, which may change at
 * any time. Built and used by edgecosine/lab/chaos/wall_clock.py.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>
#include <dlfcn.h>

#define NANOSECONDS 1000000000LL

static volatile const int64_t *shift_ns;
static int (*real_gettime)(clockid_t, struct timespec *);

__attribute__((constructor)) static void find_shift(void) {
    real_gettime = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    const char *path = getenv("LAB_WALL_CLOCK");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0) return;
    void *page = mmap(NULL, sizeof(int64_t), PROT_READ, MAP_SHARED, file, 0);
    close(file);
    if (page != MAP_FAILED) shift_ns = page;
}

int clock_gettime(clockid_t which, struct timespec *when) {
    int failure = real_gettime ? real_gettime(which, when)
                               : (int)syscall(SYS_clock_gettime, which, when);
    if (failure || !shift_ns || (which != CLOCK_REALTIME && which != CLOCK_REALTIME_COARSE))
        return failure;
    int64_t ns = when->tv_sec * NANOSECONDS + when->tv_nsec + *shift_ns;
    when->tv_sec = ns / NANOSECONDS;
    when->tv_nsec = ns % NANOSECONDS;
    return 0;
}

time_t time(time_t *where) {
    struct timespec when;
    clock_gettime(CLOCK_REALTIME, &when);
    if (where) *where = when.tv_sec;
    return when.tv_sec;
}

int gettimeofday(struct timeval *restrict where, void *restrict zone) {
    (void)zone;
    struct timespec when;
    clock_gettime(CLOCK_REALTIME, &when);
    where->tv_sec = when.tv_sec;
    where->tv_usec = when.tv_nsec / 1000;
    return 0;
}
