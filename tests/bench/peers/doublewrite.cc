#include <fcntl.h>
#include <unistd.h>

#include "bench/peers/peer.h"
#include "bench/peers/ring.h"

namespace atomic4::bench {
namespace {

constexpr uint64_t kBatchBytes = 2 * kMiB;  // of a writer's part of the doublewrite area
constexpr unsigned kWritersMax = 64;

class Doublewrite final : public MountedPeer {
  public:
    explicit Doublewrite(unsigned pages) : pages_(pages) {}

    std::string name() const override {
        return pages_ == 1 ? "doublewrite, page by page"
                           : fmt::format("doublewrite, batches of {}", pages_);
    }

    std::optional<std::string> prepare(Site& site) override {
        if (auto reason = why_no_io_uring()) return reason;
        make_ext4(site);
        mount_.emplace(site.device(), site.mount_point(), std::vector<std::string>{"-t", "ext4"});
        path_ = site.path("data");
        area_path_ = site.path("doublewrite");
        file_size_ = site.file_size();
        fill(path_, file_size_);
        fill(area_path_, kWritersMax * kBatchBytes);
        return std::nullopt;
    }

    Figures run(const Load& load) override {
        const Figures figures = run_writers(load, [&](unsigned index) -> WriteOnce {
            const auto writer = std::make_shared<Writer>(*this, load, index);
            return [writer] { return writer->write_batch(); };
        });
        verify(path_, file_size_, load.unit, Expect::RightPlace);
        return figures;
    }

  private:
    class Writer {
      public:
        Writer(const Doublewrite& peer, const Load& load, unsigned index)
            : pages_(std::min<uint64_t>(peer.pages_, kBatchBytes / load.unit)),
              unit_(load.unit),
              area_at_(index * kBatchBytes),
              serial_(uint64_t{index} << 32),
              data_(open_file(peer.path_, O_WRONLY | O_DIRECT)),
              area_(open_file(peer.area_path_, O_WRONLY | O_DIRECT)),
              offsets_(index + 1, peer.file_size_, load.unit),
              batch_(pages_ * unit_),
              ring_(static_cast<unsigned>(pages_)) {}

        uint64_t write_batch() {
            const auto page = [&](uint64_t i) { return batch_.bytes().subspan(i * unit_, unit_); };
            std::vector<uint64_t> places(pages_);
            for (uint64_t i = 0; i < pages_; ++i) {
                places[i] = offsets_.next();
                stamp(page(i), places[i], ++serial_);
            }
            const auto bytes = batch_.bytes();
            must(pwrite(area_.get(), bytes.data(), bytes.size(), static_cast<off_t>(area_at_)) ==
                     static_cast<ssize_t>(bytes.size()),
                 "doublewrite area");
            must(fdatasync(area_.get()) == 0, "doublewrite area: fdatasync");
            for (uint64_t i = 0; i < pages_; ++i) ring_.write(data_.get(), page(i), places[i]);
            ring_.submit_and_wait();
            must(fdatasync(data_.get()) == 0, "doublewrite: fdatasync");
            return pages_;
        }

      private:
        uint64_t pages_;
        uint64_t unit_;
        uint64_t area_at_;
        uint64_t serial_;
        UniqueFd data_;
        UniqueFd area_;
        Offsets offsets_;
        Buffer batch_;
        Ring ring_;
    };

    unsigned pages_;
    std::string area_path_;
};

}  // namespace

std::unique_ptr<Peer> make_doublewrite(unsigned pages) {
    return std::make_unique<Doublewrite>(pages);
}

}  // namespace atomic4::bench
