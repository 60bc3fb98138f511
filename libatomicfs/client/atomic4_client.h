/*
 * A client of atomic4d, in C: opens files through the daemon and writes them atomically. What an
 * answer means is said in PROTOCOL.md.
 *
 *     struct a4_client *client;
 *     if (a4_connect("/run/atomic4/UUID.sock", NULL, &client) < 0) ...a4_reason(NULL)...
 *     struct a4_file file;
 *     a4_open_fd(client, fd, A4_OPEN_READ | A4_OPEN_WRITE, A4_ENGINE_AUTO, &file);
 *     a4_pwrite(client, file.handle, page, 16384, 0);   // durable, all or nothing
 *
 * Functions return 0 or a count, or a negative errno value; a4_reason says the same in words.
 *
 * The calls without "submit" wait for their answer. a4_submit_* only send, and return the request's
 * tag (positive); a4_reap collects the answers, in the order in which they come. Written bytes are
 * copied at the call; what a submitted read fills must stay until it is reaped. The exception is
 * memory of a4_arena_alloc, which the daemon accesses itself: nothing is copied, and it must be
 * left alone until its request is reaped.
 *
 * When the daemon closes the connection every request without an answer completes with -EIO
 * ("in doubt": each write is all old or all new), when it breaks the protocol with -EPROTO; then
 * every call fails so.
 *
 * Threads: one per client at a time. A forked child must not use its parent's.
 */
#ifndef ATOMIC4_CLIENT_H
#define ATOMIC4_CLIENT_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#ifdef __cplusplus
extern "C" {
#endif

#define A4_API __attribute__((visibility("default")))

struct a4_client;

/* Of a4_open_*. */
#define A4_OPEN_READ 1u
#define A4_OPEN_WRITE 2u
#define A4_OPEN_ATOMIC 4u      /* every write is atomic, any other is refused */
#define A4_OPEN_COOPERATIVE 8u /* "I write this file only through the daemon" */

enum a4_engine { A4_ENGINE_AUTO = 0, A4_ENGINE_NATIVE = 1, A4_ENGINE_LOGGED = 2 };
enum a4_ack_mode { A4_ACK_NONE = 0, A4_ACK_EXCLUSIVE = 1, A4_ACK_STRICT = 2 };
enum a4_stats_format { A4_STATS_JSON = 0, A4_STATS_PROMETHEUS = 1 };

struct a4_options {
    uint64_t arena_size; /* bytes of shared memory; 0: none, at most 64 KiB per request then */
    uint32_t spin_us;    /* before sleeping, while answers are fast; 0: sleep at once */
    uint32_t reserved;   /* 0 */
};
#define A4_OPTIONS_DEFAULT {16u << 20, 50, 0}

struct a4_file {
    uint64_t handle;
    uint32_t inode;
    uint32_t generation;
};

struct a4_range { /* of a batch */
    uint64_t handle;
    uint64_t offset;
    const void* data;
    size_t length;
};

#define A4_WHY_MAX 256
struct a4_statx {
    uint64_t size;
    uint32_t inode;
    uint32_t generation;
    uint64_t unit; /* 0: not an atomic file */
    uint64_t unit_min;
    uint64_t unit_max;
    uint64_t unit_max_native; /* 0: none */
    uint64_t unit_max_logged;
    uint32_t segments_max;
    uint32_t engine;   /* enum a4_engine, that would serve a write of one unit */
    uint32_t ack_mode; /* enum a4_ack_mode */
    uint32_t atomic;   /* 1: the inode has the atomic flag */
    uint64_t writes_native;
    uint64_t writes_logged;
    char why_not_native[A4_WHY_MAX]; /* cut to fit */
    char why_strict[A4_WHY_MAX];
};

struct a4_completion {
    int64_t tag;
    int32_t error;     /* 0, or a negative errno value */
    uint32_t engine;   /* enum a4_engine, of a write or a batch */
    uint32_t ack_mode; /* enum a4_ack_mode, of a write or a batch */
    uint32_t reserved;
    uint64_t length;    /* bytes written or read */
    const char* reason; /* of an error, in words; until the next a4_reap */
};

/* options may be NULL: A4_OPTIONS_DEFAULT. */
A4_API int a4_connect(const char* socket_path, const struct a4_options* options,
                      struct a4_client** client);
A4_API void a4_disconnect(struct a4_client* client); /* NULL: nothing */

/* Why the last call of this client failed; NULL: why this thread's last a4_connect did. Until the
 * next call. */
A4_API const char* a4_reason(const struct a4_client* client);
/* The general meaning of a negative errno value. */
A4_API const char* a4_strerror(int error);

/* A mounted volume: the descriptor proves what the caller may do; the caller keeps it. */
A4_API int a4_open_fd(struct a4_client* client, int fd, uint32_t flags, enum a4_engine engine,
                      struct a4_file* file);
/* An unmounted volume: an absolute path inside it. */
A4_API int a4_open_path(struct a4_client* client, const char* path, uint32_t flags,
                        enum a4_engine engine, struct a4_file* file);
A4_API int a4_close(struct a4_client* client, uint64_t handle);

/* Bytes written (all of them) or read (fewer at the end of the file). */
A4_API ssize_t a4_pwrite(struct a4_client* client, uint64_t handle, const void* data, size_t length,
                         uint64_t offset);
/* Neither atomic nor durable before a4_flush. */
A4_API ssize_t a4_pwrite_plain(struct a4_client* client, uint64_t handle, const void* data,
                               size_t length, uint64_t offset);
/* All ranges become durable together or not at all. */
A4_API ssize_t a4_batch(struct a4_client* client, const struct a4_range* ranges, size_t count);
A4_API ssize_t a4_pread(struct a4_client* client, uint64_t handle, void* data, size_t length,
                        uint64_t offset);
A4_API int a4_statx(struct a4_client* client, uint64_t handle, struct a4_statx* statx);
A4_API int a4_flush(struct a4_client* client, uint64_t handle);
A4_API int a4_ping(struct a4_client* client);
/* As snprintf: the length of the whole text, of which at most size - 1 bytes and a NUL are stored.
 */
A4_API ssize_t a4_stats(struct a4_client* client, enum a4_stats_format format, char* text,
                        size_t size);
/* Root only: everything is retired, new writes wait until a4_thaw. */
A4_API int a4_freeze(struct a4_client* client);
A4_API int a4_thaw(struct a4_client* client);

A4_API int64_t a4_submit_pwrite(struct a4_client* client, uint64_t handle, const void* data,
                                size_t length, uint64_t offset);
A4_API int64_t a4_submit_pwrite_plain(struct a4_client* client, uint64_t handle, const void* data,
                                      size_t length, uint64_t offset);
A4_API int64_t a4_submit_batch(struct a4_client* client, const struct a4_range* ranges,
                               size_t count);
A4_API int64_t a4_submit_pread(struct a4_client* client, uint64_t handle, void* data, size_t length,
                               uint64_t offset);
/* statx is filled when the request is reaped, and must stay until then. */
A4_API int64_t a4_submit_statx(struct a4_client* client, uint64_t handle, struct a4_statx* statx);
A4_API int64_t a4_submit_flush(struct a4_client* client, uint64_t handle);

/* Up to max completions: those that are there, or, if none is and requests are in flight, the first
 * that comes within timeout_ms (negative: however long it takes). */
A4_API ssize_t a4_reap(struct a4_client* client, struct a4_completion* completions, size_t max,
                       int timeout_ms);
/* Readable when an answer has come. Other calls may have received answers meanwhile: before
 * sleeping on it, reap with timeout 0 until nothing comes. */
A4_API int a4_fd(const struct a4_client* client);

/* Memory that the daemon sees, for writes and reads without a copy; NULL: a4_reason. */
A4_API void* a4_arena_alloc(struct a4_client* client, size_t length);
A4_API void a4_arena_free(struct a4_client* client, void* memory);

#ifdef __cplusplus
}
#endif

#endif
