// The event loop on io_uring. The only file that includes liburing.
//
// Completions are run by the kernel only inside io_uring_enter (DEFER_TASKRUN), so nothing
// interrupts the loop; while it spins, the kernel's TASKRUN flag in shared memory says when there
// is something to fetch, without a system call.
#include <fcntl.h>
#include <liburing.h>
#include <sched.h>

#include <vector>

#include "device/event_loop_backends.h"

#ifndef IORING_SETUP_TASKRUN_FLAG
#define IORING_SETUP_TASKRUN_FLAG (1U << 9)
#endif
#ifndef IORING_SQ_TASKRUN
#define IORING_SQ_TASKRUN (1U << 2)
#endif

namespace atomic4 {
namespace {

constexpr unsigned kEntries = 1024;
// What may sleep in the kernel at a time: each has a thread there. By default four a processor,
// and a few writes to a file that somebody keeps locked would hold up all others.
constexpr unsigned kSleepers = 2048;

struct Request {
    EventLoop::Completion done;
    __kernel_timespec time{};
    // A poll is armed again after each call, until it is given up.
    bool poll = false;
    bool given_up = false;
    bool in_call = false;
    int fd = -1;
    short events = 0;
};

// The kernel carries pointers as numbers.
Request* request_of(uint64_t user_data) {
    return reinterpret_cast<Request*>(user_data);  // NOLINT(performance-no-int-to-ptr)
}

class UringLoop final : public EventLoop {
  public:
    ~UringLoop() override {
        if (ring_made_) io_uring_queue_exit(&ring_);
    }

    Result<> init() {
        io_uring_params params{};
        params.flags = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN |
                       IORING_SETUP_TASKRUN_FLAG | IORING_SETUP_CQSIZE | IORING_SETUP_CLAMP;
        params.cq_entries = 8 * kEntries;
        const int made = io_uring_queue_init_params(kEntries, &ring_, &params);
        if (made < 0) return fail(Error::from_errno(-made, "io_uring"));
        ring_made_ = true;
        unsigned workers[2] = {kSleepers, 0};  // files and devices; others: as it is
        const int more = io_uring_register_iowq_max_workers(&ring_, workers);
        if (more < 0) return fail(Error::from_errno(-more, "io_uring: threads"));
        return {};
    }

    const char* name() const override { return "io_uring"; }

    void read(int fd, ByteOffset offset, std::span<std::byte> into, Completion done) override {
        io_uring_sqe* sqe = next(std::move(done));
        const uint64_t data = sqe->user_data;
        io_uring_prep_read(sqe, fd, into.data(), static_cast<unsigned>(into.size()),
                           offset.value());
        sqe->user_data = data;
    }
    void write(int fd, ByteOffset offset, std::span<const std::byte> from, int flags,
               Completion done) override {
        io_uring_sqe* sqe = next(std::move(done));
        const uint64_t data = sqe->user_data;
        io_uring_prep_write(sqe, fd, from.data(), static_cast<unsigned>(from.size()),
                            offset.value());
        sqe->rw_flags = flags;
        sqe->user_data = data;
    }
    void fdatasync(int fd, Completion done) override {
        io_uring_sqe* sqe = next(std::move(done));
        const uint64_t data = sqe->user_data;
        io_uring_prep_fsync(sqe, fd, IORING_FSYNC_DATASYNC);
        sqe->user_data = data;
    }
    void receive(int fd, msghdr* message, Completion done) override {
        io_uring_sqe* sqe = next(std::move(done));
        const uint64_t data = sqe->user_data;
        io_uring_prep_recvmsg(sqe, fd, message, MSG_CMSG_CLOEXEC);
        sqe->user_data = data;
    }
    void send(int fd, const msghdr* message, Completion done) override {
        io_uring_sqe* sqe = next(std::move(done));
        const uint64_t data = sqe->user_data;
        io_uring_prep_sendmsg(sqe, fd, message, MSG_NOSIGNAL);
        sqe->user_data = data;
    }
    void accept(int fd, Completion done) override {
        io_uring_sqe* sqe = next(std::move(done));
        const uint64_t data = sqe->user_data;
        io_uring_prep_accept(sqe, fd, nullptr, nullptr, SOCK_CLOEXEC);
        sqe->user_data = data;
    }
    PollId poll(int fd, short events, Completion ready) override {
        Request* const request = take();
        request->done = std::move(ready);
        request->poll = true;
        request->fd = fd;
        request->events = events;
        arm(request);
        return reinterpret_cast<PollId>(request);
    }
    void unpoll(PollId id) override {
        auto* const request = request_of(id);
        request->given_up = true;
        if (request->in_call) return;  // it isn't armed
        io_uring_sqe* sqe = free_sqe();
        io_uring_prep_poll_remove(sqe, id);
        sqe->user_data = 0;
    }
    void after(std::chrono::nanoseconds time, Completion done) override {
        io_uring_sqe* sqe = next(std::move(done));
        auto* const request = request_of(sqe->user_data);
        request->time.tv_sec = time.count() / 1'000'000'000;
        request->time.tv_nsec = time.count() % 1'000'000'000;
        io_uring_prep_timeout(sqe, &request->time, 0, 0);
        sqe->user_data = reinterpret_cast<uint64_t>(request);
    }

    Result<size_t> turn(bool wait) override {
        size_t called = 0;
        if (wait && io_uring_cq_ready(&ring_) == 0 && spin_now_ && spin_.count() > 0) {
            A4_CHECK(entered(io_uring_submit_and_get_events(&ring_)));
            A4_CHECK(spin());
        }
        if (wait && io_uring_cq_ready(&ring_) == 0)
            A4_CHECK(entered(io_uring_submit_and_wait(&ring_, 1)));
        else
            A4_CHECK(entered(io_uring_submit_and_get_events(&ring_)));
        // Those that are there now; what the calls cause comes in the next round.
        unsigned left = io_uring_cq_ready(&ring_);
        while (left-- > 0) {
            io_uring_cqe* cqe = nullptr;
            if (io_uring_peek_cqe(&ring_, &cqe) != 0) break;
            auto* const request = request_of(cqe->user_data);
            const int result = cqe->res;
            io_uring_cqe_seen(&ring_, cqe);
            if (request == nullptr) continue;
            ++called;
            complete(request, result);
        }
        return called;
    }

    Result<> submit() override {
        if (io_uring_sq_ready(&ring_) == 0) return {};
        return entered(io_uring_submit(&ring_));
    }

  private:
    // Interrupted, or the completion queue is full for the moment: the caller goes round again.
    static Result<> entered(int result) {
        if (result >= 0 || result == -EINTR || result == -EAGAIN || result == -EBUSY ||
            result == -ETIME)
            return {};
        return fail(Error::from_errno(-result, "io_uring"));
    }

    Result<> spin() {
        const auto until = std::chrono::steady_clock::now() + spin_;
        do {
            if ((__atomic_load_n(ring_.sq.kflags, __ATOMIC_ACQUIRE) & IORING_SQ_TASKRUN) != 0)
                A4_CHECK(entered(io_uring_get_events(&ring_)));
            if (io_uring_cq_ready(&ring_) != 0) return {};
            // Whom we have woken may be waiting for this processor.
            ::sched_yield();
        } while (std::chrono::steady_clock::now() < until);
        return {};
    }

    io_uring_sqe* free_sqe() {
        io_uring_sqe* sqe = io_uring_get_sqe(&ring_);
        while (sqe == nullptr) {
            // Full: the kernel takes them at once.
            io_uring_submit(&ring_);
            sqe = io_uring_get_sqe(&ring_);
        }
        return sqe;
    }

    io_uring_sqe* next(Completion done) {
        io_uring_sqe* sqe = free_sqe();
        Request* const request = take();
        request->done = std::move(done);
        sqe->user_data = reinterpret_cast<uint64_t>(request);
        return sqe;
    }

    Request* take() {
        if (spare_.empty()) {
            all_.push_back(std::make_unique<Request>());
            return all_.back().get();
        }
        Request* const request = spare_.back();
        spare_.pop_back();
        return request;
    }
    void give_back(Request* request) {
        *request = Request{};
        spare_.push_back(request);
    }

    void arm(Request* request) {
        io_uring_sqe* sqe = free_sqe();
        io_uring_prep_poll_add(sqe, request->fd, static_cast<unsigned>(request->events));
        sqe->user_data = reinterpret_cast<uint64_t>(request);
    }

    void complete(Request* request, int result) {
        if (!request->poll) {
            const Completion done = std::move(request->done);
            give_back(request);
            done(result);
            return;
        }
        if (!request->given_up) {
            request->in_call = true;
            request->done(result);
            request->in_call = false;
        }
        // It may have been given up in that call.
        if (request->given_up || result < 0)
            give_back(request);
        else
            arm(request);
    }

    io_uring ring_{};
    bool ring_made_ = false;
    std::vector<std::unique_ptr<Request>> all_;
    std::vector<Request*> spare_;
};

}  // namespace

Result<std::unique_ptr<EventLoop>> make_uring_loop() {
    auto loop = std::make_unique<UringLoop>();
    A4_CHECK(loop->init());
    return std::unique_ptr<EventLoop>(std::move(loop));
}

}  // namespace atomic4
