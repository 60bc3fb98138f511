// AtomicWriter: atomic, plain and batched writes to the files of an owned volume.
//
// Order of one logged write, and what each step is for:
//
//   1 make_ready      blocks allocated, zeroed and committed before a record relies on them; a
//                     growth is rehearsed, so that it can't fail for want of space in step 5
//   2 needs-replay    durable before the first record: stock kernels and tools stay out
//   3 append          the record is durable: from here on the write happens, crash or not
//   4 place           from the log's own copy of the bytes; a reader sees the new ones
//   5 grow            (beyond EOF only) flush, then blocks converted and i_size set, durable
//     → acknowledged
//   6 retire          later, many at once: flush, then both log superblocks; only then may the
//                     log space be reused or the range be written natively or plainly
//
// A native write is one RWF_ATOMIC write on the device, after live records of its range retired.
// write() does all of that. Callers that keep many native writes in flight ask plan(), submit the
// write themselves, and say how it ended (finish_native).
//
// A failed log write, placement, flush or native write poisons the writer: later writes are EIO,
// "in doubt", and close() leaves the log and the needs-replay bit for recovery. A native write that
// was refused (is_refusal) changed nothing.
//
// Racing writes do not exist here: threads: one.
#pragma once

#include <list>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <span>

#include "redo/redo_log.h"
#include "writer/open_volume.h"
#include "writer/write_rules.h"

namespace atomic4 {

struct WriteRange {
    ext2_ino_t inode = 0;
    uint32_t generation = 0;
    ByteOffset offset;
    std::span<const std::byte> data;
};

struct WriteOutcome {
    Engine engine = Engine::Logged;
    std::string why_not_native;  // for auto
};

// One of a group: an atomic write, or a batch of ranges, by itself all or nothing.
struct GroupItem {
    std::span<const WriteRange> ranges;
    bool batch = false;  // the rules of write_batch; else those of write, and one range
};
struct GroupOutcome {
    std::vector<Result<>> items;
    struct Record {
        size_t items;  // that it carried
        Bytes length;  // in the log
    };
    std::vector<Record> records;
};

// How one write is to be done.
struct WritePlan {
    Engine engine = Engine::Logged;
    ByteOffset device_offset;    // Native: where
    std::string why_not_native;  // Logged, for auto
};

class AtomicWriter {
  public:
    // Takes a volume opened by open_for_writing. Writes nothing yet.
    static Result<std::unique_ptr<AtomicWriter>> open(OpenVolume opened);

    Volume& volume() { return *opened_.volume; }
    // The file as this writer sees it (cached), for an inode of this generation.
    Result<FileState> file(ext2_ino_t inode, std::optional<uint32_t> generation = std::nullopt);
    Bytes log_unit_max() const { return log_unit_max_; }

    Result<WriteOutcome> write(const WriteRange& range, Engine engine = Engine::Auto);
    // write()'s rules and preparation without the write: the blocks are there and, for a native
    // one, no live record overlaps. Nothing else may touch the range before finish_native.
    Result<WritePlan> plan(const WriteRange& range, Engine engine);
    // The end of a native write: of the call, not of the plan. Returns what to tell the client.
    Result<> finish_native(const WriteRange& range, Result<> written);
    // Logged writes that don't overlap one another, as one record, or more where it gets too long
    // and for those that grow a file. One that is refused, or that there is no space for, fails
    // alone.
    GroupOutcome write_group(std::span<const GroupItem> items);
    // All ranges or none, as one record. Offsets and lengths are multiples of the block size;
    // EINVAL if two ranges overlap, EMSGSIZE if one record can't hold them.
    Result<> write_batch(std::span<const WriteRange> ranges);
    // Neither atomic nor durable before flush() or close(); any offset and length.
    Result<> write_plain(const WriteRange& range);
    // What is stored now; returns how many bytes lie before EOF.
    Result<Bytes> read(ext2_ino_t inode, ByteOffset offset, std::span<std::byte> into);

    // Plain writes become durable; logged ones are already.
    Result<> flush();
    // Flushes placements and frees the log.
    Result<> retire_all();
    // Retires everything, sets the files' times, clears the needs-replay bit. Without it, the next
    // opening replays.
    Result<> close();

    bool poisoned() const { return poisoned_.has_value(); }
    // Also where the volume itself is in doubt; null: neither is.
    const std::string* why_poisoned() const;
    uint64_t live_records() const { return log_ ? log_->live_count() : 0; }
    Bytes log_capacity() const { return opened_.log_contents.superblock.capacity(); }
    Bytes log_used() const { return log_ ? log_->used() : Bytes(0); }
    // Payload bytes of one batch or group.
    Bytes record_payload_max() const { return Bytes(log_capacity().value() / 4); }
    // How often the log was emptied.
    uint64_t retirements() const { return retirements_; }

  private:
    explicit AtomicWriter(OpenVolume opened) : opened_(std::move(opened)) {}

    struct Prepared {
        FileState file;
        Bytes new_size;          // 0: unchanged
        uint32_t operation = 0;  // RangeRef's
    };
    Result<> usable() const;
    Error poison(Error error, std::string_view doing);
    Result<> begin_session();
    Result<> check_single(const WriteRange& range, Engine engine);
    Result<> check_ranges(std::span<const WriteRange> ranges);
    Result<> check_item(const GroupItem& item);
    Result<bool> grows(std::span<const WriteRange> ranges);
    Bytes align_of(const GroupItem& item) const;
    Result<> prepare_blocks(std::span<const WriteRange> ranges, Bytes align);
    Result<std::vector<Prepared>> prepare(std::span<const WriteRange> ranges, Bytes align);
    Result<> write_item(const GroupItem& item);
    void write_record(std::span<const GroupItem> items, std::span<const size_t> members,
                      GroupOutcome& outcome);
    Result<> rehearse_growth(std::span<const WriteRange> ranges,
                             std::span<const Prepared> prepared);
    Result<> write_logged(std::span<const WriteRange> ranges, std::span<const Prepared> prepared);
    Result<> retire_overlapping(const WriteRange& range);
    Result<> place_cached(const FileState& file, ByteOffset offset,
                          std::span<const std::byte> data);
    void forget(ext2_ino_t inode);

    // Mappings of a chunk of a file, so that a write into an extent tree reads no tree block. What
    // is kept is limited by their number: of files in long extents, hundreds of GiB.
    using ChunkKey = std::pair<ext2_ino_t, uint64_t>;  // inode, index
    struct Chunk {
        ChunkKey key;
        std::vector<Mapping> mappings;
    };
    void drop_chunk(std::list<Chunk>::iterator chunk);
    Result<const std::vector<Mapping>*> chunk(const FileState& file, uint64_t index);
    Result<bool> written_throughout(const FileState& file, ByteOffset offset, Bytes length);
    Result<RangeShape> shape(const FileState& file, ByteOffset offset, Bytes length);
    template <class Visit>
    Result<> visit_mappings(const FileState& file, ByteOffset offset, Bytes length, Visit visit);

    OpenVolume opened_;
    std::unique_ptr<RedoLog> log_;  // a session, once there was a logged write
    Bytes log_unit_max_;
    std::optional<Error> poisoned_;
    mutable std::string volume_doubt_;
    std::map<ext2_ino_t, FileState> files_;
    std::list<Chunk> chunks_;  // most recently used first
    std::map<ChunkKey, std::list<Chunk>::iterator> chunk_of_;
    size_t chunk_cost_ = 0;
    std::set<ext2_ino_t> touched_;
    uint64_t retirements_ = 0;
    bool closed_ = false;
};

}  // namespace atomic4
