/* A wall clock that goes back. Loaded before libc, for a whole tree of processes.
   ALEXNET_CHAOS_CLOCK=FILE:SECONDS: so much earlier once FILE exists.

   The kernel's clock stays as it is, so a moment that a program has worked out by this one is moved
   forward again where the kernel is asked to wait for it. A wait that has begun before the clock
   goes back ends when it would have; with a real clock it would last longer. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define NEXT(name, version) ((__typeof__(&name))dlvsym(RTLD_NEXT, #name, version))

static time_t back(void) {
  static volatile time_t found = 0;
  if (found) return found; /* it stays back; to look for a file each time takes time itself */
  const char *setting = getenv("ALEXNET_CHAOS_CLOCK");
  const char *colon = setting ? strrchr(setting, ':') : NULL;
  char flag[4096];
  if (!colon || colon - setting >= (long)sizeof flag) return 0;
  memcpy(flag, setting, colon - setting);
  flag[colon - setting] = 0;
  int saved = errno;
  if (access(flag, F_OK) == 0) found = atol(colon + 1);
  errno = saved;
  return found;
}

/* The moment, by the kernel's clock, that is `at` by this one. */
static const struct timespec *moved(const struct timespec *at, struct timespec *to) {
  if (!at) return NULL;
  *to = *at;
  to->tv_sec += back();
  return to;
}

static long kernel(long number, long a, long b, long c, long d, long e, long f) {
  static long (*next)(long, ...);
  if (!next) next = (long (*)(long, ...))dlsym(RTLD_NEXT, "syscall");
  return next(number, a, b, c, d, e, f);
}

long syscall(long number, ...) {
  va_list rest;
  long a[6];
  struct timespec to;
  va_start(rest, number);
  for (int i = 0; i < 6; i++) a[i] = va_arg(rest, long);
  va_end(rest);
  if (number == SYS_futex && (a[1] & FUTEX_CMD_MASK) == FUTEX_WAIT_BITSET &&
      (a[1] & FUTEX_CLOCK_REALTIME))
    a[3] = (long)moved((const struct timespec *)a[3], &to);
  return kernel(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}

int pthread_cond_timedwait(pthread_cond_t *cond, pthread_mutex_t *mutex,
                           const struct timespec *at) {
  struct timespec to;
  int monotonic = at->tv_sec < 1000000000; /* seconds since the start, not since 1970 */
  return NEXT(pthread_cond_timedwait, "GLIBC_2.3.2")(cond, mutex, monotonic ? at : moved(at, &to));
}

int pthread_cond_clockwait(pthread_cond_t *cond, pthread_mutex_t *mutex, clockid_t clock,
                           const struct timespec *at) {
  struct timespec to;
  const struct timespec *until = clock == CLOCK_REALTIME ? moved(at, &to) : at;
  return NEXT(pthread_cond_clockwait, "GLIBC_2.34")(cond, mutex, clock, until);
}

int sem_timedwait(sem_t *sem, const struct timespec *at) {
  struct timespec to;
  return NEXT(sem_timedwait, "GLIBC_2.34")(sem, moved(at, &to));
}

int sem_clockwait(sem_t *sem, clockid_t clock, const struct timespec *at) {
  struct timespec to;
  const struct timespec *until = clock == CLOCK_REALTIME ? moved(at, &to) : at;
  return NEXT(sem_clockwait, "GLIBC_2.34")(sem, clock, until);
}

int clock_gettime(clockid_t id, struct timespec *now) {
  int failed = kernel(SYS_clock_gettime, id, (long)now, 0, 0, 0, 0);
  if (!failed && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)) now->tv_sec -= back();
  return failed;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
  int failed = kernel(SYS_gettimeofday, (long)now, (long)zone, 0, 0, 0, 0);
  if (!failed) now->tv_sec -= back();
  return failed;
}

time_t time(time_t *at) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  if (at) *at = now.tv_sec;
  return now.tv_sec;
}
