/*
 * A C11 program that uses the shared library as a stranger would: c_client_test.cc runs it against
 * a daemon in memory. Exits with 0, or with 1 after saying which line was wrong.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "client/atomic4_client.h"

#define CHECK(condition)                                                             \
    do {                                                                             \
        if (!(condition)) {                                                          \
            printf("line %d: %s; reason: %s\n", __LINE__, #condition, a4_reason(c)); \
            return 1;                                                                \
        }                                                                            \
    } while (0)

static int failures(void) {
    struct a4_client* c = NULL;
    CHECK(a4_connect("/nonexistent/socket", NULL, &c) == -ENOENT);
    CHECK(c == NULL);
    CHECK(strstr(a4_reason(NULL), "/nonexistent/socket") != NULL);
    struct a4_options options = A4_OPTIONS_DEFAULT;
    options.reserved = 1;
    CHECK(a4_connect("/nonexistent/socket", &options, &c) == -EINVAL);
    CHECK(strcmp(a4_strerror(-ENOENT), "No such file or directory") == 0);
    CHECK(strcmp(a4_strerror(-100000), "Unknown error") == 0);
    a4_disconnect(NULL);
    return 0;
}

static int synchronous(struct a4_client* c, uint64_t handle) {
    char data[16384];
    char back[16384];
    memset(data, 'x', sizeof data);
    CHECK(a4_ping(c) == 0);
    CHECK(a4_pwrite(c, handle, data, sizeof data, 0) == sizeof data);
    CHECK(a4_pwrite_plain(c, handle, "plain", 5, 100) == 5);
    CHECK(a4_pread(c, handle, back, sizeof back, 0) == sizeof back);
    CHECK(memcmp(back + 100, "plain", 5) == 0 && back[99] == 'x' && back[105] == 'x');
    CHECK(a4_pread(c, handle, back, sizeof back, 16000) == 384);

    const struct a4_range ranges[2] = {{handle, 0, "one", 3}, {handle, 4096, "three", 5}};
    CHECK(a4_batch(c, ranges, 2) == 8);
    CHECK(a4_pread(c, handle, back, 5, 4096) == 5 && memcmp(back, "three", 5) == 0);

    struct a4_statx statx;
    CHECK(a4_statx(c, handle, &statx) == 0);
    CHECK(statx.size == 16384 && statx.unit == 16384 && statx.atomic == 1);
    CHECK(statx.engine == A4_ENGINE_LOGGED && statx.ack_mode == A4_ACK_STRICT);
    CHECK(strcmp(statx.why_not_native, "not a device") == 0);
    CHECK(a4_flush(c, handle) == 0);

    char text[8];
    CHECK(a4_stats(c, A4_STATS_JSON, NULL, 0) == 13);
    CHECK(a4_stats(c, A4_STATS_JSON, text, sizeof text) == 13);
    CHECK(strcmp(text, "{\"write") == 0);

    CHECK(a4_pwrite(c, 99, data, 1, 0) == -EBADF);
    CHECK(strcmp(a4_reason(c), "no such handle") == 0);
    CHECK(a4_freeze(c) == -EPERM);
    CHECK(a4_thaw(c) == 0);
    return 0;
}

static int pipelined(struct a4_client* c, uint64_t handle) {
    char back[5] = "";
    struct a4_statx statx;
    memset(&statx, 0, sizeof statx);
    char* memory = a4_arena_alloc(c, 8192);
    CHECK(memory != NULL);
    memset(memory, 'm', 8192);
    const struct a4_range range = {handle, 8192, "batch", 5};
    int64_t tags[6];
    tags[0] = a4_submit_pwrite(c, handle, memory, 8192, 0);
    tags[1] = a4_submit_pwrite_plain(c, handle, "x", 1, 0);
    tags[2] = a4_submit_batch(c, &range, 1);
    tags[3] = a4_submit_pread(c, handle, back, 5, 8192);
    tags[4] = a4_submit_statx(c, handle, &statx);
    tags[5] = a4_submit_flush(c, 99);
    size_t count = 0;
    while (count < 6) {
        struct pollfd ready = {a4_fd(c), POLLIN, 0};
        struct a4_completion done[4];
        ssize_t reaped = a4_reap(c, done, 4, 0);
        CHECK(reaped >= 0);
        if (reaped == 0) poll(&ready, 1, -1);
        for (ssize_t i = 0; i < reaped; ++i, ++count) {
            CHECK(tags[count] > 0 && done[i].tag == tags[count]);
            CHECK(done[i].error == (count == 5 ? -EBADF : 0));
            if (count == 0) CHECK(done[i].length == 8192 && done[i].ack_mode == A4_ACK_STRICT);
            if (count == 3) CHECK(done[i].length == 5);
            if (count == 5) CHECK(strcmp(done[i].reason, "no such handle") == 0);
        }
    }
    CHECK(memcmp(back, "batch", 5) == 0);
    CHECK(statx.inode == 12 && statx.generation == 34);
    struct a4_completion none;
    CHECK(a4_reap(c, &none, 1, -1) == 0);
    a4_arena_free(c, memory);
    CHECK(a4_arena_alloc(c, (size_t)1 << 40) == NULL);
    CHECK(strstr(a4_reason(c), "arena") != NULL);
    return 0;
}

int main(int argc, char** argv) {
    struct a4_client* c = NULL;
    if (argc != 2) return 2;
    if (failures() != 0) return 1;
    CHECK(a4_connect(argv[1], NULL, &c) == 0);
    int fd = open("/dev/null", O_RDWR);
    struct a4_file file;
    CHECK(a4_open_fd(c, fd, 0, A4_ENGINE_AUTO, &file) == -EINVAL);
    CHECK(a4_open_path(c, "/f", A4_OPEN_READ, A4_ENGINE_AUTO, &file) == -EINVAL);
    CHECK(a4_open_fd(c, fd, A4_OPEN_READ | A4_OPEN_WRITE, A4_ENGINE_AUTO, &file) == 0);
    close(fd);
    CHECK(file.handle != 0 && file.inode == 12);
    if (synchronous(c, file.handle) != 0 || pipelined(c, file.handle) != 0) return 1;
    CHECK(a4_close(c, file.handle) == 0);
    CHECK(a4_close(c, file.handle) == -EBADF);
    a4_disconnect(c);
    return 0;
}
