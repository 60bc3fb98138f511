#include "bench/daemon.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <stdexcept>

namespace atomic4::bench {
namespace {

constexpr double kSpinSeconds = 50e-6;
constexpr int kStartLimit = 60'000;  // ms

sockaddr_un address_of(const std::string& path) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    if (path.size() >= sizeof address.sun_path) throw std::runtime_error(path + " is too long");
    std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
    return address;
}

UniqueFd make_socket(int type) {
    UniqueFd fd(::socket(AF_UNIX, type | SOCK_CLOEXEC, 0));
    must(static_cast<bool>(fd), "socket");
    return fd;
}

// Until it can be read: true. False if the process ended before.
bool wait_for_either(int fd, int process) {
    pollfd both[2] = {{fd, POLLIN, 0}, {process, POLLIN, 0}};
    int n = 0;
    do {
        n = poll(both, 2, kStartLimit);
    } while (n < 0 && errno == EINTR);
    must(n >= 0, "poll");
    if (n == 0) throw std::runtime_error("atomic4d: not ready after a minute");
    return (both[0].revents & POLLIN) != 0;
}

double peak_of(const std::string& pid) {
    std::ifstream status("/proc/" + pid + "/status");
    for (std::string line; std::getline(status, line);)
        if (line.starts_with("VmHWM:")) return std::stod(line.substr(6)) / 1024;
    return 0;
}

template <class T>
std::span<const std::byte> bytes_of(const T& value) {
    return std::as_bytes(std::span(&value, 1));
}

template <class T>
T read_as(std::span<const std::byte> body) {
    if (body.size() < sizeof(T)) throw std::runtime_error("atomic4d: a reply is too short");
    T value;
    std::memcpy(&value, body.data(), sizeof value);
    return value;
}

}  // namespace

std::optional<std::string> why_no_daemon() {
    const std::string program = our_program("atomic4d");
    if (std::filesystem::exists(program)) return std::nullopt;
    return "there is no " + program;
}

Daemon::Daemon(const std::string& target, const std::string& scratch,
               const std::vector<std::string>& more)
    : socket_(scratch + ".sock"), output_(scratch + ".out") {
    const std::string notify = scratch + ".notify";
    unlink(socket_.c_str());
    unlink(notify.c_str());
    const UniqueFd ready = make_socket(SOCK_DGRAM);
    const sockaddr_un address = address_of(notify);
    must(ready &&
             bind(ready.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0,
         notify);

    // Killed, a benchmark can't stop what it started; a daemon would keep its mount busy.
    std::vector<std::string> words{"setpriv", "--pdeathsig", "TERM", our_program("atomic4d"),
                                   target,    "--socket",    socket_};
    words.insert(words.end(), more.begin(), more.end());
    std::vector<char*> argv;
    for (std::string& word : words) argv.push_back(word.data());
    argv.push_back(nullptr);
    std::string variable = "NOTIFY_SOCKET=" + notify;
    std::vector<char*> environment{variable.data()};
    for (char** entry = environ; *entry != nullptr; ++entry)
        if (!std::string_view(*entry).starts_with("NOTIFY_SOCKET=")) environment.push_back(*entry);
    environment.push_back(nullptr);

    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_addopen(&actions, 1, output_.c_str(), O_WRONLY | O_CREAT | O_TRUNC,
                                     0600);
    posix_spawn_file_actions_adddup2(&actions, 1, 2);
    const int error =
        posix_spawnp(&pid_, argv[0], &actions, nullptr, argv.data(), environment.data());
    posix_spawn_file_actions_destroy(&actions);
    if (error != 0) throw std::runtime_error(words[0] + ": " + std::strerror(error));

    const UniqueFd process(static_cast<int>(syscall(SYS_pidfd_open, pid_, 0)));
    must(static_cast<bool>(process), "pidfd_open");
    try {
        for (std::string message; message.find("READY=1") == std::string::npos;) {
            if (!wait_for_either(ready.get(), process.get()))
                throw std::runtime_error("atomic4d ended at once: " + said());
            message.resize(4096);
            const ssize_t n = recv(ready.get(), message.data(), message.size(), 0);
            must(n >= 0, "recv");
            message.resize(static_cast<size_t>(n));
        }
    } catch (...) {
        kill(pid_, SIGKILL);
        waitpid(pid_, nullptr, 0);
        throw;
    }
    unlink(notify.c_str());
}

Daemon::~Daemon() {
    if (pid_ < 0) return;
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
}

double Daemon::peak_mib() const {
    const std::string pid = std::to_string(pid_);
    double sum = peak_of(pid);
    std::ifstream children("/proc/" + pid + "/task/" + pid + "/children");
    for (std::string child; children >> child;) sum += peak_of(child);
    return sum;
}

void Daemon::stop() {
    kill(pid_, SIGTERM);
    int status = 0;
    while (waitpid(pid_, &status, 0) < 0 && errno == EINTR) {
    }
    pid_ = -1;
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
        throw std::runtime_error(fmt::format("atomic4d: status {:#x}: {}", status, said()));
}

std::string Daemon::said() const {
    std::ostringstream text;
    text << std::ifstream(output_).rdbuf();
    return text.str();
}

DaemonSession::DaemonSession(const std::string& socket, Waiting waiting)
    : socket_(make_socket(SOCK_SEQPACKET)), waiting_(waiting), packet_(wire::kPacketMax) {
    const sockaddr_un address = address_of(socket);
    must(connect(socket_.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0,
         socket);
    const wire::HelloRequest hello{wire::kMagic, wire::kVersion, wire::kVersion};
    exchange(wire::Type::Hello, bytes_of(hello), {}, -1);
}

void DaemonSession::open(int fd, uint32_t flags, wire::WireEngine engine) {
    const wire::OpenRequest request{flags, static_cast<uint32_t>(engine), 0, 0};
    handle_ =
        read_as<wire::OpenReply>(exchange(wire::Type::Open, bytes_of(request), {}, fd)).handle;
}

void DaemonSession::open(const std::string& path, uint32_t flags, wire::WireEngine engine) {
    const wire::OpenRequest request{flags, static_cast<uint32_t>(engine),
                                    static_cast<uint32_t>(path.size()), 0};
    const auto text = std::as_bytes(std::span(path.data(), path.size()));
    handle_ =
        read_as<wire::OpenReply>(exchange(wire::Type::Open, bytes_of(request), text, -1)).handle;
}

void DaemonSession::ensure_arena(uint64_t size) {
    if (arena_.size() >= size) return;
    if (!arena_.empty()) throw std::runtime_error("the arena is too small");
    const UniqueFd memory(memfd_create("arena", MFD_CLOEXEC | MFD_ALLOW_SEALING));
    must(memory && ftruncate(memory.get(), static_cast<off_t>(size)) == 0 &&
             fcntl(memory.get(), F_ADD_SEALS, F_SEAL_SHRINK) == 0,
         "memfd");
    void* mapped = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, memory.get(), 0);
    must(mapped != MAP_FAILED, "mmap");
    arena_ = {static_cast<std::byte*>(mapped), size};
    exchange(wire::Type::Arena, bytes_of(wire::ArenaRequest{size}), {}, memory.get());
}

Written DaemonSession::write(uint64_t offset, std::span<const std::byte> data) {
    const bool by_arena = data.size() > wire::kInlineMax;
    if (by_arena) {
        ensure_arena(data.size());
        std::memcpy(arena_.data(), data.data(), data.size());
    }
    const wire::WriteRequest request{
        handle_,     offset,
        data.size(), 0,
        0,           static_cast<uint32_t>(by_arena ? wire::Source::Arena : wire::Source::Inline)};
    const auto reply = read_as<wire::WriteReply>(exchange(
        wire::Type::Write, bytes_of(request), by_arena ? std::span<const std::byte>{} : data, -1));
    return {static_cast<wire::WireEngine>(uint32_t{reply.engine}),
            static_cast<wire::AckMode>(uint32_t{reply.ack_mode})};
}

void DaemonSession::statx() {
    exchange(wire::Type::Statx, bytes_of(wire::HandleRequest{handle_}), {}, -1);
}

void DaemonSession::send(std::span<const std::byte> body, std::span<const std::byte> tail,
                         std::span<const std::byte> header, int pass_fd) {
    const auto vector = [](std::span<const std::byte> bytes) {
        return iovec{const_cast<std::byte*>(bytes.data()), bytes.size()};
    };
    iovec parts[3] = {vector(header), vector(body), vector(tail)};
    msghdr message{};
    message.msg_iov = parts;
    message.msg_iovlen = 3;
    alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int))> control{};
    if (pass_fd >= 0) {
        message.msg_control = control.data();
        message.msg_controllen = control.size();
        cmsghdr* part = CMSG_FIRSTHDR(&message);
        part->cmsg_level = SOL_SOCKET;
        part->cmsg_type = SCM_RIGHTS;
        part->cmsg_len = CMSG_LEN(sizeof(int));
        std::memcpy(CMSG_DATA(part), &pass_fd, sizeof pass_fd);
    }
    must(sendmsg(socket_.get(), &message, MSG_NOSIGNAL) ==
             static_cast<ssize_t>(header.size() + body.size() + tail.size()),
         "sending to atomic4d");
}

std::span<const std::byte> DaemonSession::exchange(wire::Type type, std::span<const std::byte> body,
                                                   std::span<const std::byte> tail, int pass_fd) {
    wire::RequestHeader header{};
    header.type = static_cast<uint16_t>(type);
    header.length = static_cast<uint32_t>(sizeof header + body.size() + tail.size());
    header.tag = ++tag_;
    send(body, tail, bytes_of(header), pass_fd);
    const size_t n =
        receive_packet(socket_.get(), packet_, waiting_ == Waiting::Spin ? kSpinSeconds : 0);
    const auto packet = std::span<const std::byte>(packet_).first(n);
    const auto reply = read_as<wire::ReplyHeader>(packet);
    if (reply.error != 0) {
        const size_t length = std::min<size_t>(reply.reason_length, packet.size());
        const auto reason = packet.last(length);
        throw std::runtime_error("atomic4d: " +
                                 std::string(reinterpret_cast<const char*>(reason.data()), length));
    }
    if (reply.tag != tag_) throw std::runtime_error("atomic4d: a reply to another request");
    return packet.subspan(sizeof reply);
}

size_t receive_packet(int socket, std::span<std::byte> into, double spin_seconds) {
    const double end = spin_seconds > 0 ? seconds() + spin_seconds : 0;
    for (bool sleep = spin_seconds <= 0;;) {
        const ssize_t n = recv(socket, into.data(), into.size(), sleep ? 0 : MSG_DONTWAIT);
        if (n > 0) return static_cast<size_t>(n);
        if (n == 0) throw std::runtime_error("the other side closed the connection");
        must(errno == EAGAIN || errno == EINTR, "recv");
        sleep = sleep || seconds() >= end;
    }
}

}  // namespace atomic4::bench
