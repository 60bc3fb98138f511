#include "ext4/layout.h"

#include <algorithm>
#include <bit>

#include "ext4/errcode.h"
#include "ext4/inode_time.h"
#include "ext4/transaction.h"

namespace atomic4 {

namespace {

uint64_t blocks_for(const Volume& volume, Bytes bytes) {
    const uint64_t size = volume.block_size().value();
    return (bytes.value() + size - 1) / size;
}

uint64_t unit_blocks(const Volume& volume, const FileState& file) {
    if (!file.atomic || !file.unit || file.unit->value() < volume.block_size().value()) return 1;
    return file.unit->value() / volume.block_size().value();
}

ByteOffset device_offset(const Volume& volume, Pblk block) {
    return ByteOffset(block.value() * volume.block_size().value());
}

Bytes device_length(const Volume& volume, Blocks blocks) {
    return Bytes(blocks.value() * volume.block_size().value());
}

// One new or converted stretch of a file, decided before anything is changed.
struct Change {
    Lblk lblk;
    PblkRun run;
    MapState state;
    bool zero;
};

// Splits a stretch at EOF: written (and zeroed) before it, unwritten after.
void add_split_at_eof(std::vector<Change>& changes, Lblk lblk, PblkRun run, Lblk eof) {
    const uint64_t before =
        eof > lblk ? std::min<uint64_t>((eof - lblk).value(), run.length.value()) : 0;
    if (before > 0) changes.push_back({lblk, {run.start, Blocks(before)}, MapState::Written, true});
    if (before < run.length.value()) {
        changes.push_back({lblk + Blocks(before),
                           {run.start + Blocks(before), run.length - Blocks(before)},
                           MapState::Unwritten,
                           false});
    }
}

// Stages the changes; an operation is open.
Result<> stage_changes(Volume& volume, const FileState& file, const std::vector<Change>& changes,
                       uint64_t new_blocks, std::optional<Bytes> new_size) {
    ext2_inode inode = file.inode;
    for (const Change& change : changes) {
        auto done = set_mapping(volume, file.number, &inode, change.lblk, change.run, change.state);
        // libext2fs hands on no more than a number.
        const auto& damaged = volume.block_bitmaps().damaged();
        if (!done && done.error().code == EUCLEAN && !damaged.empty())
            return std::move(done).context(damaged.begin()->second.message);
        A4_CHECK(std::move(done));
    }
    // libext2fs counts clusters there.
    if (new_blocks > 0)
        A4_CHECK(check_errcode(
            ext2fs_iblk_add_blocks(volume.fs(), &inode, EXT2FS_NUM_B2C(volume.fs(), new_blocks)),
            "block count"));
    if (new_size) {
        A4_CHECK(check_errcode(ext2fs_inode_size_set(volume.fs(), &inode,
                                                     static_cast<ext2_off64_t>(new_size->value())),
                               "file size"));
    }
    return write_inode_now(volume.fs(), file.number, inode,
                           new_size ? kTimeChanged | kTimeModified : kTimeChanged, "inode");
}

// bigalloc: where a block must lie if other blocks of its logical cluster are mapped. They share a
// physical cluster, in which each has the place that it has in the logical one; it was allocated
// with the first of them (the kernel's "implied cluster allocation"). Nothing: none is mapped.
Result<std::optional<Pblk>> implied_block(Volume& volume, const FileState& file, Lblk lblk) {
    const uint64_t cluster = uint64_t{1} << volume.allocator().cluster_order();
    const Lblk first(round_down(lblk.value(), cluster));
    std::optional<Pblk> start;
    for (const Mapping& mapping :
         A4_TRY(map_range(volume, file.number, file.inode, first, Blocks(cluster)))) {
        if (mapping.state == MapState::Hole) continue;
        const uint64_t within = (mapping.lblk - first).value();
        const uint64_t block = mapping.pblk.value();
        if (block % cluster != within || (start && start->value() + within != block)) {
            return fail(EUCLEAN,
                        "inode {}: block {} does not lie in its cluster as in the file: the volume "
                        "needs e2fsck",
                        file.number, mapping.lblk);
        }
        start = Pblk(block - within);
    }
    if (!start) return std::optional<Pblk>{};
    if (A4_TRY(volume.allocator().is_free(*start))) {
        return fail(EUCLEAN,
                    "inode {}: the cluster at block {} is in use and called free: the "
                    "volume needs e2fsck",
                    file.number, *start);
    }
    return std::optional(*start + (lblk - first));
}

}  // namespace

const char* to_text(UnitFault fault) {
    switch (fault) {
        case UnitFault::Misaligned:
            return "misaligned";
        case UnitFault::Broken:
            return "not contiguous";
        case UnitFault::PartMapped:
            return "part-mapped";
        case UnitFault::UnwrittenInFile:
            return "unwritten before EOF";
        case UnitFault::WrittenBeyondEof:
            return "written beyond EOF";
    }
    return "?";
}

namespace {

// Walks the mappings once; a unit is judged when its last block has been seen.
class UnitWalk {
  public:
    UnitWalk(uint64_t unit, Lblk eof, LayoutReport& report)
        : unit_(unit), eof_(eof), report_(report) {}

    void add(const Mapping& mapping) {
        uint64_t at = mapping.lblk.value();
        const uint64_t end = mapping.end().value();
        while (at < end) {
            // Whole units of one mapping are judged by their first and counted together.
            const uint64_t within = at % unit_;
            if (within == 0 && end - at >= unit_) {
                const uint64_t units = (end - at) / unit_;
                whole_units(mapping, at, units);
                at += units * unit_;
                continue;
            }
            const uint64_t n = std::min(end - at, unit_ - within);
            part(mapping, at, n);
            at += n;
            if (at % unit_ == 0) finish(at - unit_);
        }
    }

  private:
    void problem(uint64_t lblk, UnitFault fault) {
        ++report_.problems;
        if (report_.first_problems.size() < LayoutReport::kMaxProblems)
            report_.first_problems.push_back({Lblk(lblk), fault});
    }

    std::optional<UnitFault> state_fault(MapState state, uint64_t first, uint64_t end) const {
        if (state == MapState::Unwritten && first < eof_.value()) return UnitFault::UnwrittenInFile;
        if (state == MapState::Written && end > eof_.value()) return UnitFault::WrittenBeyondEof;
        return std::nullopt;
    }

    void whole_units(const Mapping& mapping, uint64_t lblk, uint64_t units) {
        if (mapping.state == MapState::Hole) {
            report_.units_hole += units;
            return;
        }
        report_.units_mapped += units;
        const uint64_t pblk = mapping.pblk.value() + (lblk - mapping.lblk.value());
        if (pblk % unit_ != 0) {
            for (uint64_t i = 0; i < units; ++i) problem(lblk + i * unit_, UnitFault::Misaligned);
            return;
        }
        for (uint64_t i = 0; i < units; ++i) {
            const uint64_t first = lblk + i * unit_;
            if (const auto fault = state_fault(mapping.state, first, first + unit_))
                problem(first, *fault);
        }
    }

    void part(const Mapping& mapping, uint64_t lblk, uint64_t n) {
        if (mapping.state == MapState::Hole) {
            hole_ = true;
            return;
        }
        const uint64_t pblk = mapping.pblk.value() + (lblk - mapping.lblk.value());
        if (!mapped_) {
            start_ = pblk - lblk % unit_;
        } else if (pblk - lblk % unit_ != start_) {
            broken_ = true;
        }
        mapped_ = true;
        if (!state_) state_ = state_fault(mapping.state, lblk, lblk + n);
    }

    void finish(uint64_t lblk) {
        if (mapped_) {
            ++report_.units_mapped;
            if (broken_)
                problem(lblk, UnitFault::Broken);
            else if (hole_)
                problem(lblk, UnitFault::PartMapped);
            else if (start_ % unit_ != 0)
                problem(lblk, UnitFault::Misaligned);
            else if (state_)
                problem(lblk, *state_);
        } else {
            ++report_.units_hole;
        }
        mapped_ = hole_ = broken_ = false;
        state_.reset();
    }

    uint64_t unit_;
    Lblk eof_;
    LayoutReport& report_;
    bool mapped_ = false;
    bool hole_ = false;
    bool broken_ = false;
    uint64_t start_ = 0;  // where the unit would start, seen from its first mapped part
    std::optional<UnitFault> state_;
};

}  // namespace

Result<std::vector<Mapping>> whole_mapping(Volume& volume, const FileState& file, Blocks unit) {
    const uint64_t blocks = unit.value();
    const uint64_t eof = blocks_for(volume, file.size);
    auto mappings = A4_TRY(map_range(volume, file.number, file.inode, Lblk(0),
                                     Blocks(round_up(kFileBlocksMax, blocks))));
    // Everything after the last extent is one hole.
    if (!mappings.empty() && mappings.back().state == MapState::Hole) {
        Mapping& last = mappings.back();
        const uint64_t end = std::max(round_up(last.lblk.value(), blocks), round_up(eof, blocks));
        last.length = Lblk(end) - last.lblk;
        if (last.length == Blocks(0)) mappings.pop_back();
    }
    return mappings;
}

Result<LayoutReport> check_layout(Volume& volume, const FileState& file, Bytes unit) {
    LayoutReport report;
    const Blocks blocks(unit.value() / volume.block_size().value());
    UnitWalk walk(blocks.value(), Lblk(blocks_for(volume, file.size)), report);
    for (const Mapping& mapping : A4_TRY(whole_mapping(volume, file, blocks))) walk.add(mapping);
    return report;
}

ShapeBuilder::ShapeBuilder(const FileState& file, ByteOffset offset, Bytes length) {
    shape_.beyond_eof = (offset + length).value() > file.size.value();
}

void ShapeBuilder::add(ByteOffset device_offset, Bytes length, MapState state) {
    shape_.holes = shape_.holes || state == MapState::Hole;
    shape_.unwritten = shape_.unwritten || state == MapState::Unwritten;
    if (added_ == Bytes(0)) shape_.device_offset = device_offset;
    contiguous_ = contiguous_ && shape_.device_offset + added_ == device_offset;
    added_ += length;
}

RangeShape ShapeBuilder::shape() const {
    RangeShape shape = shape_;
    shape.one_written_run =
        contiguous_ && added_ > Bytes(0) && !shape.holes && !shape.unwritten && !shape.beyond_eof;
    if (!shape.one_written_run) shape.device_offset = ByteOffset(0);
    return shape;
}

Result<RangeShape> range_shape(Volume& volume, const FileState& file, ByteOffset offset,
                               Bytes length) {
    const uint64_t block = volume.block_size().value();
    uint64_t skip = offset.value() % block;
    const Lblk first(offset.value() / block);
    const Blocks count((skip + length.value() + block - 1) / block);
    ShapeBuilder builder(file, offset, length);
    for (const Mapping& mapping :
         A4_TRY(map_range(volume, file.number, file.inode, first, count))) {
        builder.add(device_offset(volume, mapping.pblk) + Bytes(skip),
                    device_length(volume, mapping.length) - Bytes(skip), mapping.state);
        skip = 0;
    }
    return builder.shape();
}

Result<std::vector<DeviceRun>> locate_range(Volume& volume, const FileState& file,
                                            ByteOffset offset, Bytes length) {
    const uint64_t block = volume.block_size().value();
    std::vector<DeviceRun> runs;
    if (length.value() == 0) return runs;
    const Lblk first(offset.value() / block);
    const uint64_t skip = offset.value() % block;
    const Blocks count((skip + length.value() + block - 1) / block);
    uint64_t left = length.value();
    for (const Mapping& mapping :
         A4_TRY(map_range(volume, file.number, file.inode, first, count))) {
        if (mapping.state == MapState::Hole)
            return fail(EIO, "inode {}: block {} is a hole where data was expected", file.number,
                        mapping.lblk);
        const uint64_t cut = mapping.lblk == first ? skip : 0;
        const uint64_t n = std::min(left, mapping.length.value() * block - cut);
        runs.push_back({device_offset(volume, mapping.pblk) + Bytes(cut), Bytes(n),
                        mapping.state == MapState::Written});
        left -= n;
    }
    return runs;
}

Result<> make_ready(Volume& volume, const FileState& file, ByteOffset offset, Bytes length,
                    Bytes align) {
    const uint64_t block = volume.block_size().value();
    if (length.value() == 0) return {};
    A4_CHECK(volume.usable());
    // No window around the range may reach beyond it.
    constexpr uint64_t kLargestWindow = 8192;
    if ((offset + length).value() / block > kFileBlocksMax - kFileBlocksMax % kLargestWindow)
        return fail(EFBIG, "offset {}: a file ends before block {}", offset, kFileBlocksMax);
    const Lblk first(offset.value() / block);
    const Lblk end(((offset + length).value() + block - 1) / block);
    const Lblk eof(blocks_for(volume, file.size));
    const uint64_t unit = unit_blocks(volume, file);
    const uint64_t cluster = uint64_t{1} << volume.allocator().cluster_order();
    const uint64_t grain = std::max(unit, cluster);
    const uint64_t window = std::max(grain, align.value() / block);

    const auto mapped = A4_TRY(map_range(volume, file.number, file.inode, first, end - first));
    const bool complete = std::all_of(mapped.begin(), mapped.end(), [&](const Mapping& mapping) {
        return mapping.state == MapState::Written ||
               (mapping.state == MapState::Unwritten && mapping.lblk >= eof);
    });
    if (complete) return {};
    if (!file.extent_mapped()) {
        return fail(EOPNOTSUPP, "inode {}: the range has holes and the file is not extent-mapped",
                    file.number);
    }

    Transaction transaction(volume);
    std::vector<Change> changes;
    uint64_t new_blocks = 0;
    const Pblk goal(ext2fs_find_inode_goal(volume.fs(), file.number,
                                           const_cast<ext2_inode*>(&file.inode), first.value()));
    const auto allocate = [&](Lblk lblk, uint64_t blocks) -> Result<> {
        const PblkRun run = A4_TRY(volume.preallocations().allocate(
            file.number, lblk, std::countr_zero(blocks), file.size, goal));
        add_split_at_eof(changes, lblk, run, eof);
        new_blocks += blocks;
        return {};
    };
    // Holes of a unit that has lost its whole: block by block, or what a cluster has for them.
    const auto fill = [&](Lblk from, Lblk to) -> Result<> {
        for (Lblk at = from; at < to;) {
            const Lblk own(round_down(at.value(), cluster));
            const auto implied =
                cluster == 1 ? std::optional<Pblk>{} : A4_TRY(implied_block(volume, file, at));
            if (!implied) {
                A4_CHECK(allocate(own, cluster));
                at = own + Blocks(cluster);
                continue;
            }
            const Lblk end_here = std::min(to, own + Blocks(cluster));
            add_split_at_eof(changes, at, {*implied, end_here - at}, eof);
            at = end_here;
        }
        return {};
    };
    // The stretch [from, to) as it is on disk: converts what is unwritten before EOF, and fills
    // holes inside the request.
    const auto patch = [&](Lblk from, Lblk to) -> Result<> {
        for (const Mapping& mapping :
             A4_TRY(map_range(volume, file.number, file.inode, from, to - from))) {
            if (mapping.state == MapState::Hole) {
                A4_CHECK(fill(std::max(mapping.lblk, first), std::min(mapping.end(), end)));
            } else if (mapping.state == MapState::Unwritten && mapping.lblk < eof) {
                const Blocks n = std::min(mapping.end(), eof) - mapping.lblk;
                changes.push_back({mapping.lblk, {mapping.pblk, n}, MapState::Written, true});
            }
        }
        return {};
    };
    const auto is_hole = [&](Lblk from, uint64_t blocks) -> Result<bool> {
        const auto there = A4_TRY(map_range(volume, file.number, file.inode, from, Blocks(blocks)));
        return there.size() == 1 && there[0].state == MapState::Hole;
    };
    for (Lblk at(round_down(first.value(), window)); at < end; at += Blocks(window)) {
        if (A4_TRY(is_hole(at, window))) {
            A4_CHECK(allocate(at, window));
            continue;
        }
        const Lblk stop = std::min(at + Blocks(window), Lblk(round_up(end.value(), grain)));
        for (Lblk g = std::max(at, Lblk(round_down(first.value(), grain))); g < stop;
             g += Blocks(grain)) {
            if (A4_TRY(is_hole(g, grain))) {
                A4_CHECK(allocate(g, grain));
                continue;
            }
            // Units of a cluster that is partly in use, or the one unit.
            for (Lblk u = g; u < g + Blocks(grain); u += Blocks(unit)) {
                if (u + Blocks(unit) <= first || u >= end) continue;
                if (grain > unit && A4_TRY(is_hole(u, unit)))
                    A4_CHECK(fill(u, u + Blocks(unit)));
                else
                    A4_CHECK(patch(u, u + Blocks(unit)));
            }
        }
    }
    A4_CHECK(stage_changes(volume, file, changes, new_blocks, std::nullopt));
    // Last of all that comes before the commit: the tree's own blocks may be what there is no room
    // for.
    for (const Change& change : changes) {
        if (change.zero) {
            A4_CHECK(volume.device()
                         .zero(device_offset(volume, change.run.start),
                               device_length(volume, change.run.length))
                         .context("zeroing new blocks"));
        }
    }
    return transaction.commit();
}

Result<> zero_gap(Volume& volume, const FileState& file, ByteOffset written_from,
                  Bytes written_length, Bytes new_size) {
    if (new_size <= file.size) return {};
    const uint64_t block = volume.block_size().value();
    const auto zero = [&](uint64_t from, uint64_t to) -> Result<> {
        if (from >= to) return {};
        const Lblk first(from / block);
        for (const Mapping& mapping :
             A4_TRY(map_range(volume, file.number, file.inode, first,
                              Blocks((to + block - 1) / block - first.value())))) {
            if (mapping.state == MapState::Hole) continue;
            uint64_t begin = std::max(from, mapping.lblk.value() * block);
            uint64_t stop = std::min(to, mapping.end().value() * block);
            if (mapping.state == MapState::Unwritten && !file.atomic) {
                // Blocks that stay unwritten read as zeros anyway; those that the write touches
                // are converted whole.
                begin = std::max(begin, round_down(written_from.value(), block));
                stop = std::min(stop, round_up((written_from + written_length).value(), block));
                if (begin >= stop) continue;
            }
            A4_CHECK(volume.device().zero(
                device_offset(volume, mapping.pblk) + Bytes(begin - mapping.lblk.value() * block),
                Bytes(stop - begin)));
        }
        return {};
    };
    const uint64_t end = round_up(new_size.value(), block);
    A4_CHECK(zero(file.size.value(), std::min(written_from.value(), end)));
    return zero(std::max(file.size.value(), (written_from + written_length).value()), end);
}

Result<> stage_growth(Volume& volume, const FileState& file, ByteOffset written_from,
                      Bytes written_length, Bytes new_size) {
    const uint64_t block = volume.block_size().value();
    const Lblk old_eof(file.size.value() / block);
    const Lblk new_eof(blocks_for(volume, std::max(new_size, file.size)));
    const Lblk from = file.atomic ? old_eof : Lblk(written_from.value() / block);
    const Lblk to =
        file.atomic ? new_eof : Lblk(((written_from + written_length).value() + block - 1) / block);
    std::vector<Change> changes;
    if (from < to) {
        for (const Mapping& mapping :
             A4_TRY(map_range(volume, file.number, file.inode, from, to - from))) {
            if (mapping.state == MapState::Unwritten)
                changes.push_back(
                    {mapping.lblk, {mapping.pblk, mapping.length}, MapState::Written, false});
        }
    }
    return stage_changes(volume, file, changes, 0, std::max(new_size, file.size));
}

Result<> finish_growth(Volume& volume, const FileState& file, ByteOffset written_from,
                       Bytes written_length, Bytes new_size) {
    Transaction transaction(volume);
    A4_CHECK(stage_growth(volume, file, written_from, written_length, new_size));
    return transaction.commit();
}

Result<> touch_file(Volume& volume, ext2_ino_t number) {
    Transaction transaction(volume);
    ext2_inode inode{};
    const std::string what = fmt::format("inode {}", number);
    A4_CHECK(check_errcode(ext2fs_read_inode(volume.fs(), number, &inode), what));
    A4_CHECK(write_inode_now(volume.fs(), number, inode, kTimeChanged | kTimeModified, what));
    return transaction.commit();
}

}  // namespace atomic4
