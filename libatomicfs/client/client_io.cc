// The client's transport: sending requests, receiving answers, and the end of a connection.
#include <poll.h>
#include <sched.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "client/client.h"

namespace atomic4 {

using namespace wire;

namespace {

using Clock = std::chrono::steady_clock;

// A tag is a sequence number and, in its lowest byte, the entry of the request.
constexpr unsigned kIndexBits = 8;
static_assert(kOutstandingMax == 1 << kIndexBits);
constexpr uint64_t kIndexMask = kOutstandingMax - 1;

constexpr std::chrono::milliseconds kLongest(1 << 30);

constexpr std::string_view kInDoubt =
    "writes without an answer are in doubt: each is all old or all new";

iovec part(std::span<const std::byte> bytes) {
    return {const_cast<std::byte*>(bytes.data()), bytes.size()};
}

}  // namespace

Result<uint64_t> Client::submit(const Outgoing& message) {
    while (!broken_ && in_flight_ >= daemon_.outstanding_max) receive(0);
    // Taken before it is sent: transmit may receive answers, which give back theirs.
    const uint8_t index = unused_.back();
    unused_.pop_back();
    const uint64_t tag = (++sequence_ << kIndexBits) | index;
    if (auto sent = transmit(message, tag); !sent) {
        release(message.place);
        unused_.push_back(index);
        return fail(std::move(sent).error());
    }
    pending_[index] = {
        tag, {message.type, message.place.source, message.length}, message.into, message.place};
    ++in_flight_;
    return tag;
}

// While the daemon takes nothing its answers are received: it may be waiting for that.
Result<> Client::transmit(const Outgoing& message, uint64_t tag) {
    RequestHeader header;
    header.type = static_cast<uint16_t>(message.type);
    header.length =
        static_cast<uint32_t>(sizeof header + message.body.size() + message.payload.size());
    header.tag = tag;
    iovec parts[] = {part(std::as_bytes(std::span(&header, 1))), part(message.body),
                     part(message.payload)};
    msghdr packet{};
    packet.msg_iov = parts;
    packet.msg_iovlen = std::size(parts);
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
    if (message.fd >= 0) {
        packet.msg_control = control;
        packet.msg_controllen = sizeof control;
        cmsghdr* rights = CMSG_FIRSTHDR(&packet);
        rights->cmsg_level = SOL_SOCKET;
        rights->cmsg_type = SCM_RIGHTS;
        rights->cmsg_len = CMSG_LEN(sizeof(int));
        std::memcpy(CMSG_DATA(rights), &message.fd, sizeof(int));
    }
    for (;;) {
        A4_CHECK(check_alive());
        if (sendmsg(socket_.get(), &packet, MSG_NOSIGNAL | MSG_DONTWAIT) >= 0) return {};
        const int code = errno;
        if (code == EPIPE || code == ECONNRESET) {
            lose_connection();
        } else if (code == EAGAIN) {
            pollfd ready{socket_.get(), POLLIN | POLLOUT, 0};
            poll(&ready, 1, -1);
            while ((ready.revents & POLLIN) != 0 && receive(MSG_DONTWAIT)) {
            }
        } else if (code != EINTR) {
            // Nothing was sent (EBADF: the descriptor to pass): the connection goes on.
            return fail(Error::from_errno(code, "sending a request"));
        }
    }
}

Result<Reply> Client::call(const Outgoing& message) {
    return wait(submit(message));
}

// Spins, sleeps, and gives the answer to tag; others that come meanwhile are kept for reap.
Result<Reply> Client::wait(Result<uint64_t> tag) {
    const uint64_t awaited = A4_TRY(std::move(tag));
    const auto begin = Clock::now();
    std::optional<Done> done;
    if (spin_.worthwhile()) {
        const auto end = begin + spin_.limit();
        do {
            if (receive(MSG_DONTWAIT))
                done = take(awaited);
            else
                ::sched_yield();  // the daemon may be waiting for this processor
        } while (!done && Clock::now() < end);
    }
    while (!done) {
        receive(0);
        done = take(awaited);
    }
    spin_.measured(Clock::now() - begin);
    if (done->reply.code != 0) return fail(Error{done->reply.code, std::move(done->reply.reason)});
    return std::move(done->reply);
}

// The answer to tag, if it came with the last packet.
std::optional<Client::Done> Client::take(uint64_t tag) {
    // A broken connection answers everything at once, otherwise it is the last.
    auto found = done_.end();
    if (broken_)
        found =
            std::find_if(done_.begin(), done_.end(), [&](auto& done) { return done.tag == tag; });
    else if (!done_.empty() && done_.back().tag == tag)
        found = std::prev(done_.end());
    if (found == done_.end()) return std::nullopt;
    Done done = std::move(*found);
    done_.erase(found);
    return done;
}

std::vector<Completion> Client::reap(size_t max, std::chrono::milliseconds timeout) {
    while (done_.size() < max && receive(MSG_DONTWAIT)) {
    }
    if (done_.empty() && in_flight_ > 0 && max > 0) {
        wait_for_answer(timeout);
        while (done_.size() < max && receive(MSG_DONTWAIT)) {
        }
    }
    std::vector<Completion> completions;
    completions.reserve(std::min(max, done_.size()));
    while (completions.size() < max && !done_.empty()) {
        Done& done = done_.front();
        Completion completion;
        completion.tag = done.tag;
        completion.code = done.reply.code;
        completion.reason = std::move(done.reply.reason);
        if (completion.code == 0) completion.length = Bytes(done.length);
        if (const auto* written = std::get_if<Written>(&done.reply.body))
            completion.written = *written;
        if (auto* status = std::get_if<FileStatus>(&done.reply.body))
            completion.status = std::move(*status);
        completions.push_back(std::move(completion));
        done_.pop_front();
    }
    return completions;
}

void Client::wait_for_answer(std::chrono::milliseconds timeout) {
    timeout = std::clamp(timeout, std::chrono::milliseconds(-1), kLongest);
    const auto end = Clock::now() + timeout;
    auto left = timeout;
    for (;;) {
        pollfd ready{socket_.get(), POLLIN, 0};
        if (poll(&ready, 1, static_cast<int>(left.count())) > 0) return;
        if (timeout.count() < 0) continue;
        left = std::chrono::ceil<std::chrono::milliseconds>(end - Clock::now());
        if (left.count() <= 0) return;
    }
}

// Receives one packet, and deals with whatever it is. False: none came (MSG_DONTWAIT), or the
// connection was broken before.
bool Client::receive(int flags) {
    while (!broken_) {
        const ssize_t count = recv(socket_.get(), packet_.get(), kPacketMax, flags | MSG_TRUNC);
        if (count > static_cast<ssize_t>(kPacketMax)) {
            break_connection(EPROTO, fmt::format("the daemon sent a packet of {} bytes", count));
            return true;
        }
        if (count > 0) {
            const auto result = answered({packet_.get(), static_cast<size_t>(count)});
            if (!result) break_connection(result.error().code, result.error().message);
            return true;
        }
        if (count == 0) {
            break_connection(EIO, "the daemon closed the connection");
            return true;
        }
        if (errno == EAGAIN) return false;
        // The daemon left before it had read everything. That is told once, and before the answers
        // that still lie in the socket.
        if (errno == ECONNRESET || errno == EINTR) continue;
        break_connection(EIO, Error::from_errno(errno, "receiving from the daemon").message);
        return true;
    }
    return false;
}

Result<> Client::answered(std::span<const std::byte> packet) {
    const uint64_t tag = A4_TRY(reply_tag(packet));
    Pending& pending = pending_[tag & kIndexMask];
    if (tag == 0 || pending.tag != tag)
        return fail(EPROTO, "the daemon answered a request that it was not asked (tag {})", tag);
    Done done{tag, pending.expected.length, A4_TRY(decode_reply(packet, pending.expected))};
    if (auto* read = std::get_if<Reply::ReadBytes>(&done.reply.body)) {
        done.length = read->length;
        const auto bytes =
            pending.place.ours ? arena_->at(pending.place.arena_offset, read->length) : read->bytes;
        if (!bytes.empty()) std::memcpy(pending.into.data(), bytes.data(), bytes.size());
        read->bytes = {};  // a view into the packet
    }
    release(pending.place);
    pending.tag = 0;
    unused_.push_back(static_cast<uint8_t>(tag & kIndexMask));
    --in_flight_;
    done_.push_back(std::move(done));
    return {};
}

Result<> Client::check_alive() const {
    if (broken_) return fail(*broken_);
    return {};
}

// Answers that the daemon sent before it went still count.
void Client::lose_connection() {
    while (receive(MSG_DONTWAIT)) {
    }
    if (!broken_) break_connection(EIO, "the daemon closed the connection");
}

void Client::break_connection(int code, std::string_view what) {
    broken_ = Error{code, fmt::format("{}; {}", what, kInDoubt)};
    shutdown(socket_.get(), SHUT_RDWR);
    for (Pending& pending : pending_) {
        if (pending.tag == 0) continue;
        release(pending.place);
        unused_.push_back(static_cast<uint8_t>(pending.tag & kIndexMask));
        done_.push_back({std::exchange(pending.tag, 0), 0, {code, broken_->message, {}}});
    }
    in_flight_ = 0;
}

}  // namespace atomic4
