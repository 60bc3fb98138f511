#include "base/random.h"

#include <sys/random.h>

#include <cerrno>
#include <cstdlib>

namespace atomic4 {

namespace {

// getrandom(2): requests of up to 256 bytes are never cut short once the pool is ready.
void fill(void* data, size_t size) {
    for (;;) {
        const ssize_t n = getrandom(data, size, 0);
        if (n == static_cast<ssize_t>(size)) return;
        if (n < 0 && errno == EINTR) continue;
        std::abort();
    }
}

}  // namespace

uint64_t random_u64() {
    uint64_t value = 0;
    fill(&value, sizeof value);
    return value;
}

uint32_t random_nonzero_u32() {
    uint32_t value = 0;
    while (value == 0) fill(&value, sizeof value);
    return value;
}

std::array<uint8_t, 16> random_id() {
    std::array<uint8_t, 16> id{};
    fill(id.data(), id.size());
    return id;
}

}  // namespace atomic4
