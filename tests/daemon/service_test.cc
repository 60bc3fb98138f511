// The daemon as systemd starts it from atomic4d@.service: with that unit's capabilities and no
// more, no new privileges, readiness told by notification, and a socket that was there before it.
#include <gmock/gmock.h>
#include <grp.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstring>
#include <fstream>
#include <future>
#include <sstream>

#include "support/forked.h"
#include "support/other_process.h"
#include "support/served_volume.h"
#include "support/stamps.h"

namespace atomic4::test {
namespace {

using ::testing::HasSubstr;

constexpr size_t kUnits = 64;

// The unit's CapabilityBoundingSet=, as setpriv(1) wants it: "-all,+sys_admin,…".
std::string unit_capabilities() {
    const std::string unit = ATOMIC4_SOURCE "/packaging/systemd/atomic4d@.service.in";
    std::ifstream in(unit);
    const std::string key = "CapabilityBoundingSet=";
    for (std::string line; std::getline(in, line);) {
        if (line.rfind(key, 0) != 0) continue;
        std::istringstream names(line.substr(key.size()));
        std::string set = "-all";
        for (std::string name; names >> name;) {
            for (char& c : name) c = static_cast<char>(std::tolower(c));
            set += ",+" + name.substr(std::strlen("cap_"));
        }
        return set;
    }
    throw std::runtime_error(unit + ": no " + key);
}

// What systemd does with a .socket unit's ListenSequentialPacket=.
UniqueFd listen_at(const std::string& path) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::strncpy(address.sun_path, path.c_str(), sizeof address.sun_path - 1);
    UniqueFd fd(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
    if (!fd || ::bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0 ||
        ::listen(fd.get(), 128) != 0)
        throw std::runtime_error(path + ": " + std::strerror(errno));
    return fd;
}

class ServiceTest : public ServedTest {
  protected:
    ServiceManager manager() const {
        const std::string set = unit_capabilities();
        return {-1, {"--no-new-privs", "--bounding-set=" + set, "--inh-caps=" + set}};
    }
    uint64_t capabilities_of_worker() const {
        std::ifstream status(fmt::format("/proc/{}/status", daemon_->worker()));
        for (std::string line; std::getline(status, line);)
            if (line.rfind("CapEff:", 0) == 0) return std::stoull(line.substr(7), nullptr, 16);
        throw std::runtime_error("no CapEff");
    }
    static wire::AckMode ack(Client& client, const File& file) {
        return must(client.statx(file.handle)).ack_mode;
    }
    static bool until(Client& client, const File& file, wire::AckMode wanted) {
        for (int i = 0; i < 10'000; ++i) {
            if (ack(client, file) == wanted) return true;
            must(client.ping());
            ::usleep(1000);
        }
        return false;
    }
    static wire::AckMode write(Client& client, const File& file, uint64_t unit, uint64_t serial) {
        const uint64_t at = unit * kUnit;
        return must(client.write(file.handle, ByteOffset(at), stamped(kUnit, 1, serial, at)))
            .ack_mode;
    }
    void expect_unit(uint64_t unit, uint64_t serial) {
        const auto bytes = read_path(path("data"), unit * kUnit, kUnit, O_DIRECT);
        const auto is = whole(bytes, unit * kUnit);
        EXPECT_TRUE(is && is->serial == serial) << unit << ": " << describe(bytes);
    }
    TempDir dir_;
};

TEST_F(ServiceTest, WorksWithTheUnitsCapabilitiesAndSocket) {
    Volume volume;
    mount(volume);
    make_file("data", kUnits * kUnit);
    // Somebody else's, who lets nobody in.
    ASSERT_EQ(::chown(path("data").c_str(), 12345, 12345), 0);
    ASSERT_EQ(::chmod(path("data").c_str(), 0600), 0);
    const std::string socket = dir_.file("activated");
    const UniqueFd listener = listen_at(socket);
    // A client that came first: it is what starts the service.
    auto early = std::async(std::launch::async, [&] { return Client::connect(socket); });
    ServiceManager service = manager();
    service.listener = listener.get();
    daemon_.emplace(image_->dir(), std::vector<std::string>{"--stats", dir_.file("stats.prom")},
                    std::move(service));
    const auto client = must(early.get());
    EXPECT_THAT(daemon_->said(), HasSubstr("on the service manager's socket"));

    // CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_LEASE, CAP_SYS_ADMIN and CAP_SYS_PTRACE; bits of
    // linux/capability.h. The one to chown the socket is gone.
    EXPECT_EQ(capabilities_of_worker(), uint64_t{1} << 1 | uint64_t{1} << 2 | uint64_t{1} << 28 |
                                            uint64_t{1} << 21 | uint64_t{1} << 19);

    const File file = open_through(*client, path("data"));
    ASSERT_TRUE(until(*client, file, wire::AckMode::Exclusive))
        << must(client->statx(file.handle)).why_strict;
    EXPECT_EQ(write(*client, file, 0, 1), wire::AckMode::Exclusive);
    {
        // Another process, which is found out by fanotify and looked up in /proc.
        SharedValue<std::atomic<int>> step;
        Forked other([&] {
            const UniqueFd writer = open_path(path("data"), O_WRONLY);
            *step = 1;
            while (*step != 2) ::usleep(100);
            return 0;
        });
        while (*step != 1) ::usleep(100);
        EXPECT_EQ(write(*client, file, 1, 2), wire::AckMode::Strict);
        *step = 2;
        EXPECT_EQ(other.wait(), 0);
    }
    ASSERT_TRUE(until(*client, file, wire::AckMode::Exclusive));
    EXPECT_EQ(write(*client, file, 2, 3), wire::AckMode::Exclusive);
    must(client->flush(file.handle));
    must(client->freeze());
    must(client->thaw());
    expect_unit(0, 1);
    expect_unit(1, 2);
    expect_unit(2, 3);

    // The next worker has the same socket.
    daemon_->kill_worker();
    daemon_->wait_ready();
    const auto again = must(Client::connect(socket));
    const File reopened = open_through(*again, path("data"));
    write(*again, reopened, 3, 4);
    expect_unit(3, 4);

    stop_and_check();
    EXPECT_EQ(::access(socket.c_str(), F_OK), 0) << "the service manager's socket is its own";
    std::ifstream stats(dir_.file("stats.prom"));
    EXPECT_TRUE(stats.is_open());
}

TEST_F(ServiceTest, MayGiveItsSocketToAGroup) {
    mount(Volume());
    const struct group* group = ::getgrnam("daemon");
    ASSERT_NE(group, nullptr);
    daemon_.emplace(image_->dir(), std::vector<std::string>{"--socket-group", "daemon"}, manager());
    struct stat st{};
    ASSERT_EQ(::stat(daemon_->socket().c_str(), &st), 0);
    EXPECT_EQ(st.st_gid, group->gr_gid);
    EXPECT_EQ(st.st_mode & 0777u, 0660u);
    must(connect()->ping());
    stop_and_check();
}

}  // namespace
}  // namespace atomic4::test
