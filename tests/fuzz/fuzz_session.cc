// A client's whole connection, as the daemon serves it: packets in a row over a real socket, to a
// session whose volume is in memory. The first byte of an input chooses: mounted or owned, how the
// connection ends, and in which order the volume finishes what it was given. Then packets: two
// bytes of length each (the header's is set right for most), and the packet. HELLO and ARENA come
// first, unless the first byte says otherwise.
//
// sources: client/message.cc base/result.cc device/event_loop.cc device/syscall_loop.cc
// sources: daemon/session.cc daemon/stats.cc daemon/latency_histogram.cc daemon/prometheus.cc
// sources: daemon/arena_map.cc daemon/foreign_descriptor.cc
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/socket.h>

#include <cstdint>
#include <map>

#include "daemon/session.h"
#include "device/event_loop_backends.h"
#include "support/wire_packets.h"

namespace atomic4 {

// Of parts that no session needs here.
Result<std::unique_ptr<EventLoop>> make_uring_loop() {
    return fail(ENOSYS, "not here");
}
std::string to_text(const Peer& peer) {
    return fmt::format("user {}", peer.uid);
}
const char* to_text(Engine) {
    return "engine";
}

namespace {

constexpr size_t kArenaSize = 3 * 4096 + 100;

void require(bool holds) {
    if (!holds) abort();
}

// Takes everything, and finishes it when it is told to. Payloads are read and what is to be filled
// is written, each to its last byte: the sanitizer sees one too many.
class MemoryTarget final : public Target {
  public:
    explicit MemoryTarget(bool backwards) : backwards_(backwards) {}

    void submit(std::unique_ptr<WriteOp> op) override {
        std::shared_ptr<WriteOp> it = std::move(op);
        require(!it->ranges.empty());
        require(it->kind == WriteOp::Kind::Batch || it->ranges.size() == 1);
        waiting_.push_back([this, it] {
            for (const WriteOp::Range& range : it->ranges) {
                require(range.file && !range.data.empty());
                for (const std::byte byte : range.data) sum_ += static_cast<uint64_t>(byte);
            }
            if (sum_ % 5 == 4) return it->done(fail(EIO, "the device says no: in doubt"));
            it->done(WriteDone{it->kind == WriteOp::Kind::Plain ? Engine::Auto : Engine::Logged,
                               Ack::Strict});
        });
    }
    void read(FileRef file, ByteOffset, std::span<std::byte> into,
              std::function<void(Result<Bytes>)> done) override {
        require(file != nullptr);
        waiting_.push_back([this, into, done = std::move(done)] {
            std::ranges::fill(into, std::byte{7});
            done(Bytes(into.size() - sum_ % 2));
        });
    }
    void flush(FileRef, std::function<void(Result<>)> done) override {
        waiting_.push_back([done = std::move(done)] { done({}); });
    }
    Result<FileLimits> limits(const FileRef& file) override {
        FileLimits limits;
        limits.why_strict = std::string(3000, 's');
        limits.why_not_native = "because";
        if (file->writes_logged == 1) return fail(EIO, "no limits");
        return limits;
    }
    void close(FileRef file) override {
        require(file != nullptr && open_ > 0);
        --open_;
    }
    void freeze(std::function<void(Result<>)> done) override { flush({}, std::move(done)); }
    void thaw() override {}
    void stop(std::function<void(Result<>)> done) override { done({}); }
    const std::string* poisoned() const override { return nullptr; }
    Bytes block_size() const override { return Bytes(4096); }
    Bytes batch_max() const override { return Bytes(1 << 20); }
    TargetCounts counts() const override { return {}; }
    bool device_busy() const override { return false; }

    void later(std::function<void()> work) { waiting_.push_back(std::move(work)); }
    void opened() { ++open_; }
    size_t open() const { return open_; }
    // One of those that wait. False: none does.
    bool finish_one() {
        if (waiting_.empty()) return false;
        const auto which = backwards_ ? waiting_.end() - 1 : waiting_.begin();
        const auto work = std::move(*which);
        waiting_.erase(which);
        work();
        return true;
    }

  private:
    bool backwards_;
    std::vector<std::function<void()>> waiting_;
    size_t open_ = 0;
    uint64_t sum_ = 0;
};

class MemoryService final : public VolumeService {
  public:
    MemoryService(wire::TargetKind kind, bool backwards) : kind_(kind), target_(backwards) {}
    MemoryTarget& target() override { return target_; }
    wire::TargetKind kind() const override { return kind_; }
    const std::array<uint8_t, 16>& uuid() const override { return uuid_; }
    void open_file(const Peer&, OpenWish wish, std::function<void(Result<FileRef>)> done) override {
        require(wish.read || wish.write);
        require((kind_ == wire::TargetKind::Mounted) == wish.path.empty());
        require((kind_ == wire::TargetKind::Mounted) == static_cast<bool>(wish.descriptor));
        if (wish.path == "/no") return done(fail(ENOENT, "/no: there is none"));
        auto file = std::make_shared<File>();
        file->writes_logged = wish.path.size() % 3;
        // At once, as an owned volume does, or in a while.
        const auto finish = [this, file, done = std::move(done)] {
            target_.opened();
            done(FileRef(file));
        };
        kind_ == wire::TargetKind::Owned ? finish() : target_.later(finish);
    }

  private:
    class File final : public TargetFile {};
    wire::TargetKind kind_;
    MemoryTarget target_;
    std::array<uint8_t, 16> uuid_{};
};

class Connection {
  public:
    Connection(uint8_t mode, EventLoop& loop)
        : loop_(loop),
          service_((mode & 1) != 0 ? wire::TargetKind::Owned : wire::TargetKind::Mounted,
                   (mode & 2) != 0) {
        int ends[2];
        require(::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends) == 0);
        client_.reset(ends[0]);
        Session::Around around{
            loop,
            service_,
            stats_,
            memory_,
            Engine::Auto,
            [](wire::StatsFormat) { return std::string(100, 'x'); },
            [](const Peer&, int, const std::string& what) { require(!what.empty()); },
            [this](const Session*) { session_.reset(); }};
        const Peer peer{1, (mode & 4) != 0 ? 0u : 1000u, 1000, {}};
        session_ = std::make_shared<Session>(std::move(around), UniqueFd(ends[1]), peer);
        watch_ = session_;
        session_->start();
    }

    void send(const test::Packet& packet, int descriptor) {
        if (packet.size() >= sizeof(wire::RequestHeader)) {
            wire::RequestHeader header;
            std::memcpy(&header, packet.data(), sizeof header);
            ++asked_[header.tag];
        }
        iovec part{const_cast<std::byte*>(packet.data()), packet.size()};
        msghdr message{};
        message.msg_iov = &part;
        message.msg_iovlen = 1;
        alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int))> control{};
        if (descriptor >= 0) {
            message.msg_control = control.data();
            message.msg_controllen = control.size();
            cmsghdr* const head = CMSG_FIRSTHDR(&message);
            head->cmsg_level = SOL_SOCKET;
            head->cmsg_type = SCM_RIGHTS;
            head->cmsg_len = CMSG_LEN(sizeof(int));
            std::memcpy(CMSG_DATA(head), &descriptor, sizeof descriptor);
        }
        (void)!::sendmsg(client_.get(), &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    }
    // Until nothing moves without the volume.
    void run() {
        for (;;) {
            const auto called = loop_.run_once(false);
            require(called.has_value());
            if (*called == 0) return;
        }
    }
    void receive() {
        std::vector<std::byte> packet(wire::kPacketMax + 1);
        for (;;) {
            const ssize_t got = ::recv(client_.get(), packet.data(), packet.size(), MSG_DONTWAIT);
            if (got <= 0) return;
            wire::ReplyHeader header;
            require(static_cast<size_t>(got) >= sizeof header &&
                    static_cast<size_t>(got) <= wire::kPacketMax);
            std::memcpy(&header, packet.data(), sizeof header);
            require(header.length == static_cast<uint32_t>(got));
            require(header.error == 0 || (wire::is_wire_error(static_cast<int>(header.error)) &&
                                          header.reason_length != 0));
            // One answer for each request.
            require(asked_[header.tag]-- > 0);
        }
    }
    bool finish_one() { return service_.target().finish_one(); }
    void hang_up() { client_.reset(); }
    void stop() {
        if (session_) session_->end();
    }
    // All that was begun is finished, and nothing is left.
    void end() {
        do {
            run();
            receive();
        } while (finish_one());
        hang_up();
        do run();
        while (finish_one());
        run();
        require(watch_.expired());
        require(service_.target().open() == 0);
    }

  private:
    EventLoop& loop_;
    MemoryService service_;
    Stats stats_;
    std::shared_ptr<RequestMemory> memory_ = std::make_shared<RequestMemory>(size_t{1} << 20);
    UniqueFd client_;
    std::shared_ptr<Session> session_;
    std::weak_ptr<Session> watch_;
    std::map<uint64_t, int> asked_;
};

UniqueFd new_arena() {
    UniqueFd fd(::memfd_create("arena", MFD_CLOEXEC | MFD_ALLOW_SEALING));
    require(fd && ::ftruncate(fd.get(), kArenaSize) == 0 &&
            ::fcntl(fd.get(), F_ADD_SEALS, F_SEAL_SHRINK) == 0);
    return fd;
}

}  // namespace
}  // namespace atomic4

using namespace atomic4;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    if (size == 0) return 0;
    static const UniqueFd arena = new_arena();
    const uint8_t mode = *data++;
    --size;
    auto loop = EventLoop::create(EventLoop::Backend::Syscalls);
    require(loop.has_value());
    Connection connection(mode, **loop);
    if ((mode & 8) == 0) {
        wire::HelloRequest hello{};
        hello.magic = wire::kMagic;
        hello.version_min = hello.version_max = wire::kVersion;
        connection.send(test::request_packet(wire::Type::Hello, 1, test::bytes_of(hello)), -1);
        wire::ArenaRequest share{};
        share.size = kArenaSize;
        connection.send(test::request_packet(wire::Type::Arena, 2, test::bytes_of(share)),
                        arena.get());
        connection.run();
    }
    while (size >= 2) {
        const size_t want = static_cast<size_t>(data[0] | data[1] << 8);
        data += 2;
        size -= 2;
        const size_t length = std::min(want & 0x1fff, size);
        test::Packet packet(length);
        if (length > 0) std::memcpy(packet.data(), data, length);
        data += length;
        size -= length;
        if ((want & 0x8000) == 0 && length >= sizeof(wire::RequestHeader)) test::set_length(packet);
        connection.send(packet, (want & 0x4000) != 0 ? arena.get() : -1);
        if ((want & 0x2000) != 0) connection.run();
        if ((want & 0x1000) != 0) connection.finish_one();
    }
    switch (mode >> 6) {
        case 0:
            break;
        case 1:
            connection.hang_up();
            break;
        case 2:
            connection.stop();
            break;
        case 3:
            connection.run();
            connection.hang_up();
            connection.finish_one();
            break;
    }
    connection.end();
    return 0;
}
