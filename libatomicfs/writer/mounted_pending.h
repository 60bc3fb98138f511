// What waits in a mounted target's queue or runs: shared by mounted_target.cc and mounted_io.cc.
#pragma once

#include <cstdlib>

#include "writer/mounted_target.h"
#include "writer/shared_file.h"

namespace atomic4 {

struct FreeMemory {
    void operator()(std::byte* memory) const { std::free(memory); }
};
using AlignedMemory = std::unique_ptr<std::byte, FreeMemory>;

inline Error io_error(int result, size_t length, const char* what) {
    if (result < 0) return Error::from_errno(-result, what);
    return Error{EIO, fmt::format("{}: only {} of {} bytes", what, result, length)};
}

inline SharedFile& shared(const FileRef& file) {
    return static_cast<SharedFile&>(*file);
}

// Something that waits in the queue, or runs.
struct MountedTarget::Pending {
    enum class Kind { Logged, Native, Plain, Read };
    Kind kind = Kind::Logged;
    std::unique_ptr<WriteOp> op;  // not of a read
    std::vector<HeldRange> ranges;
    std::vector<Bytes> new_sizes;  // of a logged one, once prepared; 0: unchanged
    bool prepared = false;         // its blocks are there, as far as anybody can tell
    bool retiring = false;         // waits for live records of its range
    bool forced = false;           // native or nothing
    // A read.
    FileRef file;
    std::span<std::byte> into;
    std::function<void(Result<Bytes>)> read_done;
    AlignedMemory bounce;
    Bytes written;  // of a plain one

    RangeOrder::Use use() const {
        return kind == Kind::Read ? RangeOrder::Use::Read : RangeOrder::Use::Write;
    }
    template <class Visit>
    void each_file(Visit visit) const {
        if (kind == Kind::Read) return visit(file);
        for (const WriteOp::Range& range : op->ranges) visit(range.file);
    }
    void fail_with(const Error& error) {
        if (kind == Kind::Read) {
            if (read_done) read_done(fail(Error(error)));
        } else if (op->done) {
            op->done(fail(Error(error)));
        }
    }
};

// A logged write whose blocks are being looked for.
struct MountedTarget::Asking {
    std::unique_ptr<Pending> pending;
    size_t left = 0;  // ranges
    Result<> result;
};

// Is there a hole in this range of a file? Then it is to be allocated.
struct MountedTarget::Question {
    std::shared_ptr<Asking> asking;
    off_t offset = 0;
    off_t length = 0;
    // The answer.
    off_t data_to = 0;  // there is none, up to here
    int error = 0;
};

// The group that the pump is putting together.
struct GroupPlan {
    std::vector<GroupCommit::Item> items;
    size_t parts = 0;
    Bytes payload;
    bool full = false;
};

}  // namespace atomic4
