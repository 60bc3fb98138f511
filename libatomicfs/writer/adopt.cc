#include "writer/adopt.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "base/random.h"
#include "ext4/errcode.h"
#include "ext4/file_blocks.h"
#include "ext4/format.h"
#include "ext4/inode_time.h"
#include "ext4/layout_plan.h"
#include "ext4/transaction.h"
#include "ext4/xattr.h"
#include "writer/write_rules.h"

namespace atomic4 {

namespace {

constexpr uint64_t kPiece = uint64_t{4} << 20;       // bytes copied at a time
constexpr const char* kInlineXattr = "system.data";  // the part of inline data beyond i_block
constexpr const char* kHidden = "belongs to the volume itself";

Result<> check_not_hidden(Volume& volume, ext2_ino_t number) {
    const ext2_super_block& super = *volume.fs()->super;
    bool hidden = number != 0 && number < EXT2_FIRST_INODE(&super);
    for (const uint32_t own : {super.s_journal_inum, super.s_usr_quota_inum, super.s_grp_quota_inum,
                               super.s_prj_quota_inum, super.s_orphan_file_inum})
        hidden = hidden || number == own;
    if (hidden && number != EXT2_ROOT_INO) return fail(EPERM, "inode {}: {}", number, kHidden);
    return {};
}

Result<> check_adoptable(Volume& volume, FileState file) {
    A4_CHECK(check_not_hidden(volume, file.number));
    // They will be put right.
    file.inode.i_flags &= ~EXT4_INLINE_DATA_FL;
    if (file.generation == 0) file.generation = 1;
    return check_file(volume, file);
}

// One file's way from its old layout to the new one.
class Adoption {
  public:
    Adoption(Volume& volume, const FileState& file, Bytes unit)
        : volume_(volume),
          fs_(volume.fs()),
          file_(file),
          unit_(unit),
          block_(volume.block_size().value()),
          eof_((file_.size.value() + block_ - 1) / block_),
          // Clusters are allocated whole, so what is smaller can't move alone.
          granule_(std::max(unit.value() / block_,
                            static_cast<uint64_t>(EXT2FS_CLUSTER_RATIO(volume.fs())))) {}

    Result<AdoptReport> run() {
        A4_CHECK(read_old());
        A4_CHECK(check_length());
        if (is_done()) return report(false);
        volume_.preallocations().release_all();
        const bool tree = needs_tree();
        {
            Transaction transaction(volume_);
            A4_CHECK(stage(tree));
            A4_CHECK(fill_new_blocks().context("copying into new blocks"));
            A4_CHECK(transaction.commit());
        }
        A4_CHECK(free_old(tree));
        return report(true);
    }

  private:
    // What is in the inode itself moves to a unit of its own.
    Result<> read_old() {
        if (!is_inline()) {
            old_ = A4_TRY(read_blocks(volume_, file_));
            A4_CHECK(check_end());
            plan_ = plan_layout(old_.mappings, granule_);
            return {};
        }
        // More than the inode's size it can't be; the library doesn't ask how long the memory is.
        inline_.resize(std::max<size_t>(block_, EXT2_INODE_SIZE(fs_->super)));
        size_t length = 0;
        A4_CHECK(check_errcode(
            ext2fs_inline_data_get(fs_, file_.number, &file_.inode, inline_.data(), &length),
            fmt::format("inline data of inode {}", file_.number)));
        if (length > inline_.size() || file_.size.value() > length) {
            return fail(EUCLEAN,
                        "inode {}: {} bytes, of which {} are in the inode: the volume needs "
                        "e2fsck",
                        file_.number, file_.size, length);
        }
        inline_.resize(file_.size.value());
        if (!inline_.empty()) plan_ = {{Lblk(0), granule_, true, Pblk(0)}};
        return {};
    }

    // As e2fsck sees it the size is wrong, not the blocks: they would be lost.
    Result<> check_end() const {
        for (const Mapping& mapping : old_.mappings) {
            if (mapping.state == MapState::Written && mapping.end() > eof_)
                return fail(EUCLEAN,
                            "inode {}: it has written blocks beyond its end at {}: the volume "
                            "needs e2fsck",
                            file_.number, file_.size);
        }
        return {};
    }

    bool is_inline() const { return (file_.inode.i_flags & EXT4_INLINE_DATA_FL) != 0; }

    Result<> check_length() const {
        if (!plan_.empty() && plan_.back().end().value() > kFileBlocksMax)
            return fail(EFBIG, "with units of {} it would need blocks beyond number {}", unit_,
                        kFileBlocksMax);
        return {};
    }

    uint64_t blocks_moved() const {
        uint64_t blocks = 0;
        for (const Stretch& stretch : plan_) {
            if (stretch.moves) blocks += stretch.length.value();
        }
        return blocks;
    }

    // A tree of its own may be all that is missing: for a generation, by which its checksums go.
    bool needs_tree() const {
        if (!file_.extent_mapped() || file_.generation == 0 || blocks_moved() > 0) return true;
        return mapping_of(plan_, eof_) != old_.mappings;
    }

    bool is_done() const { return !needs_tree() && file_.atomic && file_.unit == unit_; }

    AdoptReport report(bool changed) const {
        const uint64_t unit = unit_.value() / block_;
        AdoptReport report;
        report.changed = changed;
        report.inode = file_.number;
        report.size = file_.size;
        report.unit = unit_;
        for (const Stretch& stretch : plan_) report.units_mapped += stretch.length.value() / unit;
        const uint64_t last = plan_.empty() ? 0 : plan_.back().end().value();
        report.units_hole =
            std::max(last, round_up(eof_.value(), unit)) / unit - report.units_mapped;
        report.units_moved = blocks_moved() / unit;
        report.copied = copied_;
        return report;
    }

    // --- Staging: everything but data, and all that can fail for want of space -------------------

    Result<> stage(bool tree) {
        const std::string what = fmt::format("inode {}", file_.number);
        A4_CHECK(allocate());
        ext2_inode inode = file_.inode;
        if (inode.i_generation == 0) {
            inode.i_generation = random_nonzero_u32();
            A4_CHECK(check_errcode(ext2fs_write_inode(fs_, file_.number, &inode), what));
        }
        if (file_.unit != unit_) {
            xattr_block_ = A4_TRY(move_xattr_block(volume_, file_.number));
            A4_CHECK(write_xattr(fs_, file_.number, kUnitXattr, fmt::format("{}", unit_)));
        }
        A4_CHECK(check_errcode(ext2fs_read_inode(fs_, file_.number, &inode), what));
        if (tree) A4_CHECK(stage_tree(inode));
        inode.i_flags |= kInodeFlagAtomic;
        return write_inode_now(fs_, file_.number, inode, kTimeChanged, what);
    }

    Result<> allocate() {
        std::vector<PblkRun> new_runs;
        const uint64_t granules = blocks_moved() / granule_.value();
        if (granules > 0) {
            const Pblk goal =
                old_.mappings.empty()
                    ? Pblk(0)
                    : Pblk(round_down(old_.mappings.front().pblk.value(), granule_.value()));
            new_runs = A4_TRY(volume_.allocator().allocate_units(std::countr_zero(granule_.value()),
                                                                 granules, goal));
        }
        plan_ = placed(plan_, new_runs);
        return {};
    }

    // The new tree, in blocks of its own; the inode's copy changes from the old to the new one.
    Result<> stage_tree(ext2_inode& inode) {
        const auto cluster = static_cast<uint64_t>(EXT2FS_CLUSTER_RATIO(fs_));
        const uint64_t moved = blocks_moved();
        if (is_inline()) {
            A4_CHECK(write_xattr(fs_, file_.number, kInlineXattr, std::nullopt));
            A4_CHECK(check_errcode(ext2fs_read_inode(fs_, file_.number, &inode), kInlineXattr));
            inode.i_flags &= ~EXT4_INLINE_DATA_FL;
        }
        uint64_t old_data = 0;
        for (const PblkRun& run : whole_clusters(volume_, moved_runs()))
            old_data += run.length.value();
        const errcode_t code =
            ext2fs_iblk_sub_blocks(fs_, &inode, old_data / cluster + old_.nodes.size());
        if (code != 0) {
            return fail(EUCLEAN,
                        "inode {}: it has more blocks than it counts: the volume needs e2fsck",
                        file_.number);
        }
        std::memset(inode.i_block, 0, sizeof inode.i_block);
        inode.i_flags |= EXT4_EXTENTS_FL;
        auto built = build_tree(volume_, file_.number, &inode, mapping_of(plan_, eof_));
        if (!built && built.error().code == ENOSPC)
            return fail(ENOSPC, "inode {}: no free blocks for its extent tree", file_.number);
        A4_CHECK(std::move(built));
        return check_errcode(ext2fs_iblk_add_blocks(fs_, &inode, moved / cluster), "block count");
    }

    // --- Data: into blocks that are free on the disk, or unwritten in the file
    // --------------------

    Result<> fill_new_blocks() {
        A4_CHECK(zero_unwritten());
        auto old = old_.mappings.cbegin();
        for (const Stretch& stretch : plan_) {
            if (!stretch.moves) continue;
            const Lblk end = std::min(stretch.end(), eof_);
            for (Lblk at = stretch.lblk; at < end;) {
                const Blocks n = std::min(end - at, Blocks(kPiece / block_));
                A4_CHECK(fill(at, {stretch.pblk + (at - stretch.lblk), n}, old));
                at += n;
            }
        }
        return {};
    }

    // In units that stay.
    Result<> zero_unwritten() {
        auto stretch = plan_.cbegin();
        for (const Mapping& mapping : old_.mappings) {
            if (mapping.state != MapState::Unwritten) continue;
            const Lblk end = std::min(mapping.end(), eof_);
            while (stretch != plan_.cend() && stretch->end() <= mapping.lblk) ++stretch;
            for (auto it = stretch; it != plan_.cend() && it->lblk < end; ++it) {
                if (it->moves) continue;
                const Lblk from = std::max(it->lblk, mapping.lblk);
                const Lblk to = std::min(it->end(), end);
                A4_CHECK(zero({mapping.pblk + (from - mapping.lblk), to - from}));
            }
        }
        return {};
    }

    // What is written of the old blocks from lblk on goes to the run, with zeros between. Both
    // mappings ascend, so old only moves on.
    Result<> fill(Lblk lblk, PblkRun run, std::vector<Mapping>::const_iterator& old) {
        const Lblk end = lblk + run.length;
        while (old != old_.mappings.cend() && old->end() <= lblk) ++old;
        buffer_.assign(run.length.value() * block_, std::byte{0});
        bool any = !inline_.empty();
        std::ranges::copy(inline_, buffer_.begin());
        for (auto it = old; it != old_.mappings.cend() && it->lblk < end; ++it) {
            if (it->state != MapState::Written) continue;
            const Lblk from = std::max(it->lblk, lblk);
            const Lblk to = std::min(it->end(), end);
            const auto part = std::span(buffer_).subspan((from - lblk).value() * block_,
                                                         (to - from).value() * block_);
            const Pblk block = it->pblk + (from - it->lblk);
            A4_CHECK(volume_.device().read(ByteOffset(block.value() * block_), part));
            copied_ += Bytes(part.size());
            any = true;
        }
        if (!any) return zero(run);
        // The kernel counts on zeros between EOF and the end of its block.
        if (const uint64_t within = file_.size.value() % block_; within != 0 && end == eof_)
            std::fill(buffer_.end() - static_cast<std::ptrdiff_t>(block_ - within), buffer_.end(),
                      std::byte{0});
        return volume_.device().write(ByteOffset(run.start.value() * block_), buffer_);
    }

    Result<> zero(PblkRun run) {
        return volume_.device().zero(ByteOffset(run.start.value() * block_),
                                     Bytes(run.length.value() * block_));
    }

    // --- Afterwards
    // -------------------------------------------------------------------------------

    // The blocks that units had which move.
    std::vector<PblkRun> moved_runs() const {
        std::vector<PblkRun> runs;
        auto old = old_.mappings.cbegin();
        for (const Stretch& stretch : plan_) {
            if (!stretch.moves) continue;
            while (old != old_.mappings.cend() && old->end() <= stretch.lblk) ++old;
            for (auto it = old; it != old_.mappings.cend() && it->lblk < stretch.end(); ++it) {
                const Lblk from = std::max(it->lblk, stretch.lblk);
                const Lblk to = std::min(it->end(), stretch.end());
                runs.push_back({it->pblk + (from - it->lblk), to - from});
            }
        }
        return runs;
    }

    // Nothing refers to them any more. What failed here is done already.
    Result<> free_old(bool tree) {
        std::vector<PblkRun> runs = moved_runs();
        if (tree) {
            for (const Pblk node : old_.nodes) runs.push_back({node, Blocks(1)});
        }
        if (xattr_block_) runs.push_back({*xattr_block_, Blocks(1)});
        if (runs.empty()) return {};
        Transaction transaction(volume_);
        const auto free_all = [&]() -> Result<> {
            for (const PblkRun& run : whole_clusters(volume_, std::move(runs)))
                A4_CHECK(volume_.allocator().free(run));
            return transaction.commit(Transaction::Order::Freeing);
        };
        auto done = free_all();
        if (done) return {};
        Error error = std::move(done).error();
        error.message +=
            "; the file is adopted, but whether the blocks that it had before are free is in "
            "doubt: check with e2fsck";
        volume_.poison(error);
        return fail(std::move(error));
    }

    Volume& volume_;
    ext2_filsys fs_;
    FileState file_;
    Bytes unit_;
    uint64_t block_;
    Lblk eof_;
    Blocks granule_;
    FileBlocks old_;
    std::vector<std::byte> inline_;  // all of the file, if it is in the inode
    std::vector<Stretch> plan_;
    std::optional<Pblk> xattr_block_;  // the old one
    std::vector<std::byte> buffer_;
    Bytes copied_;
};

}  // namespace

Result<AdoptReport> adopt_file(Volume& volume, ext2_ino_t number, std::optional<Bytes> unit) {
    A4_CHECK(volume.usable());
    if (unit) A4_CHECK(check_unit(volume, *unit));
    if (volume.needs_replay()) {
        return fail(EBUSY,
                    "the redo log holds records that may belong to the file: "
                    "atomic4ctl recover first");
    }
    if (!volume.attr()) return fail(EINVAL, "not an atomic4 volume: run atomic4ctl enable first");
    const FileState file = A4_TRY(read_file(volume, number));
    A4_CHECK(check_adoptable(volume, file));
    if (!unit) {
        const bool own = file.unit && check_unit(volume, *file.unit).has_value();
        unit = own ? *file.unit : volume.attr()->unit;
    }
    return Adoption(volume, file, *unit).run();
}

Result<bool> release_if_atomic(Volume& volume, ext2_ino_t number) {
    A4_CHECK(volume.usable());
    A4_CHECK(check_not_hidden(volume, number));
    const FileState file = A4_TRY(read_file(volume, number));
    const std::string what = fmt::format("inode {}", number);
    if (LINUX_S_ISDIR(file.inode.i_mode)) return fail(EISDIR, "{}: is a directory", what);
    if (!LINUX_S_ISREG(file.inode.i_mode)) return fail(EINVAL, "{}: not a regular file", what);
    if (volume.attr() && number == volume.attr()->log_inode)
        return fail(EPERM, "{}: this is the redo log", what);
    if (volume.attr() && number == A4_TRY(volume.lock_inode()))
        return fail(EPERM, "{}: this is the volume's lock file", what);
    if (!file.atomic && !file.unit) return false;
    A4_CHECK(release_file(volume, number));
    return true;
}

}  // namespace atomic4
