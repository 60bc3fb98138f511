#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>

#include "bench/daemon.h"
#include "bench/peers/peer.h"
#include "client/client.h"

namespace atomic4::bench {
namespace {

// Another process with a file open for writing, until the object goes.
class Holder {
  public:
    explicit Holder(const std::string& path) {
        int ends[2];
        must(pipe2(ends, O_CLOEXEC) == 0, "pipe2");
        const UniqueFd opened(ends[0]);
        UniqueFd say(ends[1]);
        pid_ = fork();
        must(pid_ >= 0, "fork");
        if (pid_ == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            const int fd = ::open(path.c_str(), O_RDWR | O_CLOEXEC);
            if (fd < 0 || ::write(say.get(), "", 1) != 1) _exit(1);
            for (;;) pause();
        }
        say.reset();
        char byte = 0;
        must(read(opened.get(), &byte, 1) == 1, path + ": can't be held open");
    }
    ~Holder() {
        kill(pid_, SIGKILL);
        waitpid(pid_, nullptr, 0);
    }
    Holder(const Holder&) = delete;
    Holder& operator=(const Holder&) = delete;

  private:
    pid_t pid_ = -1;
};

class Atomic4d final : public MountedPeer {
  public:
    explicit Atomic4d(Others others) : others_(others) {}

    std::string name() const override {
        return others_ == Others::None ? "atomic4d, exclusive" : "atomic4d, strict";
    }

    std::optional<std::string> prepare(Site& site) override {
        if (auto reason = why_no_daemon()) return reason;
        file_size_ = site.file_size();
        run_program({our_program("mkfs.atomic4"), "-q", "-F", "-l", std::to_string(site.log_size()),
                     "-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0", site.device()});
        run_program({our_program("atomic4ctl"), "-d", site.device(), "prealloc", "/data", "--size",
                     std::to_string(file_size_), "--unit", "16K"});
        mount_.emplace(site.device(), site.mount_point(), std::vector<std::string>{"-t", "ext4"});
        path_ = site.path("data");
        fill(path_, file_size_);
        daemon_.emplace(site.mount_point());
        if (others_ == Others::HoldFileOpen) holder_.emplace(path_);
        return std::nullopt;
    }

    // Each writer has a connection and a handle of its own.
    Figures run(const Load& load) override {
        std::atomic<uint64_t> strict = 0;
        std::atomic<uint64_t> all = 0;
        Figures figures = run_writers(load, [&](unsigned index) -> WriteOnce {
            struct State {
                std::unique_ptr<Client> client;
                File file;
                Buffer buffer;
                Offsets offsets;
                uint64_t serial;
            };
            auto state = std::make_shared<State>(
                must(Client::connect(daemon_->socket())), File{}, Buffer(load.unit),
                Offsets(index + 1, file_size_, load.unit), uint64_t{index} << 32);
            {
                // The daemon keeps what it needs: our own descriptor would count as an opener.
                const UniqueFd fd = open_file(path_, O_RDWR);
                state->file = must(state->client->open(
                    fd.get(), wire::kOpenRead | wire::kOpenWrite | wire::kOpenAtomic));
            }
            return [&, state] {
                const uint64_t offset = state->offsets.next();
                stamp(state->buffer.bytes(), offset, ++state->serial);
                const auto mode = must(state->client->write(state->file.handle, ByteOffset(offset),
                                                            state->buffer.bytes()))
                                      .ack_mode;
                strict += mode == wire::AckMode::Strict ? 1 : 0;
                ++all;
                return 1;
            };
        });
        verify(path_, file_size_, load.unit, Expect::Whole);
        peak_mib_ = daemon_->peak_mib();
        const double share = static_cast<double>(strict) / static_cast<double>(all);
        if (others_ == Others::None ? share > 0.01 : share < 0.99)
            figures.note = fmt::format("{:.0f}% of the answers were strict", share * 100);
        return figures;
    }

    void finish() override {
        holder_.reset();
        if (daemon_) stop(*daemon_);
        daemon_.reset();
        MountedPeer::finish();
    }
    double peak_mib() const override { return peak_mib_; }

  private:
    Others others_;
    std::optional<test::DaemonProcess> daemon_;
    std::optional<Holder> holder_;
    double peak_mib_ = 0;
};

}  // namespace

std::unique_ptr<Peer> make_atomic4d(Others others) {
    return std::make_unique<Atomic4d>(others);
}

}  // namespace atomic4::bench
