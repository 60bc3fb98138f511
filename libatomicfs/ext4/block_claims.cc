#include "ext4/block_claims.h"

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <memory>
#include <span>

#include "base/crc32c.h"
#include "ext4/checksums_ignored.h"
#include "ext4/claim_map.h"
#include "ext4/errcode.h"
#include "ext4/extent_map.h"
#include "ext4/file_blocks.h"
#include "ext4/format.h"
#include "ext4/volume.h"

namespace atomic4 {

namespace {

struct FreeScan {
    void operator()(ext2_struct_inode_scan* scan) const { ext2fs_close_inode_scan(scan); }
};
struct FreeTree {
    void operator()(ext2_extent_handle* handle) const { ext2fs_extent_free(handle); }
};

using Kind = BlockClaim::Kind;

// Of an inode without a tree below it, which nearly all are: straight from the inode.
bool add_extents_in_inode(const ext2_inode& inode, std::vector<BlockClaim>& claims) {
    ext3_extent_header header{};
    std::memcpy(&header, inode.i_block, sizeof header);
    constexpr size_t kMost = (sizeof inode.i_block - sizeof header) / sizeof(ext3_extent);
    if (ext2fs_le16_to_cpu(header.eh_magic) != EXT3_EXT_MAGIC || header.eh_depth != 0 ||
        ext2fs_le16_to_cpu(header.eh_entries) > kMost)
        return false;
    const auto* at = reinterpret_cast<const std::byte*>(inode.i_block) + sizeof header;
    for (int i = 0; i < ext2fs_le16_to_cpu(header.eh_entries); ++i, at += sizeof(ext3_extent)) {
        ext3_extent extent{};
        std::memcpy(&extent, at, sizeof extent);
        uint32_t length = ext2fs_le16_to_cpu(extent.ee_len);
        if (length > EXT_INIT_MAX_LEN) length -= uint32_t{EXT_INIT_MAX_LEN};
        const uint64_t start = uint64_t{ext2fs_le16_to_cpu(extent.ee_start_hi)} << 32 |
                               ext2fs_le32_to_cpu(extent.ee_start);
        claims.push_back(
            {Kind::Data, Lblk(ext2fs_le32_to_cpu(extent.ee_block)), {Pblk(start), Blocks(length)}});
    }
    return true;
}

// False: not to its end.
bool add_extent_tree(ext2_filsys fs, ext2_ino_t number, ext2_inode inode,
                     std::vector<BlockClaim>& claims) {
    ext2_extent_handle_t raw = nullptr;
    if (ext2fs_extent_open2(fs, number, &inode, &raw) != 0) return false;
    const std::unique_ptr<ext2_extent_handle, FreeTree> handle(raw);
    // Damaged trees may lead round in a circle.
    uint64_t left = ext2fs_blocks_count(fs->super);
    ext2fs_extent extent{};
    errcode_t code = ext2fs_extent_get(raw, EXT2_EXTENT_ROOT, &extent);
    for (; code == 0 && left > 0; --left) {
        const bool leaf = (extent.e_flags & EXT2_EXTENT_FLAGS_LEAF) != 0;
        if (leaf) {
            claims.push_back(
                {Kind::Data, Lblk(extent.e_lblk), {Pblk(extent.e_pblk), Blocks(extent.e_len)}});
        } else if ((extent.e_flags & EXT2_EXTENT_FLAGS_SECOND_VISIT) == 0) {
            claims.push_back({Kind::Node, Lblk(0), {Pblk(extent.e_pblk), Blocks(1)}});
        }
        code = ext2fs_extent_get(raw, EXT2_EXTENT_NEXT, &extent);
    }
    return code == EXT2_ET_EXTENT_NO_NEXT || code == EXT2_ET_NO_CURRENT_NODE;
}

struct Collected {
    std::vector<BlockClaim>& claims;
    uint64_t left;
};

extern "C" {
static int atomic4_collect_claim(ext2_filsys, blk64_t* block, e2_blkcnt_t number, blk64_t, int,
                                 void* into) {
    auto& it = *static_cast<Collected*>(into);
    if (it.left-- == 0) return BLOCK_ABORT;
    const Pblk at(*block);
    if (number < 0) {
        it.claims.push_back({Kind::Node, Lblk(0), {at, Blocks(1)}});
        return 0;
    }
    const Lblk lblk(static_cast<uint64_t>(number));
    if (!it.claims.empty()) {
        BlockClaim& last = it.claims.back();
        if (last.kind == Kind::Data && last.run.start + last.run.length == at &&
            last.lblk + last.run.length == lblk) {
            last.run.length += Blocks(1);
            return 0;
        }
    }
    it.claims.push_back({Kind::Data, lblk, {at, Blocks(1)}});
    return 0;
}
}

bool add_indirect(ext2_filsys fs, ext2_ino_t number, std::vector<BlockClaim>& claims) {
    Collected collected{claims, ext2fs_blocks_count(fs->super)};
    return ext2fs_block_iterate3(fs, number, BLOCK_FLAG_READ_ONLY, nullptr, atomic4_collect_claim,
                                 &collected) == 0;
}

bool add_mapping(ext2_filsys fs, ext2_ino_t number, ext2_inode inode,
                 std::vector<BlockClaim>& claims) {
    if ((inode.i_flags & EXT4_INLINE_DATA_FL) != 0) return true;
    // Of what is no file by its mode the mapping may be one all the same; the inode of bad blocks
    // has none.
    const bool by_mode = number == EXT2_BAD_INO || ext2fs_inode_has_valid_blocks2(fs, &inode) != 0;
    if (lacks_extents_flag(fs, inode)) inode.i_flags |= EXT4_EXTENTS_FL;
    if ((inode.i_flags & EXT4_EXTENTS_FL) != 0)
        return add_extents_in_inode(inode, claims) || add_extent_tree(fs, number, inode, claims);
    return !by_mode || add_indirect(fs, number, claims);
}

// As e2fsck takes it; and an atomic one that was not deleted, if that can be believed.
bool in_use(ext2_filsys fs, ext2_ino_t number, const ext2_inode& inode, bool checksum_ok) {
    if (inode.i_links_count != 0) return true;
    if ((inode.i_flags & kInodeFlagAtomic) != 0 && inode.i_dtime == 0 &&
        LINUX_S_ISREG(inode.i_mode) && checksum_ok)
        return true;
    return number < EXT2_FIRST_INODE(fs->super) && inode.i_dtime == 0 && inode.i_blocks != 0;
}

// As ext2fs_inode_csum_verify, which takes longer than all the rest of a scan.
bool checksum_is_right(ext2_filsys fs, ext2_ino_t number, std::vector<std::byte>& raw) {
    if (!ext2fs_has_feature_metadata_csum(fs->super)) return true;
    constexpr size_t kLow = offsetof(ext2_inode, osd2.linux2.l_i_checksum_lo);
    constexpr size_t kHigh = offsetof(ext2_inode_large, i_checksum_hi);
    constexpr size_t kHighEnd = kHigh + sizeof(uint16_t) - EXT2_GOOD_OLD_INODE_SIZE;
    const auto take = [&](size_t at) {
        uint16_t value = 0;
        std::memcpy(&value, raw.data() + at, sizeof value);
        std::memset(raw.data() + at, 0, sizeof value);
        return value;
    };
    const auto put = [&](size_t at, uint16_t value) {
        std::memcpy(raw.data() + at, &value, sizeof value);
    };
    uint32_t generation = 0;
    std::memcpy(&generation, raw.data() + offsetof(ext2_inode, i_generation), sizeof generation);
    uint16_t extra = 0;
    if (raw.size() > EXT2_GOOD_OLD_INODE_SIZE)
        std::memcpy(&extra, raw.data() + EXT2_GOOD_OLD_INODE_SIZE, sizeof extra);
    const bool has_high = raw.size() > EXT2_GOOD_OLD_INODE_SIZE && extra >= kHighEnd;
    const uint16_t low = take(kLow);
    const uint16_t high = has_high ? take(kHigh) : uint16_t{0};
    uint32_t sum = crc32c(fs->csum_seed, std::as_bytes(std::span(&number, 1)));
    sum = crc32c(sum, std::as_bytes(std::span(&generation, 1)));
    sum = crc32c(sum, raw);
    put(kLow, low);
    if (has_high) put(kHigh, high);
    return has_high ? sum == (uint32_t{high} << 16 | low) : (sum & 0xffff) == low;
}

// With a right checksum, if only its type is wrong, and a bit of its link count.
bool is_damaged_atomic_file(ext2_filsys fs, ext2_ino_t number, std::vector<std::byte> raw) {
    ext2_inode inode{};
    std::memcpy(&inode, raw.data(), sizeof inode);
    if ((inode.i_flags & kInodeFlagAtomic) == 0 || inode.i_dtime != 0) return false;
    inode.i_mode = static_cast<uint16_t>(LINUX_S_IFREG | (inode.i_mode & 07777));
    const bool gone = inode.i_links_count == 0;
    for (uint32_t links = gone ? 1 : inode.i_links_count; links <= EXT2_LINK_MAX; links *= 2) {
        inode.i_links_count = static_cast<uint16_t>(links);
        std::memcpy(raw.data(), &inode, sizeof inode);
        if (checksum_is_right(fs, number, raw)) return true;
        if (!gone) return false;
    }
    return false;
}

bool is_all_zero(std::span<const std::byte> bytes) {
    return std::ranges::all_of(bytes, [](std::byte byte) { return byte == std::byte{0}; });
}

extern "C" errcode_t atomic4_group_done(ext2_filsys fs, ext2_inode_scan, dgrp_t group,
                                        void* on_group) {
    const bool go_on =
        (*static_cast<const OnGroup*>(on_group))(uint64_t{group} + 1, fs->group_desc_count);
    return go_on ? 0 : ECANCELED;
}

// A name among the attributes that lie in the inode, if there are any.
bool has_unit(std::span<const std::byte> full) {
    const std::string_view whole = kUnitXattr;
    const std::string_view name = whole.substr(whole.find('.') + 1);
    constexpr size_t kBegin = EXT2_GOOD_OLD_INODE_SIZE;
    uint16_t extra = 0;
    uint32_t magic = 0;
    if (full.size() <= kBegin + sizeof extra) return false;
    std::memcpy(&extra, full.data() + kBegin, sizeof extra);
    if (kBegin + extra + sizeof magic > full.size()) return false;
    const auto attributes = full.subspan(kBegin + extra);
    std::memcpy(&magic, attributes.data(), sizeof magic);
    return magic == EXT2_EXT_ATTR_MAGIC &&
           ::memmem(attributes.data(), attributes.size(), name.data(), name.size()) != nullptr;
}

// While this lives, a scan passes over nothing in groups that hide inodes.
class HiddenInodesShown {
  public:
    explicit HiddenInodesShown(ext2_filsys fs) : fs_(fs) {
        for (dgrp_t group = 0; group < fs->group_desc_count; ++group) {
            if (!hides_inodes(fs, group)) continue;
            before_.push_back(
                {group, ext2fs_bg_flags(fs, group), ext2fs_bg_itable_unused(fs, group)});
            ext2fs_bg_flags_clear(fs, group, EXT2_BG_INODE_UNINIT);
            ext2fs_bg_itable_unused_set(fs, group, 0);
        }
    }
    ~HiddenInodesShown() {
        for (const Group& group : before_) {
            ext2fs_bg_flags_set(fs_, group.number, group.flags);
            ext2fs_bg_itable_unused_set(fs_, group.number, group.unused);
        }
    }
    HiddenInodesShown(const HiddenInodesShown&) = delete;
    HiddenInodesShown& operator=(const HiddenInodesShown&) = delete;

  private:
    struct Group {
        dgrp_t number;
        uint16_t flags;
        uint32_t unused;
    };
    ext2_filsys fs_;
    std::vector<Group> before_;
};

// Whether two inodes claim one block. Blocks of xattrs may be several inodes'.
class ClaimedTwice {
  public:
    static Result<ClaimedTwice> make(Volume& volume) {
        ClaimMap all = A4_TRY(ClaimMap::make(volume.fs()));
        return ClaimedTwice(volume, std::move(all), A4_TRY(ClaimMap::make(volume.fs())));
    }

    void add(const std::vector<BlockClaim>& claims) {
        if (any_) return;
        runs_.clear();
        for (const BlockClaim& claim : claims) {
            if (claim.kind != Kind::Xattrs)
                runs_.push_back(claim.run);
            else
                add_xattrs(claim.run);
        }
        // Extents of one file may begin and end within a cluster.
        if (runs_.size() > 1) runs_ = whole_clusters(volume_, std::move(runs_));
        for (const PblkRun& run : runs_) add_run(run);
    }

    // Or lies outside the volume: then it isn't looked for.
    bool any() const { return any_; }

  private:
    ClaimedTwice(Volume& volume, ClaimMap all, ClaimMap xattrs)
        : volume_(volume), all_(std::move(all)), xattrs_(std::move(xattrs)) {}

    void add_run(PblkRun run) { any_ = any_ || all_.has_any_of(run) || !all_.add(run); }
    void add_xattrs(PblkRun run) {
        if (xattrs_.has_any_of(run)) return;
        add_run(run);
        xattrs_.add(run);
    }

    Volume& volume_;
    ClaimMap all_;
    ClaimMap xattrs_;
    std::vector<PblkRun> runs_;
    bool any_ = false;
};

}  // namespace

bool hides_inodes(ext2_filsys fs, dgrp_t group) {
    if (!ext2fs_has_group_desc_csum(fs)) return false;
    const uint32_t unused = ext2fs_bg_flags_test(fs, group, EXT2_BG_INODE_UNINIT) != 0
                                ? fs->super->s_inodes_per_group
                                : ext2fs_bg_itable_unused(fs, group);
    return unused > ext2fs_bg_free_inodes_count(fs, group);
}

Result<> for_each_claiming_inode(Volume& volume, const OnInode& visit, const OnGroup& done) {
    constexpr int kBufferBlocks = 128;
    ext2_filsys fs = volume.fs();
    const HiddenInodesShown shown(fs);
    ext2_inode_scan raw = nullptr;
    A4_CHECK(check_errcode(ext2fs_open_inode_scan(fs, kBufferBlocks, &raw), "inode scan"));
    const std::unique_ptr<ext2_struct_inode_scan, FreeScan> scan(raw);
    OnGroup group_done = done;
    if (done) ext2fs_set_inode_callback(raw, atomic4_group_done, &group_done);
    const ChecksumsIgnored ignored(fs);
    const int size = EXT2_INODE_SIZE(fs->super);
    std::vector<std::byte> full(std::max<size_t>(size, sizeof(ext2_inode)));
    ClaimingInode claiming;
    ext2_inode& inode = claiming.inode;
    for (;;) {
        A4_CHECK(check_errcode(
            ext2fs_get_next_inode_full(raw, &claiming.number,
                                       reinterpret_cast<ext2_inode*>(full.data()), size),
            "inode scan"));
        if (claiming.number == 0) return {};
        std::memcpy(&inode, full.data(), sizeof inode);
        // One that was never used has none.
        claiming.checksum_ok = checksum_is_right(fs, claiming.number, full) || is_all_zero(full);
        claiming.was_atomic_file =
            !claiming.checksum_ok && is_damaged_atomic_file(fs, claiming.number, full);
        claiming.checksum_ok = claiming.checksum_ok || claiming.was_atomic_file;
        const bool used =
            claiming.was_atomic_file || in_use(fs, claiming.number, inode, claiming.checksum_ok);
        claiming.claims.clear();
        claiming.readable = true;
        if (used) {
            claiming.readable = add_mapping(fs, claiming.number, inode, claiming.claims);
            if (const uint64_t block = ext2fs_file_acl_block(fs, &inode); block != 0)
                claiming.claims.push_back({Kind::Xattrs, Lblk(0), {Pblk(block), Blocks(1)}});
        }
        claiming.unit = used && has_unit(full);
        const bool marked = claiming.unit || (used && (inode.i_flags & kInodeFlagAtomic) != 0);
        if (!claiming.claims.empty() || !claiming.readable || !claiming.checksum_ok || marked)
            visit(claiming);
    }
}

// Of inodes that are kept, at most.
constexpr size_t kMarkedMost = 1 << 16;

Result<> InodeClaims::for_each(const OnInode& visit, const OnGroup& done) {
    ClaimedTwice twice = A4_TRY(ClaimedTwice::make(volume_));
    marked_.clear();
    one_look_is_enough_ = false;
    A4_CHECK(for_each_claiming_inode(
        volume_,
        [&](const ClaimingInode& inode) {
            twice.add(inode.claims);
            if (marked_.size() <= kMarkedMost &&
                ((inode.inode.i_flags & kInodeFlagAtomic) != 0 || inode.was_atomic_file ||
                 inode.inode.i_links_count == 0)) {
                marked_.push_back(inode);
                marked_.back().claims = {};
            }
            visit(inode);
        },
        done));
    one_look_is_enough_ = !twice.any() && marked_.size() <= kMarkedMost;
    return {};
}

Result<> InodeClaims::for_each_that_may_share(const OnInode& visit) {
    if (!one_look_is_enough_) return for_each_claiming_inode(volume_, visit);
    for (const ClaimingInode& inode : marked_) visit(inode);
    return {};
}

std::vector<BlockClaim> claims_of(Volume& volume, ext2_ino_t number) {
    const ChecksumsIgnored ignored(volume.fs());
    std::vector<BlockClaim> claims;
    ext2_inode inode{};
    if (ext2fs_read_inode(volume.fs(), number, &inode) != 0) return claims;
    add_mapping(volume.fs(), number, inode, claims);
    if (const uint64_t block = ext2fs_file_acl_block(volume.fs(), &inode); block != 0)
        claims.push_back({Kind::Xattrs, Lblk(0), {Pblk(block), Blocks(1)}});
    return claims;
}

}  // namespace atomic4
