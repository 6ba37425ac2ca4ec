/*
 * A disk that fills up, breaks and slows down, for one process and one folder: put in front of the C library by
 * LD_PRELOAD, and steered from outside by a small file that both sides map.
 *
 *   gcc -shared -fPIC -O2 -o disk.so faults/overload/disk.c -ldl
 *   FAULTY_DISK_FOLDER=/data FAULTY_DISK_CONTROL=/control LD_PRELOAD=disk.so millpond serve --data /data
 *
 * The file has whole numbers of 64 bits in the order of `struct control`. What fails is a mask of parts of the folder:
 * 1 journal/, 2 everything else, 4 the catalog. A full disk takes the first half of every other write before it refuses
 * the rest, as a real one does; so what is half written must be written again.
 */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum part { NOT_OURS = 0, JOURNAL = 1, LOGS = 2, CATALOG = 4 };

struct control {
    /* Set from outside. */
    volatile int64_t full;          /* parts whose writes and new files fail with ENOSPC */
    volatile int64_t broken_writes; /* parts whose writes fail with EIO */
    volatile int64_t broken_syncs;  /* parts whose syncs fail with EIO */
    volatile int64_t sync_delay_us;
    volatile int64_t write_ns_per_byte;
    volatile int64_t free_bytes; /* what statvfs tells; below 0 the truth */
    /* Counted here. */
    int64_t refused_for_room, halved, broken_write_count, broken_sync_count, delayed_sync_count, written_bytes;
};

static struct control nothing = {.free_bytes = -1};
static struct control *control = &nothing;
static char folder[PATH_MAX];
static size_t folder_bytes;

#define COUNT(field, by) __atomic_add_fetch(&control->field, (by), __ATOMIC_RELAXED)
#define REAL(name) \
    static __typeof__(&name) real; \
    if (real == NULL) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

__attribute__((constructor)) static void begin(void) {
    const char *data = getenv("FAULTY_DISK_FOLDER"), *path = getenv("FAULTY_DISK_CONTROL");
    if (data == NULL || path == NULL) return;
    int descriptor = open(path, O_RDWR | O_CLOEXEC);
    if (descriptor < 0) return;
    void *map = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
    close(descriptor);
    if (map == MAP_FAILED) return;
    snprintf(folder, sizeof folder, "%s/", data);
    folder_bytes = strlen(folder);
    control = map;
}

static enum part part_of_path(const char *path) {
    if (folder_bytes == 0 || strncmp(path, folder, folder_bytes) != 0) return NOT_OURS;
    path += folder_bytes;
    if (strncmp(path, "journal/", 8) == 0) return JOURNAL;
    return strncmp(path, "catalog.", 8) == 0 ? CATALOG : LOGS;
}

static enum part part_of(int descriptor) {
    char link[40], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t size = readlink(link, path, sizeof path - 1);
    if (size <= 0) return NOT_OURS;
    path[size] = 0;
    return part_of_path(path);
}

static void wait_ns(int64_t ns) {
    struct timespec left = {ns / 1000000000, ns % 1000000000};
    while (nanosleep(&left, &left) != 0 && errno == EINTR) {}
}

/* How many of `size` bytes may be written; -1, with errno, when none may. */
static ssize_t admit(int descriptor, size_t size) {
    static __thread int64_t owed_ns;
    static __thread int turn;
    if (!(control->full | control->broken_writes | control->write_ns_per_byte)) return size;
    enum part part = part_of(descriptor);
    if (part == NOT_OURS) return size;
    if (control->broken_writes & part) {
        COUNT(broken_write_count, 1);
        errno = EIO;
        return -1;
    }
    if (control->full & part) {
        if (size > 1 && (turn++ & 1) == 0) {
            COUNT(halved, 1);
            return size / 2;
        }
        COUNT(refused_for_room, 1);
        errno = ENOSPC;
        return -1;
    }
    COUNT(written_bytes, size);
    owed_ns += size * control->write_ns_per_byte;
    if (owed_ns > 1000000) {
        wait_ns(owed_ns);
        owed_ns = 0;
    }
    return size;
}

static int has_room(int descriptor) {
    if (!control->full || !(part_of(descriptor) & control->full)) return 1;
    COUNT(refused_for_room, 1);
    return 0;
}

ssize_t write(int descriptor, const void *data, size_t size) {
    REAL(write);
    ssize_t admitted = admit(descriptor, size);
    return admitted < 0 ? -1 : real(descriptor, data, admitted);
}

ssize_t pwrite(int descriptor, const void *data, size_t size, off_t position) {
    REAL(pwrite);
    ssize_t admitted = admit(descriptor, size);
    return admitted < 0 ? -1 : real(descriptor, data, admitted, position);
}

ssize_t pwrite64(int descriptor, const void *data, size_t size, off64_t position) {
    REAL(pwrite64);
    ssize_t admitted = admit(descriptor, size);
    return admitted < 0 ? -1 : real(descriptor, data, admitted, position);
}

/* Of several pieces either all are admitted or none. */
static int admit_all(int descriptor, const struct iovec *pieces, int count) {
    size_t size = 0;
    for (int at = 0; at < count; at++) size += pieces[at].iov_len;
    ssize_t admitted = admit(descriptor, size);
    if (admitted >= 0 && (size_t)admitted < size) {
        errno = ENOSPC;
        return 0;
    }
    return admitted >= 0;
}

ssize_t writev(int descriptor, const struct iovec *pieces, int count) {
    REAL(writev);
    return admit_all(descriptor, pieces, count) ? real(descriptor, pieces, count) : -1;
}

ssize_t pwritev(int descriptor, const struct iovec *pieces, int count, off_t position) {
    REAL(pwritev);
    return admit_all(descriptor, pieces, count) ? real(descriptor, pieces, count, position) : -1;
}

ssize_t pwritev64(int descriptor, const struct iovec *pieces, int count, off64_t position) {
    REAL(pwritev64);
    return admit_all(descriptor, pieces, count) ? real(descriptor, pieces, count, position) : -1;
}

static int sync_passes(int descriptor) {
    if (!(control->broken_syncs | control->sync_delay_us)) return 1;
    enum part part = part_of(descriptor);
    if (part == NOT_OURS) return 1;
    if (control->sync_delay_us > 0) {
        COUNT(delayed_sync_count, 1);
        wait_ns(control->sync_delay_us * 1000);
    }
    if (control->broken_syncs & part) {
        COUNT(broken_sync_count, 1);
        errno = EIO;
        return 0;
    }
    return 1;
}

int fsync(int descriptor) {
    REAL(fsync);
    return sync_passes(descriptor) ? real(descriptor) : -1;
}

int fdatasync(int descriptor) {
    REAL(fdatasync);
    return sync_passes(descriptor) ? real(descriptor) : -1;
}

static int refuse_room(void) {
    errno = ENOSPC;
    return -1;
}

int fallocate(int descriptor, int mode, off_t from, off_t size) {
    REAL(fallocate);
    return has_room(descriptor) ? real(descriptor, mode, from, size) : refuse_room();
}

int fallocate64(int descriptor, int mode, off64_t from, off64_t size) {
    REAL(fallocate64);
    return has_room(descriptor) ? real(descriptor, mode, from, size) : refuse_room();
}

int posix_fallocate(int descriptor, off_t from, off_t size) {
    REAL(posix_fallocate);
    return has_room(descriptor) ? real(descriptor, from, size) : ENOSPC;
}

int posix_fallocate64(int descriptor, off64_t from, off64_t size) {
    REAL(posix_fallocate64);
    return has_room(descriptor) ? real(descriptor, from, size) : ENOSPC;
}

/* A file can be cut on a full disk: only what makes it longer needs room. */
static int grows(int descriptor, int64_t size) {
    struct stat status;
    return fstat(descriptor, &status) == 0 && size > status.st_size;
}

int ftruncate(int descriptor, off_t size) {
    REAL(ftruncate);
    return !grows(descriptor, size) || has_room(descriptor) ? real(descriptor, size) : refuse_room();
}

int ftruncate64(int descriptor, off64_t size) {
    REAL(ftruncate64);
    return !grows(descriptor, size) || has_room(descriptor) ? real(descriptor, size) : refuse_room();
}

/* Whether the file may be opened: a new one needs room for its name. */
static int may_open(const char *path, int flags) {
    if (!(flags & O_CREAT) || !control->full || !(part_of_path(path) & control->full) || access(path, F_OK) == 0)
        return 1;
    COUNT(refused_for_room, 1);
    return 0;
}

#define OPENER(name, parameters, arguments) \
    int name parameters { \
        REAL(name); \
        mode_t mode = 0; \
        if (flags & (O_CREAT | __O_TMPFILE)) { \
            va_list rest; \
            va_start(rest, flags); \
            mode = va_arg(rest, mode_t); \
            va_end(rest); \
        } \
        return may_open(path, flags) ? real arguments : refuse_room(); \
    }

OPENER(open, (const char *path, int flags, ...), (path, flags, mode))
OPENER(open64, (const char *path, int flags, ...), (path, flags, mode))
OPENER(openat, (int at, const char *path, int flags, ...), (at, path, flags, mode))
OPENER(openat64, (int at, const char *path, int flags, ...), (at, path, flags, mode))

static int part_of_disk(const char *path) {
    size_t size = strlen(path);
    return folder_bytes > 0 && size + 1 >= folder_bytes && strncmp(path, folder, folder_bytes - 1) == 0;
}

int statvfs(const char *path, struct statvfs *status) {
    REAL(statvfs);
    int code = real(path, status);
    if (code == 0 && control->free_bytes >= 0 && part_of_disk(path))
        status->f_bavail = status->f_bfree = control->free_bytes / status->f_frsize;
    return code;
}

int statvfs64(const char *path, struct statvfs64 *status) {
    REAL(statvfs64);
    int code = real(path, status);
    if (code == 0 && control->free_bytes >= 0 && part_of_disk(path))
        status->f_bavail = status->f_bfree = control->free_bytes / status->f_frsize;
    return code;
}
