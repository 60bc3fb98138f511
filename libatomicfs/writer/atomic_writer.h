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
//
// A failed log write, placement or flush poisons the writer: later writes are EIO, "in doubt", and
// close() leaves the log and the needs-replay bit for recovery.
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

class AtomicWriter {
  public:
    // Takes a volume opened by open_for_writing. Writes nothing yet.
    static Result<std::unique_ptr<AtomicWriter>> open(OpenVolume opened);

    Volume& volume() { return *opened_.volume; }
    // The file as this writer sees it (cached), for an inode of this generation.
    Result<FileState> file(ext2_ino_t inode, std::optional<uint32_t> generation = std::nullopt);
    Bytes log_unit_max() const { return log_unit_max_; }

    Result<WriteOutcome> write(const WriteRange& range, Engine engine = Engine::Auto);
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
    uint64_t live_records() const { return log_ ? log_->live_count() : 0; }

  private:
    explicit AtomicWriter(OpenVolume opened) : opened_(std::move(opened)) {}

    struct Prepared {
        FileState file;
        Bytes new_size;  // 0: unchanged
    };
    Result<> usable() const;
    Error poison(Error error, std::string_view doing);
    Result<> begin_session();
    Result<std::vector<Prepared>> prepare(std::span<const WriteRange> ranges, Bytes align);
    Result<> rehearse_growth(std::span<const WriteRange> ranges,
                             std::span<const Prepared> prepared);
    Result<> write_logged(std::span<const WriteRange> ranges, std::span<const Prepared> prepared);
    Result<> write_native(const WriteRange& range, const RangeShape& shape);
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
    std::map<ext2_ino_t, FileState> files_;
    std::list<Chunk> chunks_;  // most recently used first
    std::map<ChunkKey, std::list<Chunk>::iterator> chunk_of_;
    size_t chunk_cost_ = 0;
    std::set<ext2_ino_t> touched_;
    bool closed_ = false;
};

}  // namespace atomic4
