// What the tests of the C++ client share: a client of a daemon in memory.
#pragma once

#include <fcntl.h>
#include <gmock/gmock.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "client/client.h"
#include "support/bytes.h"
#include "support/fake_daemon.h"
#include "support/results.h"

namespace atomic4::test {

inline constexpr Bytes kNoArena(0);

inline std::unique_ptr<Client> connect_to(FakeDaemon& daemon, Bytes arena = Bytes(1 << 20)) {
    return must(Client::from_socket(daemon.client_end(), {arena, std::chrono::microseconds(50)}));
}
inline uint64_t open_file(Client& client) {
    const UniqueFd fd(::open("/dev/null", O_RDWR | O_CLOEXEC));
    return must(client.open(fd.get(), wire::kOpenRead | wire::kOpenWrite)).handle;
}

inline std::vector<Completion> reap_all(Client& client, size_t count) {
    std::vector<Completion> all;
    while (all.size() < count) {
        auto some = client.reap(count - all.size());
        if (some.empty()) break;
        std::ranges::move(some, std::back_inserter(all));
    }
    return all;
}
inline std::vector<uint64_t> tags_of(const std::vector<Completion>& completions) {
    std::vector<uint64_t> tags;
    for (const Completion& completion : completions) tags.push_back(completion.tag);
    return tags;
}

inline std::vector<int> codes_of(const std::vector<Completion>& completions) {
    std::vector<int> codes;
    for (const Completion& completion : completions) codes.push_back(completion.code);
    return codes;
}

}  // namespace atomic4::test
