// io_uring for the peers: writes that go at once, and are waited for together.
#pragma once

#include <liburing.h>

#include <cstring>
#include <optional>
#include <span>
#include <stdexcept>

#include "bench/bench.h"

namespace atomic4::bench {

class Ring {
  public:
    explicit Ring(unsigned entries) {
        const int error = io_uring_queue_init(entries, &ring_, 0);
        if (error < 0) throw std::runtime_error(fmt::format("io_uring: {}", std::strerror(-error)));
    }
    ~Ring() { io_uring_queue_exit(&ring_); }
    Ring(const Ring&) = delete;
    Ring& operator=(const Ring&) = delete;

    // At most as many between two calls of submit_and_wait as the ring has entries.
    void write(int fd, std::span<const std::byte> bytes, uint64_t offset) {
        io_uring_sqe* entry = io_uring_get_sqe(&ring_);
        must(entry != nullptr, "io_uring: too many writes at once");
        const auto length = static_cast<unsigned>(bytes.size());
        io_uring_prep_write(entry, fd, bytes.data(), length, offset);
        io_uring_sqe_set_data64(entry, length);
        ++pending_;
    }
    void submit_and_wait() {
        int error = io_uring_submit_and_wait(&ring_, pending_);
        for (; error >= 0 && pending_ > 0; --pending_) {
            io_uring_cqe* done = nullptr;
            error = io_uring_wait_cqe(&ring_, &done);
            if (error < 0) break;
            if (done->res != static_cast<int>(io_uring_cqe_get_data64(done))) {
                throw std::runtime_error(fmt::format(
                    "io_uring write: {}", done->res < 0 ? std::strerror(-done->res) : "short"));
            }
            io_uring_cqe_seen(&ring_, done);
        }
        if (error < 0) throw std::runtime_error(fmt::format("io_uring: {}", std::strerror(-error)));
    }

  private:
    io_uring ring_{};
    unsigned pending_ = 0;
};

// Why there is none.
inline std::optional<std::string> why_no_io_uring() {
    try {
        const Ring ring(1);
        return std::nullopt;
    } catch (const std::exception& error) {
        return error.what();
    }
}

}  // namespace atomic4::bench
