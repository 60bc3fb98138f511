// The layout of a file's units: proving the invariant, and making a range ready for atomic writes.
//
// The invariant (FORMAT.md): each unit-aligned logical range of one unit is either a hole or wholly
// mapped, in one physically contiguous run that starts at a multiple of the unit, absolute on the
// device; blocks before EOF are written, blocks beyond it unwritten.
#pragma once

#include <vector>

#include "ext4/atomic_file.h"

namespace atomic4 {

enum class UnitFault {
    Misaligned,        // the run starts at no multiple of the unit
    Broken,            // not one contiguous run
    PartMapped,        // part hole
    UnwrittenInFile,   // unwritten before EOF
    WrittenBeyondEof,  // written after it
};
const char* to_text(UnitFault fault);

struct UnitProblem {
    Lblk lblk;  // first block of the unit
    UnitFault fault;
};

struct LayoutReport {
    uint64_t units_mapped = 0;
    uint64_t units_hole = 0;
    uint64_t problems = 0;
    std::vector<UnitProblem> first_problems;  // at most kMaxProblems
    static constexpr size_t kMaxProblems = 100;
};

// All of a file's mapping up to its end or, if there are blocks beyond it (fallocate), to the last
// of those, rounded up to units; holes included.
Result<std::vector<Mapping>> whole_mapping(Volume& volume, const FileState& file, Blocks unit);

// Holds the whole mapping against the invariant.
Result<LayoutReport> check_layout(Volume& volume, const FileState& file, Bytes unit);

// What a byte range of a file is made of, for choosing an engine.
struct RangeShape {
    bool one_written_run = false;  // physically contiguous, all written, before EOF
    ByteOffset device_offset;      // of its first byte, if so
    bool holes = false;
    bool unwritten = false;
    bool beyond_eof = false;
};
// Built up from a range's stretches, in order.
class ShapeBuilder {
  public:
    ShapeBuilder(const FileState& file, ByteOffset offset, Bytes length);
    void add(ByteOffset device_offset, Bytes length, MapState state);
    RangeShape shape() const;

  private:
    RangeShape shape_;
    bool contiguous_ = true;
    Bytes added_;
};
// Read from the extent tree.
Result<RangeShape> range_shape(Volume& volume, const FileState& file, ByteOffset offset,
                               Bytes length);

// Where a byte range lies on the device, in order. Holes and unwritten blocks are EIO: whoever
// places data has made the range ready before.
struct DeviceRun {
    ByteOffset device_offset;
    Bytes length;
    bool written = true;
};
Result<std::vector<DeviceRun>> locate_range(Volume& volume, const FileState& file,
                                            ByteOffset offset, Bytes length);

// Makes [offset, offset + length) ready to be written: holes are allocated aligned to align bytes
// (a power of two ≥ the file's unit) where a whole aligned window is a hole, else to the unit;
// blocks before EOF are zeroed and written, blocks beyond it stay unwritten. Durable when it
// returns; changes nothing if nothing is missing. ENOSPC: nothing changed.
Result<> make_ready(Volume& volume, const FileState& file, ByteOffset offset, Bytes length,
                    Bytes align);

// Zeroes what will come to lie before EOF when the file grows to new_size, except the range that is
// about to be written. Not durable: a flush must follow before finish_growth.
Result<> zero_gap(Volume& volume, const FileState& file, ByteOffset written_from,
                  Bytes written_length, Bytes new_size);
// Then: converts the blocks and sets the size, durably. Data must be on the device and flushed.
// For files without the flag only the written range is converted.
Result<> finish_growth(Volume& volume, const FileState& file, ByteOffset written_from,
                       Bytes written_length, Bytes new_size);
// finish_growth without the commit, for those who must know beforehand whether it will succeed
// (ENOSPC: splitting an extent may take a tree block). An operation is open.
Result<> stage_growth(Volume& volume, const FileState& file, ByteOffset written_from,
                      Bytes written_length, Bytes new_size);

// Sets mtime and ctime to now.
Result<> touch_file(Volume& volume, ext2_ino_t number);

}  // namespace atomic4
