/* A wall clock that goes back. Loaded before libc, for a whole tree of processes.
   ALEXNET_CHAOS_CLOCK=FILE:SECONDS: so much earlier once FILE exists. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

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

int clock_gettime(clockid_t id, struct timespec *now) {
  int failed = syscall(SYS_clock_gettime, id, now);
  if (!failed && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)) now->tv_sec -= back();
  return failed;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
  int failed = syscall(SYS_gettimeofday, now, zone);
  if (!failed) now->tv_sec -= back();
  return failed;
}

time_t time(time_t *at) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  if (at) *at = now.tv_sec;
  return now.tv_sec;
}
