#include <fcntl.h>
#include <unistd.h>

#include "bench/peers/peer.h"
#include "bench/peers/ring.h"

namespace atomic4::bench {
namespace {

constexpr uint64_t kHeader = 4 * kKiB;

class BareLoop final : public MountedPeer {
  public:
    explicit BareLoop(Pipelining pipelining) : pipelining_(pipelining) {}

    std::string name() const override {
        switch (pipelining_) {
            case Pipelining::Lockstep:
                return "bare loop";
            case Pipelining::Overlapped:
                return "bare loop, two groups in flight";
            case Pipelining::Halves:
                return "bare loop, two half groups in flight";
        }
        return {};
    }

    std::optional<std::string> prepare(Site& site) override {
        if (auto reason = why_no_io_uring()) return reason;
        make_ext4(site);
        mount_.emplace(site.device(), site.mount_point(), std::vector<std::string>{"-t", "ext4"});
        path_ = site.path("data");
        log_path_ = site.path("log");
        file_size_ = site.file_size();
        log_size_ = site.log_size();
        fill(path_, file_size_);
        fill(log_path_, log_size_);
        return std::nullopt;
    }

    std::optional<std::string> refuses(const Load& load) const override {
        if (pipelining_ == Pipelining::Halves && load.writers < 2)
            return "one writer makes no two halves";
        if (kHeader + load.writers * load.unit > log_size_) return "the log is too short";
        return std::nullopt;
    }

    // One thread, whatever load.writers is: those are the size of its groups.
    Figures run(const Load& load) override {
        Load alone = load;
        alone.writers = 1;
        const Figures figures = run_writers(alone, [&](unsigned) -> WriteOnce {
            const auto loop = std::make_shared<Loop>(*this, load);
            if (pipelining_ == Pipelining::Lockstep) return [loop] { return loop->lockstep(); };
            return [loop] { return loop->overlapped(); };
        });
        verify(path_, file_size_, load.unit, Expect::RightPlace);
        return figures;
    }

  private:
    // A record as it lies in the log: a header block, then the units.
    struct Group {
        Group(uint64_t units, uint64_t unit) : record(kHeader + units * unit), places(units) {}
        Buffer record;
        std::vector<uint64_t> places;
        bool logged = false;
    };

    class Loop {
      public:
        Loop(const BareLoop& peer, const Load& load)
            : units_(peer.pipelining_ == Pipelining::Halves ? load.writers / 2 : load.writers),
              unit_(load.unit),
              log_size_(peer.log_size_),
              data_(open_file(peer.path_, O_WRONLY | O_DIRECT)),
              log_(open_file(peer.log_path_, O_WRONLY | O_DIRECT | O_DSYNC)),
              offsets_(1, peer.file_size_, unit_),
              ring_(static_cast<unsigned>(units_) + 1),
              groups_{Group(units_, unit_), Group(units_, unit_)} {}

        uint64_t lockstep() {
            Group& group = groups_[0];
            gather(group);
            const auto record = group.record.bytes();
            must(pwrite(log_.get(), record.data(), record.size(), next_log_offset(record.size())) ==
                     static_cast<ssize_t>(record.size()),
                 "log");
            place(group);
            ring_.submit_and_wait();
            return units_;
        }

        // Returns the previous group's writes, which are then in place.
        uint64_t overlapped() {
            Group& next = groups_[turn_];
            turn_ = 1 - turn_;
            Group& previous = groups_[turn_];
            gather(next);
            const auto record = next.record.bytes();
            ring_.write(log_.get(), record, static_cast<uint64_t>(next_log_offset(record.size())));
            if (previous.logged) place(previous);
            ring_.submit_and_wait();
            next.logged = true;
            return previous.logged ? units_ : 0;
        }

      private:
        std::span<std::byte> payload(const Group& group, uint64_t i) const {
            return group.record.bytes().subspan(kHeader + i * unit_, unit_);
        }
        void gather(Group& group) {
            for (uint64_t i = 0; i < units_; ++i) {
                group.places[i] = offsets_.next();
                stamp(payload(group, i), group.places[i], ++serial_);
            }
        }
        void place(const Group& group) {
            for (uint64_t i = 0; i < units_; ++i)
                ring_.write(data_.get(), payload(group, i), group.places[i]);
        }
        off_t next_log_offset(uint64_t length) {
            if (log_at_ + length > log_size_) log_at_ = 0;
            const auto offset = static_cast<off_t>(log_at_);
            log_at_ += length;
            return offset;
        }

        uint64_t units_;
        uint64_t unit_;
        uint64_t log_size_;
        uint64_t log_at_ = 0;
        uint64_t serial_ = 0;
        size_t turn_ = 0;
        UniqueFd data_;
        UniqueFd log_;
        Offsets offsets_;
        Ring ring_;
        std::array<Group, 2> groups_;
    };

    Pipelining pipelining_;
    std::string log_path_;
    uint64_t log_size_ = 0;
};

}  // namespace

std::unique_ptr<Peer> make_bare_loop(Pipelining pipelining) {
    return std::make_unique<BareLoop>(pipelining);
}

}  // namespace atomic4::bench
