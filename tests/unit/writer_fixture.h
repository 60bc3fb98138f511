// What the tests of the atomic writer share: a volume in memory, a writer on it, and ways to end a
// session like a power cut does.
#pragma once

#include <map>
#include <optional>

#include "ext4/format.h"
#include "redo/volume_log.h"
#include "unit/volume_fixture.h"
#include "writer/atomic_writer.h"

namespace atomic4::test {

inline AtomicLimits native_limits(uint64_t min, uint64_t max, uint64_t boundary = 0) {
    AtomicLimits limits;
    limits.unit_min = Bytes(min);
    limits.unit_max = Bytes(max);
    limits.boundary = Bytes(boundary);
    limits.segments_max = 1;
    return limits;
}

inline EnableOptions log_of(uint64_t size) {
    EnableOptions options;
    options.log_size = Bytes(size);
    return options;
}

class WriterTest : public testing::Test {
  protected:
    using Kind = RecordingDevice::Kind;

    void start(Image contents) {
        writer.reset();
        memory = std::make_unique<MemoryDevice>(std::move(contents));
        recorder = std::make_unique<RecordingDevice>(*memory);
    }
    void start_default(const char* block_size = "1024", uint64_t log_size = 256 << 10) {
        start(make_dirty_atomic4(16 << 20, {"-b", block_size}, log_of(log_size)));
    }
    void TearDown() override { writer.reset(); }

    // A writer on the volume as it is; a report if that replayed something.
    std::optional<ReplayReport> open() {
        writer.reset();
        OpenVolume opened = must(open_for_writing(borrowed(*recorder)));
        auto replayed = std::move(opened.replayed);
        writer = must(AtomicWriter::open(std::move(opened)));
        return replayed;
    }
    void close() {
        must(writer->close());
        writer.reset();
    }
    // The process dies: nothing more is written.
    void die() { writer.reset(); }

    ext2_ino_t create(const std::string& path, uint64_t size, uint64_t unit) {
        return must(create_atomic_file(writer->volume(), path, {Bytes(size), Bytes(unit)}));
    }
    // With a generation, as files made by the kernel have it.
    ext2_ino_t create_plain(const std::string& path) {
        return create_plain_file(writer->volume(), path);
    }
    uint32_t generation(ext2_ino_t inode) { return must(writer->file(inode)).generation; }
    uint64_t size_of(ext2_ino_t inode) { return must(writer->file(inode)).size.value(); }

    WriteRange range(ext2_ino_t inode, uint64_t offset, std::span<const std::byte> data) {
        return {inode, generation(inode), ByteOffset(offset), data};
    }
    Result<WriteOutcome> write(ext2_ino_t inode, uint64_t offset, std::span<const std::byte> data,
                               Engine engine = Engine::Auto) {
        return writer->write(range(inode, offset, data), engine);
    }
    Image content(ext2_ino_t inode) {
        Image bytes(size_of(inode));
        EXPECT_EQ(must(writer->read(inode, ByteOffset(0), bytes)).value(), bytes.size());
        return bytes;
    }
    // Changes an inode behind everybody's back, as another system would while we are away.
    void edit_inode(ext2_ino_t number, const std::function<void(ext2_inode&)>& edit) {
        const auto volume = open_volume(*memory, OpenFor::Write, true);
        Transaction transaction(*volume);
        ext2_inode inode{};
        if (ext2fs_read_inode(volume->fs(), number, &inode) != 0)
            throw std::runtime_error("can't read the inode");
        edit(inode);
        if (ext2fs_write_inode(volume->fs(), number, &inode) != 0)
            throw std::runtime_error("can't write the inode");
        must(transaction.commit());
    }
    // Overwrites what is stored in a file's blocks, as if placements had been lost or torn.
    void spoil(ext2_ino_t number, uint64_t offset, uint64_t length, unsigned value = 0xdd) {
        const auto volume = open_volume(*memory, OpenFor::Read, true);
        const FileState file = must(read_file(*volume, number));
        for (const DeviceRun& run :
             must(locate_range(*volume, file, ByteOffset(offset), Bytes(length))))
            must(memory->write(run.device_offset, filled(run.length.value(), value)));
    }
    // Where byte 0 of the log is on the device (the logs here are one run).
    uint64_t log_start() {
        const auto volume = open_volume(*memory, OpenFor::Read, true);
        const FileState log = must(read_file(*volume, volume->attr()->log_inode));
        const auto runs = must(locate_range(*volume, log, ByteOffset(0), log.size));
        if (runs.size() != 1) throw std::runtime_error("the log is in pieces");
        return runs[0].device_offset.value();
    }
    bool needs_replay() const {
        return (super_of(memory->contents()).s_feature_incompat & kFeatureIncompatNeedsReplay) != 0;
    }
    // The journal of one line a call, for a failing test.
    std::vector<Kind> kinds() const {
        std::vector<Kind> all;
        for (const auto& event : recorder->events) all.push_back(event.kind);
        return all;
    }

    std::unique_ptr<MemoryDevice> memory;
    std::unique_ptr<RecordingDevice> recorder;
    std::unique_ptr<AtomicWriter> writer;
};

// The suite of AtomicWriter's own tests, which are in several files.
class Writer : public WriterTest {};

}  // namespace atomic4::test
