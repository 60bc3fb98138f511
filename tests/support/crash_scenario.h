// A volume on a CrashDevice, written through AtomicWriter, and the judge of what a power cut
// leaves.
//
// Every call of the scenario is a step: it remembers what was issued, and which device events lie
// between its beginning and its acknowledgement. At a cut in event E at most one step is in flight,
// so a recovered volume must show the state before that step or after it, nothing else:
//
//   - acknowledged writes are there, the in-flight one wholly or not at all, a batch as one;
//   - file sizes are the old or the new ones;
//   - what was written plainly since the last flush may be anything, within its own sectors.
//
// The model is what the test issued, never what the library said.
#pragma once

#include <memory>
#include <random>
#include <string>
#include <vector>

#include "support/crash_device.h"
#include "support/image.h"

namespace atomic4::test {

inline constexpr uint64_t kSector = 512;

struct FileModel {
    std::string path;
    ext2_ino_t inode = 0;
    uint32_t generation = 0;
    std::vector<std::byte> bytes;  // up to i_size
    std::vector<bool> unsure;      // by sector: plain writes that no flush followed

    void write(uint64_t offset, std::span<const std::byte> data);
    void mark_unsure(uint64_t offset, uint64_t length);
};

// A piece of a file that is prepared without a writer: blocks of the volume.
struct Piece {
    uint64_t lblk;
    uint64_t length;
    MapState state = MapState::Written;
};
// Makes a regular file without the atomic flag, of these pieces, written ones filled at random.
// Each piece is a run of its own on the device; with bigalloc, each of its clusters that no piece
// before it has begun. Throws.
FileModel make_file(Volume& volume, const std::string& path, uint64_t size,
                    const std::vector<Piece>& pieces, std::mt19937_64& random);

// The file as the volume stores it, in blocks or in its inode. Empty, or what has changed.
std::string same_bytes(Volume& volume, const FileModel& model);

struct ModelRange {
    size_t file;
    uint64_t offset;
    std::vector<std::byte> data;
};

struct ScenarioStep {
    enum class Kind {
        Atomic,  // one write or a batch
        Plain,
        Settle,  // everything plain is certain afterwards: flush, close
        Reopen,  // without close: the writer is dropped, its volume recovered
        Create,  // a new atomic file
    };
    Kind kind;
    std::string what;
    std::vector<ModelRange> ranges{};
    std::vector<FileModel> created{};
    bool metadata = false;  // blocks allocated, converted, or i_size changed
    size_t begin = 0;       // its events are [begin, end)
    size_t end = 0;
};

class Scenario {
  public:
    // The image is an atomic4 volume with these files in it.
    Scenario(Image image, std::vector<FileModel> files);

    CrashDevice& device() { return device_; }
    Volume& volume() { return writer_->volume(); }
    AtomicWriter& writer() { return *writer_; }
    // As they stand now, all steps done.
    const std::vector<FileModel>& files() const { return files_; }
    const std::vector<ScenarioStep>& steps() const { return steps_; }
    uint64_t block_size() const { return block_size_; }

    // Steps. They throw if the library reports an error.
    void write(size_t file, uint64_t offset, std::vector<std::byte> data);
    void batch(std::vector<ModelRange> ranges);
    void plain(size_t file, uint64_t offset, std::vector<std::byte> data);
    void flush();
    void close_and_reopen();
    void drop_and_reopen();
    size_t create(const std::string& path, uint64_t size, uint64_t unit);
    void close();

    // Judging; cuts in ascending order are cheapest.
    struct Expected {
        const ScenarioStep* in_flight = nullptr;  // null: at rest
        std::vector<FileModel> before;
        std::vector<FileModel> after;
    };
    const Expected& expected_at(size_t events_done);

  private:
    void begin(ScenarioStep step);
    void end();
    void open();
    bool changes_metadata(const ModelRange& range);
    static void apply(const ScenarioStep& step, std::vector<FileModel>& files);

    CrashDevice device_;
    std::unique_ptr<AtomicWriter> writer_;
    uint64_t block_size_ = 0;
    std::vector<FileModel> files_;
    std::vector<ScenarioStep> steps_;

    std::vector<FileModel> initial_;
    Expected expected_;
    size_t expected_step_ = ~size_t{0};  // steps applied in expected_.before
};

// What a recovered image says of these files: empty if it is the state before or after.
std::string compare_files(Image& recovered, const Scenario::Expected& expected);

// A whole file's bytes, read through the library. Error: its message.
Result<std::vector<std::byte>> read_whole(AtomicWriter& reader, const FileModel& file);

}  // namespace atomic4::test
