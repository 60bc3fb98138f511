// What a program can do today with the kernel alone, one writer a thread.

#include <fcntl.h>
#include <linux/fs.h>
#include <sys/uio.h>
#include <unistd.h>

#include "bench/peers/peer.h"
#include "device/raw_statx.h"

#ifndef RWF_ATOMIC
#define RWF_ATOMIC 0x00000040
#endif

namespace atomic4::bench {
namespace {

// How a file is opened and one write of it made durable.
struct Manner {
    int open_flags;
    int write_flags;  // pwritev2's RWF_*
    bool fdatasync;
};

class KernelPeer : public MountedPeer {
  public:
    KernelPeer(std::string name, Manner manner) : name_(std::move(name)), manner_(manner) {}

    std::string name() const override { return name_; }

    std::optional<std::string> prepare(Site& site) override {
        if (auto reason = make_filesystem(site)) return reason;
        path_ = site.path("data");
        file_size_ = site.file_size();
        fill(path_, file_size_);
        return check_file();
    }

    Figures run(const Load& load) override {
        const Figures figures = run_writers(load, [&](unsigned index) -> WriteOnce {
            struct State {
                UniqueFd fd;
                Buffer buffer;
                Offsets offsets;
                uint64_t serial;
            };
            auto state = std::make_shared<State>(
                open_file(path_, O_WRONLY | manner_.open_flags), Buffer(load.unit),
                Offsets(index + 1, file_size_, load.unit), uint64_t{index} << 32);
            return [this, state] {
                const uint64_t offset = state->offsets.next();
                stamp(state->buffer.bytes(), offset, ++state->serial);
                write_durably(state->fd.get(), state->buffer.bytes(), offset);
                return 1;
            };
        });
        verify(path_, file_size_, load.unit,
               manner_.write_flags & RWF_ATOMIC ? Expect::Whole : Expect::RightPlace);
        return figures;
    }

  protected:
    virtual std::optional<std::string> make_filesystem(Site& site) = 0;
    virtual std::optional<std::string> check_file() { return std::nullopt; }

  private:
    void write_durably(int fd, std::span<std::byte> bytes, uint64_t offset) const {
        const iovec vector{bytes.data(), bytes.size()};
        must(pwritev2(fd, &vector, 1, static_cast<off_t>(offset), manner_.write_flags) ==
                 static_cast<ssize_t>(bytes.size()),
             name_);
        if (manner_.fdatasync) must(::fdatasync(fd) == 0, name_ + ": fdatasync");
    }

    std::string name_;
    Manner manner_;
};

class XfsAtomic final : public KernelPeer {
  public:
    XfsAtomic()
        : KernelPeer("XFS RWF_ATOMIC|RWF_DSYNC", {O_DIRECT, RWF_ATOMIC | RWF_DSYNC, false}) {}

    std::optional<std::string> refuses(const Load& load) const override {
        if (load.unit >= unit_min_ && load.unit <= unit_max_) return std::nullopt;
        return fmt::format("its atomic writes have {} to {} bytes", unit_min_, unit_max_);
    }

  protected:
    std::optional<std::string> make_filesystem(Site& site) override {
        if (auto reason = why_no_filesystem("xfs", "mkfs.xfs")) return reason;
        run_program({"mkfs.xfs", "-q", "-f", "-K", site.device()});
        mount_.emplace(site.device(), site.mount_point(), std::vector<std::string>{"-t", "xfs"});
        return std::nullopt;
    }
    std::optional<std::string> check_file() override {
        const UniqueFd fd = open_file(path_, O_RDONLY);
        const auto limits = raw_statx(fd.get());
        if (!limits || !limits->can_atomic)
            return "this kernel's XFS has no atomic writes without hardware (Linux 6.16 has)";
        unit_min_ = limits->atomic_unit_min;
        unit_max_ = limits->atomic_unit_max;
        return std::nullopt;
    }

  private:
    uint64_t unit_min_ = 0;
    uint64_t unit_max_ = 0;
};

class Ext4 final : public KernelPeer {
  public:
    Ext4(std::string name, Manner manner, std::vector<std::string> options)
        : KernelPeer(std::move(name), manner), options_(std::move(options)) {}

  protected:
    std::optional<std::string> make_filesystem(Site& site) override {
        make_ext4(site);
        std::vector<std::string> arguments{"-t", "ext4"};
        arguments.insert(arguments.end(), options_.begin(), options_.end());
        mount_.emplace(site.device(), site.mount_point(), arguments);
        return std::nullopt;
    }

  private:
    std::vector<std::string> options_;
};

class Btrfs final : public KernelPeer {
  public:
    Btrfs() : KernelPeer("btrfs, fdatasync", {O_DIRECT, 0, true}) {}

  protected:
    std::optional<std::string> make_filesystem(Site& site) override {
        if (auto reason = why_no_filesystem("btrfs", "mkfs.btrfs")) return reason;
        run_program({"mkfs.btrfs", "-q", "-f", "-K", site.device()});
        mount_.emplace(site.device(), site.mount_point(), std::vector<std::string>{"-t", "btrfs"});
        return std::nullopt;
    }
};

}  // namespace

std::unique_ptr<Peer> make_xfs_atomic() {
    return std::make_unique<XfsAtomic>();
}

// Buffered: with data=journal the kernel turns direct writes into buffered ones anyway.
std::unique_ptr<Peer> make_ext4_data_journal() {
    return std::make_unique<Ext4>("ext4 data=journal, fdatasync", Manner{0, 0, true},
                                  std::vector<std::string>{"-o", "data=journal"});
}

std::unique_ptr<Peer> make_ext4_plain() {
    return std::make_unique<Ext4>("plain O_DIRECT|O_DSYNC, not atomic",
                                  Manner{O_DIRECT | O_DSYNC, 0, false}, std::vector<std::string>{});
}

std::unique_ptr<Peer> make_btrfs() {
    return std::make_unique<Btrfs>();
}

}  // namespace atomic4::bench
