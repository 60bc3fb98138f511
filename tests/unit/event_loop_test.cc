// Both event loops do the same.
#include "device/event_loop.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/eventfd.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <vector>

#include "base/unique_fd.h"
#include "support/backends.h"
#include "support/command.h"

namespace atomic4 {
namespace {

using namespace std::chrono_literals;

class EventLoopTest : public testing::TestWithParam<EventLoop::Backend> {
  protected:
    EventLoopTest() {
        auto made = EventLoop::create(GetParam());
        EXPECT_TRUE(made.has_value()) << (made ? "" : made.error().message);
        if (made) loop = std::move(*made);
    }
    void run_until(const std::function<bool()>& condition) {
        while (!condition()) ASSERT_TRUE(loop->run_once());
    }
    int run_one(const std::function<void(EventLoop::Completion)>& submit) {
        std::optional<int> result;
        submit([&](int value) { result = value; });
        EXPECT_FALSE(result.has_value()) << "completions come from run_once";
        run_until([&] { return result.has_value(); });
        return result.value_or(-1);
    }

    test::TempDir dir;
    std::unique_ptr<EventLoop> loop;
};

TEST_P(EventLoopTest, WritesReadsAndFlushes) {
    const UniqueFd fd(::open(dir.file("f").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
    const std::vector<std::byte> data(8192, std::byte{7});
    EXPECT_EQ(run_one([&](auto done) { loop->write(fd.get(), ByteOffset(100), data, 0, done); }),
              8192);
    EXPECT_EQ(run_one([&](auto done) {
                  loop->write(fd.get(), ByteOffset(8292), std::span(data).first(8), RWF_DSYNC,
                              done);
              }),
              8);
    EXPECT_EQ(run_one([&](auto done) { loop->fdatasync(fd.get(), done); }), 0);
    std::vector<std::byte> back(10000);
    EXPECT_EQ(run_one([&](auto done) { loop->read(fd.get(), ByteOffset(0), back, done); }), 8300);
    EXPECT_EQ(back[99], std::byte{0});
    EXPECT_EQ(back[100], std::byte{7});
    EXPECT_EQ(run_one([&](auto done) { loop->read(fd.get(), ByteOffset(9000), back, done); }), 0);
    EXPECT_EQ(run_one([&](auto done) { loop->fdatasync(-1, done); }), -EBADF);
    const UniqueFd read_only(::open(dir.file("f").c_str(), O_RDONLY | O_CLOEXEC));
    EXPECT_EQ(
        run_one([&](auto done) { loop->write(read_only.get(), ByteOffset(0), data, 0, done); }),
        -EBADF);
}

TEST_P(EventLoopTest, MoreAtOnceThanTheRingHolds) {
    const UniqueFd fd(::open(dir.file("f").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
    std::vector<std::byte> data(16);
    size_t done = 0;
    for (size_t i = 0; i < 5000; ++i)
        loop->write(fd.get(), ByteOffset(i * 16), data, 0, [&](int n) { done += n == 16 ? 1 : 0; });
    run_until([&] { return done == 5000; });
}

TEST_P(EventLoopTest, MessagesWithDescriptors) {
    std::array<int, 2> pair{};
    ASSERT_EQ(::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair.data()), 0);
    const UniqueFd ours(pair[0]), theirs(pair[1]);

    std::array<char, 64> buffer{};
    iovec part{buffer.data(), buffer.size()};
    alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int))> control{};
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    message.msg_control = control.data();
    message.msg_controllen = control.size();
    std::optional<int> received;
    loop->receive(ours.get(), &message, [&](int n) { received = n; });
    ASSERT_TRUE(loop->run_once(false));
    EXPECT_FALSE(received.has_value());

    alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int))> sent_control{};
    char text[] = "hello";
    iovec sent_part{text, 5};
    msghdr sent{};
    sent.msg_iov = &sent_part;
    sent.msg_iovlen = 1;
    sent.msg_control = sent_control.data();
    sent.msg_controllen = sent_control.size();
    cmsghdr* head = CMSG_FIRSTHDR(&sent);
    head->cmsg_level = SOL_SOCKET;
    head->cmsg_type = SCM_RIGHTS;
    head->cmsg_len = CMSG_LEN(sizeof(int));
    const int passed = theirs.get();
    std::memcpy(CMSG_DATA(head), &passed, sizeof passed);
    EXPECT_EQ(run_one([&](auto done) { loop->send(theirs.get(), &sent, done); }), 5);
    run_until([&] { return received.has_value(); });
    EXPECT_EQ(*received, 5);
    cmsghdr* got = CMSG_FIRSTHDR(&message);
    ASSERT_NE(got, nullptr);
    int fd = -1;
    std::memcpy(&fd, CMSG_DATA(got), sizeof fd);
    const UniqueFd keep(fd);
    EXPECT_NE(::fcntl(fd, F_GETFD) & FD_CLOEXEC, 0);

    // The other side goes away: the end.
    received.reset();
    message.msg_controllen = control.size();
    loop->receive(ours.get(), &message, [&](int n) { received = n; });
    ::shutdown(theirs.get(), SHUT_RDWR);
    run_until([&] { return received.has_value(); });
    EXPECT_EQ(*received, 0);
    EXPECT_EQ(run_one([&](auto done) { loop->send(ours.get(), &sent, done); }), -EPIPE);
}

TEST_P(EventLoopTest, PollsUntilGivenUp) {
    const UniqueFd event(::eventfd(3, EFD_NONBLOCK | EFD_CLOEXEC));
    int calls = 0;
    const auto id = loop->poll(event.get(), POLLIN, [&](int events) {
        EXPECT_NE(events & POLLIN, 0);
        ++calls;
    });
    run_until([&] { return calls == 3; });  // level-triggered: nobody reads it
    loop->unpoll(id);
    for (int i = 0; i < 5; ++i) ASSERT_TRUE(loop->run_once(false));
    EXPECT_EQ(calls, 3);
    // From inside its own call.
    EventLoop::PollId own = 0;
    own = loop->poll(event.get(), POLLIN, [&](int) {
        ++calls;
        loop->unpoll(own);
    });
    run_until([&] { return calls == 4; });
    for (int i = 0; i < 5; ++i) ASSERT_TRUE(loop->run_once(false));
    EXPECT_EQ(calls, 4);
}

// With io_uring what was submitted, also by what was deferred, is done or on its way by then; with
// system calls it comes later. Neither waits.
TEST_P(EventLoopTest, AfterTheSubmissionComesBeforeTheWait) {
    int ends[2];
    ASSERT_EQ(::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends), 0);
    const UniqueFd here(ends[0]);
    const UniqueFd there(ends[1]);
    char byte = 'x';
    iovec part{&byte, 1};
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    std::string order;
    std::optional<int> sent;
    bool arrived = false;
    loop->after_submit([&] {
        order += "after ";
        arrived = ::recv(there.get(), &byte, 1, MSG_DONTWAIT) == 1;
    });
    loop->defer([&] {
        order += "deferred ";
        loop->send(here.get(), &message, [&](int n) { sent = n; });
    });
    ASSERT_TRUE(loop->run_once());
    EXPECT_EQ(order, "deferred after ");
    run_until([&] { return sent.has_value(); });
    EXPECT_EQ(sent, 1);
    EXPECT_EQ(arrived, GetParam() == EventLoop::Backend::Uring);

    loop->after_submit([&] { loop->after_submit([&] { order += "and again"; }); });
    ASSERT_TRUE(loop->run_once());
    ASSERT_TRUE(loop->run_once());
    EXPECT_EQ(order, "deferred after and again");
}

TEST_P(EventLoopTest, TimersInTheirOrder) {
    std::vector<int> order;
    loop->after(30ms, [&](int) { order.push_back(2); });
    loop->after(1ms, [&](int) { order.push_back(1); });
    run_until([&] { return order.size() == 2; });
    EXPECT_EQ(order, (std::vector<int>{1, 2}));
}

TEST_P(EventLoopTest, SpinningStillSleepsInTheEnd) {
    loop->set_spin(50us);
    loop->spin_now(true);
    int rung = 0;
    loop->after(5ms, [&](int) { ++rung; });
    run_until([&] { return rung == 1; });
    const UniqueFd event(::eventfd(1, EFD_NONBLOCK | EFD_CLOEXEC));
    int calls = 0;
    loop->poll(event.get(), POLLIN, [&](int) { ++calls; });
    run_until([&] { return calls > 0; });
}

TEST_P(EventLoopTest, WhatIsDeferredComesFirstAndDoesNotWait) {
    std::vector<int> order;
    loop->after(0ns, [&](int) { order.push_back(3); });
    loop->defer([&] {
        order.push_back(1);
        loop->defer([&] { order.push_back(2); });
    });
    run_until([&] { return order.size() == 3; });
    EXPECT_EQ(order[0], 1);
    EXPECT_LT(std::ranges::find(order, 1), std::ranges::find(order, 2));
}

INSTANTIATE_TEST_SUITE_P(Backends, EventLoopTest, test::both_backends(), test::backend_name);

}  // namespace
}  // namespace atomic4
