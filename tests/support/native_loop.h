// An event loop whose RWF_ATOMIC writes are answered as a test wants; all else is another loop's.
//
// No file system of a test machine writes untorn through ext4, so this plays one that does: it
// takes a write if the file has it in one aligned written run, as the kernel does, and carries it
// out without the flag.
#pragma once

#include <functional>
#include <vector>

#include "device/event_loop.h"

namespace atomic4::test {

class NativeLoop final : public EventLoop {
  public:
    enum class Answer {
        Device,   // done, or EINVAL if it is no aligned written run
        Done,     // whatever the range
        Refused,  // EINVAL
        Busy,     // EAGAIN
        Lost,     // EIO, and nothing of it written
        Failed,   // EIO, and all of it written
        Short,    // half of it
    };
    struct Seen {
        ByteOffset offset;
        Bytes length;
        int flags = 0;
        bool aligned = false;  // the memory
    };

    explicit NativeLoop(std::unique_ptr<EventLoop> inner) : inner_(std::move(inner)) {}

    Answer answer = Answer::Device;
    std::vector<Seen> seen;            // atomic writes, in the order of their submission
    std::function<void()> on_atomic;   // before one is carried out
    std::function<void()> on_written;  // and after, before it is told
    // Before any other write is submitted.
    std::function<void(int fd, ByteOffset offset, Bytes length)> on_write;

    const char* name() const override { return inner_->name(); }
    void read(int fd, ByteOffset offset, std::span<std::byte> into, Completion done) override {
        inner_->read(fd, offset, into, std::move(done));
    }
    void write(int fd, ByteOffset offset, std::span<const std::byte> from, int flags,
               Completion done) override;
    void fdatasync(int fd, Completion done) override { inner_->fdatasync(fd, std::move(done)); }
    void receive(int fd, msghdr* message, Completion done) override {
        inner_->receive(fd, message, std::move(done));
    }
    void send(int fd, const msghdr* message, Completion done) override {
        inner_->send(fd, message, std::move(done));
    }
    void accept(int fd, Completion done) override { inner_->accept(fd, std::move(done)); }
    PollId poll(int fd, short events, Completion ready) override {
        return inner_->poll(fd, events, std::move(ready));
    }
    void unpoll(PollId id) override { inner_->unpoll(id); }
    void after(std::chrono::nanoseconds time, Completion done) override {
        inner_->after(time, std::move(done));
    }

  protected:
    Result<size_t> turn(bool wait) override { return inner_->run_once(wait); }

  private:
    std::unique_ptr<EventLoop> inner_;
};

// Whether the range is one written run that lies on the device at a multiple of its length.
bool is_aligned_run(int fd, ByteOffset offset, Bytes length);

}  // namespace atomic4::test
