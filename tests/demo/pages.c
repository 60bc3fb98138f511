/*
 * A storage engine in small, for demo.sh: writes pages through the daemon, keeps an outside record
 * of what was acknowledged, and looks at the file as any other program does.
 *
 *     pages write SOCKET FILE RECORD   16 writes in flight, until the daemon goes away
 *     pages read FILE RECORD           meanwhile, until SIGTERM: acknowledged bytes are seen at
 * once pages verify FILE RECORD         after that: every page whole, every acknowledged one there
 *
 * Every 8 bytes of a page are its version. The record has, for each page, the last version that was
 * sent and the last one that was acknowledged; it is shared memory in a file, so that a reader
 * knows what was acknowledged before it looked.
 *
 * Exit status: 0 all is as promised, 1 it isn't.
 */
#include <atomic4_client.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define PAGE 16384u
#define WORDS (PAGE / sizeof(uint64_t))
#define IN_FLIGHT 16u

struct entry {
    _Atomic uint64_t sent;
    _Atomic uint64_t acknowledged;
};

static volatile sig_atomic_t stopped;
static void stop(int signal) {
    (void)signal;
    stopped = 1;
}

static int fail(const char* what) {
    fprintf(stderr, "pages: %s: %s\n", what, strerror(errno));
    exit(1);
}

static int open_file(const char* path, int flags, uint64_t* pages) {
    struct stat st;
    const int fd = open(path, flags | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &st) != 0) fail(path);
    *pages = (uint64_t)st.st_size / PAGE;
    return fd;
}

static struct entry* open_record(const char* path, uint64_t pages) {
    const size_t size = pages * sizeof(struct entry);
    const int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0 || ftruncate(fd, (off_t)size) != 0) fail(path);
    void* memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (memory == MAP_FAILED) fail(path);
    close(fd);
    return memory;
}

static int write_pages(const char* socket, const char* path, const char* record) {
    struct a4_client* client;
    struct a4_file file;
    static uint64_t page[WORDS];
    uint64_t pages, slot_page[IN_FLIGHT], written = 0, strict = 0;
    int64_t slot_tag[IN_FLIGHT] = {0};
    const int fd = open_file(path, O_RDWR, &pages);
    struct entry* entries = open_record(record, pages);
    if (a4_connect(socket, NULL, &client) < 0 ||
        a4_open_fd(client, fd, A4_OPEN_WRITE | A4_OPEN_ATOMIC | A4_OPEN_COOPERATIVE, A4_ENGINE_AUTO,
                   &file) < 0) {
        fprintf(stderr, "pages: %s\n", a4_reason(NULL));
        return 1;
    }
    close(fd);
    for (;;) {
        /* Each slot has pages of its own, so that no page is in flight twice. */
        for (unsigned slot = 0; slot < IN_FLIGHT; ++slot) {
            if (slot_tag[slot] != 0) continue;
            const uint64_t number = (uint64_t)random() % (pages / IN_FLIGHT) * IN_FLIGHT + slot;
            const uint64_t version = entries[number].sent + 1;
            for (size_t i = 0; i < WORDS; ++i) page[i] = version;
            entries[number].sent = version;
            slot_page[slot] = number;
            slot_tag[slot] = a4_submit_pwrite(client, file.handle, page, PAGE, number * PAGE);
            if (slot_tag[slot] < 0) goto gone;
        }
        struct a4_completion done[IN_FLIGHT];
        const ssize_t count = a4_reap(client, done, IN_FLIGHT, -1);
        for (ssize_t i = 0; i < count; ++i) {
            if (done[i].error != 0) goto gone;
            for (unsigned slot = 0; slot < IN_FLIGHT; ++slot) {
                if (slot_tag[slot] != done[i].tag) continue;
                entries[slot_page[slot]].acknowledged = entries[slot_page[slot]].sent;
                slot_tag[slot] = 0;
            }
            strict += done[i].ack_mode == A4_ACK_STRICT;
            ++written;
        }
    }
gone:
    printf("writer: the daemon is gone; it had acknowledged %" PRIu64 " writes of 16 KiB (%" PRIu64
           " strict, the others exclusive)\n",
           written, strict);
    a4_disconnect(client);
    return written == 0;
}

static int read_pages(const char* path, const char* record) {
    static uint64_t page[WORDS];
    uint64_t pages, looked = 0, seen = 0;
    const int fd = open_file(path, O_RDONLY, &pages);
    struct entry* entries = open_record(record, pages);
    signal(SIGTERM, stop);
    while (!stopped) {
        const uint64_t number = (uint64_t)random() % pages;
        const uint64_t acknowledged = entries[number].acknowledged;
        if (pread(fd, page, PAGE, (off_t)(number * PAGE)) != PAGE) fail(path);
        ++looked;
        seen += acknowledged != 0;
        for (size_t i = 0; i < WORDS; ++i) {
            if (page[i] >= acknowledged) continue;
            printf("reader: page %" PRIu64 " shows version %" PRIu64 ", acknowledged was %" PRIu64
                   "\n",
                   number, page[i], acknowledged);
            return 1;
        }
    }
    printf("reader: looked at %" PRIu64 " pages through the page cache, %" PRIu64
           " of them written: each showed all that was acknowledged\n",
           looked, seen);
    return looked == 0;
}

static int verify_pages(const char* path, const char* record) {
    static uint64_t page[WORDS];
    uint64_t pages, written = 0, newer = 0, older = 0;
    const int fd = open_file(path, O_RDONLY, &pages);
    struct entry* entries = open_record(record, pages);
    for (uint64_t number = 0; number < pages; ++number) {
        const uint64_t acknowledged = entries[number].acknowledged;
        if (pread(fd, page, PAGE, (off_t)(number * PAGE)) != PAGE) fail(path);
        for (size_t i = 1; i < WORDS; ++i) {
            if (page[i] == page[0]) continue;
            printf("page %" PRIu64 " is torn: versions %" PRIu64 " and %" PRIu64 "\n", number,
                   page[0], page[i]);
            return 1;
        }
        if (page[0] < acknowledged || page[0] > entries[number].sent) {
            printf("page %" PRIu64 " has version %" PRIu64 ", acknowledged was %" PRIu64 "\n",
                   number, page[0], acknowledged);
            return 1;
        }
        written += acknowledged != 0;
        newer += page[0] > acknowledged;
        older += entries[number].sent > page[0];
    }
    printf("verified: %" PRIu64 " pages, none torn; %" PRIu64
           " with acknowledged writes, all there\n"
           "of the writes that nobody had acknowledged, %" PRIu64 " are there whole and %" PRIu64
           " not at all\n",
           pages, written, newer, older);
    return 0;
}

int main(int argc, char** argv) {
    if (argc == 5 && strcmp(argv[1], "write") == 0) return write_pages(argv[2], argv[3], argv[4]);
    if (argc == 4 && strcmp(argv[1], "read") == 0) return read_pages(argv[2], argv[3]);
    if (argc == 4 && strcmp(argv[1], "verify") == 0) return verify_pages(argv[2], argv[3]);
    fprintf(stderr,
            "usage: pages write SOCKET FILE RECORD | read FILE RECORD | verify FILE RECORD\n");
    return 2;
}
