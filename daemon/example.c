/*
 * Writes a page atomically through atomic4d, with the client library.
 *
 *     cc example.c $(pkg-config --cflags --libs atomic4client)
 *     ./a.out SOCKET FILE         FILE lies on the mounted volume that SOCKET's daemon serves
 */
#include <atomic4_client.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

int main(int argc, char** argv) {
    struct a4_client* client = NULL;
    struct a4_file file;
    struct a4_statx status;
    char page[16384];
    if (argc != 3) return 2;
    memset(page, 'x', sizeof page);

    /* Proves that we may write it; then the daemon has it, and nobody else needs to. */
    const int fd = open(argv[2], O_RDWR | O_CLOEXEC);
    if (fd < 0 || a4_connect(argv[1], NULL, &client) < 0 ||
        a4_open_fd(client, fd, A4_OPEN_READ | A4_OPEN_WRITE | A4_OPEN_ATOMIC | A4_OPEN_COOPERATIVE,
                   A4_ENGINE_AUTO, &file) < 0) {
        fprintf(stderr, "%s: %s\n", argv[2], fd < 0 ? "can't be opened" : a4_reason(client));
        return 1;
    }
    close(fd);

    /* When it returns, the page is durable: all of it. After a crash before that: all or nothing.
     */
    if (a4_pwrite(client, file.handle, page, sizeof page, 0) < 0 ||
        a4_statx(client, file.handle, &status) < 0) {
        fprintf(stderr, "%s: %s\n", argv[2], a4_reason(client));
        return 1;
    }
    printf("%zu bytes are durable; pages of %llu to %llu bytes are possible\n", sizeof page,
           (unsigned long long)status.unit_min, (unsigned long long)status.unit_max);
    a4_disconnect(client);
    return 0;
}
