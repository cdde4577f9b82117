/* Preloaded into Postgres: while the file named by FULL_DISK exists, no file of a table can grow, as on a disk that is
 * full. What lies within a file can still be written, and so can everything else, such as the write-ahead log. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

static int full(int fd, off_t end) {
    const char *mark = getenv("FULL_DISK");
    char link[64], path[4096];
    struct stat file;
    ssize_t length;
    if (!mark || access(mark, F_OK) || fstat(fd, &file) || end <= file.st_size) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return strstr(path, "/base/") != NULL;
}

static off_t size_of(const struct iovec *parts, int count) {
    off_t size = 0;
    for (int i = 0; i < count; i++) size += parts[i].iov_len;
    return size;
}

#define REAL(name) __typeof__(&name) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)
#define REFUSE_IF(condition) if (condition) { errno = ENOSPC; return -1; }

ssize_t pwrite(int fd, const void *bytes, size_t size, off_t at) {
    REAL(pwrite);
    REFUSE_IF(full(fd, at + (off_t)size))
    return real(fd, bytes, size, at);
}

ssize_t pwrite64(int fd, const void *bytes, size_t size, off64_t at) {
    REAL(pwrite64);
    REFUSE_IF(full(fd, at + (off_t)size))
    return real(fd, bytes, size, at);
}

ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t at) {
    REAL(pwritev);
    REFUSE_IF(full(fd, at + size_of(parts, count)))
    return real(fd, parts, count, at);
}

ssize_t pwritev64(int fd, const struct iovec *parts, int count, off64_t at) {
    REAL(pwritev64);
    REFUSE_IF(full(fd, at + size_of(parts, count)))
    return real(fd, parts, count, at);
}

int posix_fallocate(int fd, off_t at, off_t size) {
    int (*real)(int, off_t, off_t) = (int (*)(int, off_t, off_t))dlsym(RTLD_NEXT, "posix_fallocate");
    return full(fd, at + size) ? ENOSPC : real(fd, at, size);
}

int posix_fallocate64(int fd, off64_t at, off64_t size) {
    int (*real)(int, off64_t, off64_t) = (int (*)(int, off64_t, off64_t))dlsym(RTLD_NEXT, "posix_fallocate64");
    return full(fd, at + size) ? ENOSPC : real(fd, at, size);
}
