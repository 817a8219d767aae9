/* Stands before the C library and lets calls on files below one folder fail, or kills the process in their place.
 *
 * Loaded by LD_PRELOAD into a Python process, which arms it for one child at a time. Calls are counted from 1, in the
 * order in which they come; other folders are left alone, and so are programs that the process starts.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum mode { COUNT, NO_ROOM, IO_ERROR, SHORT_WRITE, KILL };
enum call { MAKE, WRITE, FLUSH, NAME, CLOSE, READ, REMOVE };

#define FILES 65536
#define TAKEN 1   /* open for reading */
#define WRITTEN 2 /* open for writing */
static char folder[PATH_MAX];
static size_t folder_length;
static enum mode mode;
static long target;
static int lasting;
static _Atomic long *counter;
static _Atomic unsigned char watched[FILES];

__attribute__((constructor)) static void alone(void) { unsetenv("LD_PRELOAD"); }

/* Arms the shim: the `at`-th call on files below `place` fails, and all later ones if it lasts. */
void faults_arm(const char *place, int how, long at, int lasts, _Atomic long *calls)
{
	snprintf(folder, sizeof folder, "%s", place);
	mode = how;
	target = at;
	lasting = lasts;
	counter = calls;
	atomic_store(counter, 0);
	folder_length = strlen(folder);
}

void faults_disarm(void) { folder_length = 0; }

static int is_below(int at, const char *path)
{
	if (!folder_length || !path)
		return 0;
	if (path[0] == '/')
		return !strncmp(path, folder, folder_length) && (path[folder_length] == '/' || !path[folder_length]);
	return at >= 0 && at < FILES && watched[at];
}

static int is_watched(int file) { return folder_length && file >= 0 && file < FILES && watched[file]; }

static void watch(int file, int below)
{
	if (file >= 0 && file < FILES)
		watched[file] = below;
}

/* Whether this call is to fail; errno says how. A full disk refuses what takes room, a broken one everything. */
static int fails(enum call call)
{
	if (mode == NO_ROOM && (call == READ || call == REMOVE))
		return 0;
	if (mode == SHORT_WRITE && call != WRITE)
		return 0;
	long number = atomic_fetch_add(counter, 1) + 1;
	if (mode == COUNT || number < target || (number > target && !lasting))
		return 0;
	if (mode == KILL) {
		kill(getpid(), SIGKILL);
		pause();
	}
	errno = mode == IO_ERROR ? EIO : ENOSPC;
	return 1;
}

#define REAL(name) ((__typeof__(&name))real(#name))
static void *real(const char *name) { return dlsym(RTLD_NEXT, name); }

static enum call opening(int flags)
{
	return flags & (O_CREAT | O_TRUNC) || (flags & O_ACCMODE) != O_RDONLY ? MAKE : READ;
}

#define OPEN_AT(name)                                                        \
	int name(int at, const char *path, int flags, ...)                   \
	{                                                                    \
		va_list rest;                                                \
		va_start(rest, flags);                                       \
		mode_t bits = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
		va_end(rest);                                                \
		int below = is_below(at, path);                              \
		if (below && fails(opening(flags)))                          \
			return -1;                                           \
		int file = REAL(name)(at, path, flags, bits);                \
		watch(file, below ? opening(flags) == MAKE ? WRITTEN : TAKEN : 0);   \
		return file;                                                 \
	}
OPEN_AT(openat)
OPEN_AT(openat64)

#define OPEN(name)                                                           \
	int name(const char *path, int flags, ...)                           \
	{                                                                    \
		va_list rest;                                                \
		va_start(rest, flags);                                       \
		mode_t bits = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
		va_end(rest);                                                \
		int below = is_below(AT_FDCWD, path);                        \
		if (below && fails(opening(flags)))                          \
			return -1;                                           \
		int file = REAL(name)(path, flags, bits);                    \
		watch(file, below ? opening(flags) == MAKE ? WRITTEN : TAKEN : 0);   \
		return file;                                                 \
	}
OPEN(open)
OPEN(open64)

#define WRITES(name, arguments, passed, size, halved)                        \
	ssize_t name arguments                                               \
	{                                                                    \
		if (is_watched(file) && fails(WRITE)) {                      \
			if (mode != SHORT_WRITE || atomic_load(counter) != target || (size) < 2) \
				return -1;                                   \
			return REAL(name) halved;                            \
		}                                                            \
		return REAL(name) passed;                                    \
	}
WRITES(write, (int file, const void *data, size_t size), (file, data, size), size, (file, data, size / 2))
WRITES(pwrite, (int file, const void *data, size_t size, off_t where), (file, data, size, where), size,
       (file, data, size / 2, where))
WRITES(pwrite64, (int file, const void *data, size_t size, off64_t where), (file, data, size, where), size,
       (file, data, size / 2, where))
WRITES(writev, (int file, const struct iovec *parts, int count), (file, parts, count), count, (file, parts, count / 2))

#define ON_FILE(name, call, arguments, passed)                               \
	int name arguments                                                   \
	{                                                                    \
		return is_watched(file) && fails(call) ? -1 : REAL(name) passed; \
	}
ON_FILE(fdatasync, FLUSH, (int file), (file))
ON_FILE(ftruncate, MAKE, (int file, off_t size), (file, size))
ON_FILE(ftruncate64, MAKE, (int file, off64_t size), (file, size))
ON_FILE(fchmod, NAME, (int file, mode_t bits), (file, bits))

/* Nothing is flushed below the folder: no power fails here, and it takes long. */
int fsync(int file)
{
	if (!is_watched(file))
		return REAL(fsync)(file);
	return fails(FLUSH) ? -1 : 0;
}

int close(int file)
{
	int written = folder_length && file >= 0 && file < FILES && watched[file] == WRITTEN;
	watch(file, 0);
	if (written && fails(CLOSE)) { /* closed it is all the same, as of a file system over a network */
		int kept = errno;
		REAL(close)(file);
		errno = kept;
		return -1;
	}
	return REAL(close)(file);
}

#define ON_PATH(name, call, at, arguments, passed)                           \
	int name arguments                                                   \
	{                                                                    \
		return is_below(at, path) && fails(call) ? -1 : REAL(name) passed; \
	}
ON_PATH(mkdir, MAKE, AT_FDCWD, (const char *path, mode_t bits), (path, bits))
ON_PATH(mkdirat, MAKE, at, (int at, const char *path, mode_t bits), (at, path, bits))
ON_PATH(chmod, NAME, AT_FDCWD, (const char *path, mode_t bits), (path, bits))
ON_PATH(fchmodat, NAME, at, (int at, const char *path, mode_t bits, int flags), (at, path, bits, flags))
ON_PATH(unlink, REMOVE, AT_FDCWD, (const char *path), (path))
ON_PATH(unlinkat, REMOVE, at, (int at, const char *path, int flags), (at, path, flags))
ON_PATH(rmdir, REMOVE, AT_FDCWD, (const char *path), (path))
ON_PATH(rename, NAME, AT_FDCWD, (const char *path, const char *to), (path, to))
ON_PATH(renameat, NAME, at, (int at, const char *path, int to_at, const char *to), (at, path, to_at, to))
ON_PATH(renameat2, NAME, at, (int at, const char *path, int to_at, const char *to, unsigned flags),
	(at, path, to_at, to, flags))
ON_PATH(link, MAKE, AT_FDCWD, (const char *path, const char *to), (path, to))
ON_PATH(linkat, MAKE, at, (int at, const char *path, int to_at, const char *to, int flags),
	(at, path, to_at, to, flags))
