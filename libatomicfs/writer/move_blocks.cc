#include "writer/move_blocks.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>

#include "ext4/checksums_ignored.h"
#include "ext4/errcode.h"
#include "ext4/extent_map.h"
#include "ext4/indirect_map.h"
#include "ext4/layout_plan.h"
#include "ext4/transaction.h"

namespace atomic4 {

namespace {

struct LblkRange {
    Lblk first;
    Lblk end;
};

class Move {
  public:
    Move(Volume& volume, ext2_ino_t number, Blocks granule)
        : volume_(volume),
          fs_(volume.fs()),
          number_(number),
          granule_(std::max(granule, Blocks(static_cast<uint64_t>(EXT2FS_CLUSTER_RATIO(fs_))))),
          what_(fmt::format("inode {}", number)) {}

    // What has a wrong checksum gets a right one where it goes, as from e2fsck, which couldn't give
    // it one where it stands. What it says has to make sense all the same.
    Result<> run(const std::vector<BlockClaim>& parts) {
        A4_CHECK(check_errcode(ext2fs_read_inode(fs_, number_, &inode_), what_));
        Transaction transaction(volume_);
        const bool mapping = std::ranges::any_of(
            parts, [](const BlockClaim& part) { return part.kind != BlockClaim::Kind::Xattrs; });
        if (mapping) A4_CHECK(move_mapping(parts));
        for (const BlockClaim& part : parts) {
            if (part.kind == BlockClaim::Kind::Xattrs) A4_CHECK(move_xattrs(part.run.start));
        }
        // Its times stay: records of it, if there are any, tell by them whether somebody has
        // written it since.
        A4_CHECK(check_errcode(ext2fs_write_inode(fs_, number_, &inode_), what_));
        return transaction.commit();
    }

  private:
    Result<> move_mapping(const std::vector<BlockClaim>& parts) {
        std::vector<Pblk> nodes;
        if ((inode_.i_flags & EXT4_EXTENTS_FL) != 0) {
            const ChecksumsIgnored ignored(fs_);
            old_ = joined(A4_TRY(map_range(volume_, number_, inode_, Lblk(0), kWholeFile)));
            nodes = A4_TRY(tree_blocks(volume_, number_, inode_));
        } else {
            auto map = read_indirect_map(volume_, number_);
            if (!map && map.error().code == EUCLEAN) return move_pointers(parts);
            if (!map) return fail(std::move(map).error());
            old_ = std::move(map->mappings);
            nodes = std::move(map->nodes);
        }
        A4_CHECK(plan(parts));
        // What it counts may be wrong, too: e2fsck puts that right.
        (void)ext2fs_iblk_sub_blocks(fs_, &inode_, nodes.size());
        std::memset(inode_.i_block, 0, sizeof inode_.i_block);
        inode_.i_flags |= EXT4_EXTENTS_FL;
        return build_tree(volume_, number_, &inode_, new_);
    }

    // Of a map by indirect blocks that makes no sense all through: it gets copies of all its
    // indirect blocks, so that nobody else's is written, and of the data that it has to give up.
    // What it says stays as it is: e2fsck sees to that.
    Result<> move_pointers(const std::vector<BlockClaim>& parts) {
        Pointers pointers{*this, parts, 0, 0, std::nullopt};
        const errcode_t code = ext2fs_block_iterate3(
            fs_, number_, 0, nullptr,
            [](ext2_filsys, blk64_t* block, e2_blkcnt_t lblk, blk64_t, int, void* moved) {
                return static_cast<Pointers*>(moved)->visit(*block, lblk < 0);
            },
            &pointers);
        if (pointers.error) return fail(*pointers.error);
        if (pointers.copied == 0) A4_CHECK(check_errcode(code, what_));  // that is why
        return check_errcode(ext2fs_read_inode(fs_, number_, &inode_), what_);
    }

    struct Pointers {
        static constexpr uint64_t kCopiesMost = 1 << 16;  // they may lead round in a circle
        Move& move;
        const std::vector<BlockClaim>& parts;
        uint64_t seen;
        uint64_t copied;
        std::optional<Error> error;

        int visit(blk64_t& block, bool node) {
            if (++seen > ext2fs_blocks_count(move.fs_->super) || copied == kCopiesMost) {
                error = Error{EUCLEAN, move.what_ + ": its map of blocks can't be read"};
                return BLOCK_ABORT;
            }
            const Pblk at(block);
            const bool moves =
                node || std::ranges::any_of(parts, [&](const BlockClaim& part) {
                    return at >= part.run.start && at < part.run.start + part.run.length;
                });
            if (!moves || block < move.fs_->super->s_first_data_block ||
                block >= ext2fs_blocks_count(move.fs_->super))
                return 0;
            const auto to = move.copy_of(at);
            if (!to) {
                error = to.error();
                return BLOCK_ABORT;
            }
            block = to->value();
            ++copied;
            return BLOCK_CHANGED;
        }
    };

    Result<Pblk> copy_of(Pblk block) {
        const Pblk to = A4_TRY(volume_.allocator().choose_block(block).context(what_));
        if (to.value() > std::numeric_limits<uint32_t>::max())
            return fail(ENOSPC, "{}: no free block that an indirect block can name", what_);
        A4_CHECK(volume_.allocator().take(to));
        A4_CHECK(copy(block, {to, Blocks(1)}, MapState::Written));
        return to;
    }

    std::vector<LblkRange> ranges(const std::vector<BlockClaim>& parts) const {
        std::vector<LblkRange> all;
        for (const BlockClaim& part : parts) {
            if (part.kind != BlockClaim::Kind::Data) continue;
            all.push_back(
                {Lblk(round_down(part.lblk.value(), granule_.value())),
                 Lblk(round_up((part.lblk + part.run.length).value(), granule_.value()))});
        }
        std::ranges::sort(all, {}, &LblkRange::first);
        std::vector<LblkRange> result;
        for (const LblkRange& range : all) {
            if (!result.empty() && range.first <= result.back().end)
                result.back().end = std::max(result.back().end, range.end);
            else
                result.push_back(range);
        }
        return result;
    }

    // The new mapping: what doesn't move, and new blocks for what does; those are filled.
    Result<> plan(const std::vector<BlockClaim>& parts) {
        const std::vector<LblkRange> moving = ranges(parts);
        uint64_t granules = 0;
        for (const LblkRange& range : moving)
            granules += (range.end - range.first).value() / granule_.value();
        std::vector<PblkRun> runs;
        if (granules > 0) {
            runs = A4_TRY(
                volume_.allocator()
                    .allocate_units(std::countr_zero(granule_.value()), granules, old_.front().pblk)
                    .context(what_));
        }
        // Blocks of what moves before this range; an offset within a cluster stays what it is.
        Blocks before(0);
        const auto place = [&](Blocks offset, Blocks most) {
            auto run = runs.begin();
            while (offset >= run->length) offset -= (run++)->length;
            return PblkRun{run->start + offset, std::min(most, run->length - offset)};
        };
        auto range = moving.begin();
        for (const Mapping& mapping : old_) {
            for (Lblk at = mapping.lblk; at < mapping.end();) {
                for (; range != moving.end() && range->end <= at; ++range)
                    before += range->end - range->first;
                const bool moves = range != moving.end() && range->first <= at;
                const Lblk next = range == moving.end() ? mapping.end()
                                  : moves               ? range->end
                                                        : range->first;
                const Blocks n = std::min(next, mapping.end()) - at;
                const Pblk from = mapping.pblk + (at - mapping.lblk);
                if (!moves) {
                    new_.push_back({at, n, from, mapping.state});
                    at += n;
                    continue;
                }
                const PblkRun to = place(before + (at - range->first), n);
                A4_CHECK(copy(from, to, mapping.state));
                new_.push_back({at, to.length, to.start, mapping.state});
                at += to.length;
            }
        }
        new_ = joined(new_);
        return {};
    }

    Result<> copy(Pblk from, PblkRun to, MapState state) {
        constexpr uint64_t kPiece = uint64_t{4} << 20;
        const uint64_t block = fs_->blocksize;
        if (state == MapState::Unwritten) return {};
        for (uint64_t done = 0; done < to.length.value();) {
            const uint64_t n = std::min(to.length.value() - done, kPiece / block);
            buffer_.resize(n * block);
            A4_CHECK(volume_.device().read(ByteOffset((from.value() + done) * block), buffer_));
            A4_CHECK(
                volume_.device().write(ByteOffset((to.start.value() + done) * block), buffer_));
            done += n;
        }
        return {};
    }

    Result<> move_xattrs(Pblk old) {
        buffer_.resize(fs_->blocksize);
        const auto code = [&] {
            const ChecksumsIgnored ignored(fs_);
            return ext2fs_read_ext_attr3(fs_, old.value(), buffer_.data(), number_);
        }();
        A4_CHECK(check_errcode(code, what_));
        const Pblk place = A4_TRY(volume_.allocator().choose_block(old).context(what_));
        A4_CHECK(volume_.allocator().take(place));
        A4_CHECK(check_errcode(ext2fs_write_ext_attr3(fs_, place.value(), buffer_.data(), number_),
                               what_));
        ext2fs_file_acl_block_set(fs_, &inode_, place.value());
        return {};
    }

    Volume& volume_;
    ext2_filsys fs_;
    ext2_ino_t number_;
    Blocks granule_;
    std::string what_;
    ext2_inode inode_{};
    std::vector<Mapping> old_;
    std::vector<Mapping> new_;
    std::vector<std::byte> buffer_;
};

}  // namespace

Result<> move_blocks(Volume& volume, ext2_ino_t number, const std::vector<BlockClaim>& parts,
                     Blocks granule) {
    A4_CHECK(volume.usable());
    volume.preallocations().release_all();
    return Move(volume, number, granule).run(parts);
}

}  // namespace atomic4
