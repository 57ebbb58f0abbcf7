/* Counts the calls by which this process changes files, and ends it with SIGKILL at the n-th.
   Loaded before libc. Nothing happens until chaos_arm(n, kind) is called:
   BEFORE the call; AFTER it (of a write: after half of it); POWER: as AFTER, and of every file that
   was written and not synced since, half is lost, as when the power fails. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { BEFORE, AFTER, POWER };
enum { FILES = 64 };

static int target, kind, count;
static int dirty[FILES], dirty_count; /* duplicates of descriptors written and not synced */

void chaos_arm(int n, int how) { target = n, kind = how, count = 0, dirty_count = 0; }

void chaos_end(void) {
  struct stat file;
  for (int i = 0; kind == POWER && i < dirty_count; i++)
    if (dirty[i] >= 0 && fstat(dirty[i], &file) == 0 && ftruncate(dirty[i], file.st_size / 2)) {}
  kill(getpid(), SIGKILL);
  for (;;) pause();
}

static int same(int one, int other) {
  struct stat a, b;
  return !fstat(one, &a) && !fstat(other, &b) && a.st_ino == b.st_ino && a.st_dev == b.st_dev;
}

static void written(int fd) {
  if (!target) return;
  for (int i = 0; i < dirty_count; i++)
    if (dirty[i] >= 0 && same(dirty[i], fd)) return;
  if (dirty_count < FILES) dirty[dirty_count++] = dup(fd);
}

static void synced(int fd) {
  for (int i = 0; i < dirty_count; i++)
    if (dirty[i] >= 0 && same(dirty[i], fd)) close(dirty[i]), dirty[i] = -1;
}

/* Whether this is the call to end at; before it, where that is what was asked for. */
static int is_last(void) {
  if (!target || ++count != target) return 0;
  if (kind == BEFORE) chaos_end();
  return 1;
}

#define REAL(name) ((typeof(&name))dlsym(RTLD_NEXT, #name))
#define COUNTED(type, name, parameters, arguments) \
  type name parameters {                           \
    int last = is_last();                          \
    type result = REAL(name) arguments;            \
    if (last) chaos_end();                               \
    return result;                                 \
  }

COUNTED(int, rename, (const char *from, const char *to), (from, to))
COUNTED(int, mkdir, (const char *path, mode_t mode), (path, mode))
COUNTED(int, rmdir, (const char *path), (path))
COUNTED(int, unlink, (const char *path), (path))
COUNTED(int, unlinkat, (int folder, const char *path, int flags), (folder, path, flags))
COUNTED(int, ftruncate, (int fd, off_t size), (fd, size))
COUNTED(int, ftruncate64, (int fd, off64_t size), (fd, size))

#define SYNC(name)                                         \
  int name(int fd) {                                       \
    int last = is_last();                                  \
    int result = REAL(name)(fd);                           \
    if (!result) synced(fd);                               \
    if (last) chaos_end();                                       \
    return result;                                         \
  }

SYNC(fsync)
SYNC(fdatasync)

ssize_t write(int fd, const void *bytes, size_t size) {
  int last = fd > 2 && is_last();
  ssize_t result = REAL(write)(fd, bytes, last ? size / 2 : size);
  written(fd);
  if (last) chaos_end();
  return result;
}

ssize_t writev(int fd, const struct iovec *parts, int n) {
  int last = fd > 2 && is_last();
  ssize_t result = REAL(writev)(fd, parts, last ? n / 2 : n);
  written(fd);
  if (last) chaos_end();
  return result;
}

#define OPEN(name)                                         \
  int name(const char *path, int flags, ...) {             \
    va_list rest;                                          \
    va_start(rest, flags);                                 \
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
    va_end(rest);                                          \
    int last = flags & O_CREAT ? is_last() : 0;            \
    int result = REAL(name)(path, flags, mode);            \
    if (last) chaos_end();                                       \
    return result;                                         \
  }

OPEN(open)
OPEN(open64)
