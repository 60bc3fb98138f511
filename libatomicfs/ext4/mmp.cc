#include "ext4/mmp.h"

#include <cstring>
#include <ctime>
#include <vector>

#include "ext4/errcode.h"
#include "ext4/format.h"

namespace atomic4 {

namespace {

template <size_t N>
std::string text_of(const __u8 (&field)[N]) {
    const auto* text = reinterpret_cast<const char*>(field);
    return {text, strnlen(text, N)};
}

std::string who(ext2_filsys fs) {
    mmp_struct mmp{};
    if (fs->mmp_cmp != nullptr) std::memcpy(&mmp, fs->mmp_cmp, sizeof mmp);
    const auto time = static_cast<time_t>(mmp.mmp_time);
    char when[32] = "?";
    tm parts{};
    if (gmtime_r(&time, &parts) != nullptr)
        std::strftime(when, sizeof when, "%Y-%m-%d %H:%M:%S UTC", &parts);
    return fmt::format("host {}, device {}, last seen {}", text_of(mmp.mmp_nodename),
                       text_of(mmp.mmp_bdevname), when);
}

Error explained(ext2_filsys fs, errcode_t code) {
    switch (code) {
        case EXT2_ET_MMP_FAILED:
            return {EBUSY, fmt::format("its MMP block says that it is in use ({})", who(fs))};
        case EXT2_ET_MMP_FSCK_ON:
        case EXT2_ET_MMP_UNKNOWN_SEQ:
            // tune2fs refuses a volume with live records.
            return {EBUSY,
                    fmt::format("its MMP block says that e2fsck or atomic4 works on it ({}): if "
                                "that crashed, {} takes the mark away",
                                who(fs),
                                (fs->super->s_feature_compat & kFeatureCompatAtomic4) != 0
                                    ? "atomic4ctl recover --clear-mmp"
                                    : "tune2fs -f -E clear_mmp")};
        case EXT2_ET_MMP_OPEN_DIRECT:
            return {
                EOPNOTSUPP,
                "the volume has the feature mmp, and its MMP block can only be read by the name "
                "of a file or device"};
        case EXT2_ET_MMP_BAD_BLOCK:
        case EXT2_ET_MMP_MAGIC_INVALID:
        case EXT2_ET_MMP_CSUM_INVALID:
            return {EUCLEAN, "its MMP block is damaged: the volume needs e2fsck"};
        default:
            return error_from_errcode(code, "MMP block");
    }
}

// What libext2fs has read by name is what the Device holds.
Result<> prove_same(ext2_filsys fs, Device& device) {
    std::vector<std::byte> block(fs->blocksize);
    A4_CHECK(device.read(ByteOffset(fs->super->s_mmp_block * fs->blocksize), block));
    if (std::memcmp(block.data(), fs->mmp_cmp, block.size()) == 0) return {};
    return fail(EOPNOTSUPP,
                "the volume has the feature mmp, and the MMP block read by the name {} is not this "
                "volume's",
                device.name());
}

// Reads the block, by its name, into fs->mmp_cmp.
Result<> read_block(ext2_filsys fs, Device& device) {
    if (const errcode_t code = ext2fs_mmp_read(fs, fs->super->s_mmp_block, nullptr); code != 0)
        return fail(explained(fs, code));
    return prove_same(fs, device);
}

}  // namespace

Result<> clear_mmp_mark(ext2_filsys fs, Device& device) {
    if (!ext2fs_has_feature_mmp(fs->super)) return {};
    A4_CHECK(read_block(fs, device));
    const uint32_t sequence = static_cast<const mmp_struct*>(fs->mmp_cmp)->mmp_seq;
    if (sequence == EXT4_MMP_SEQ_CLEAN) return {};
    if (sequence != EXT4_MMP_SEQ_FSCK) return fail(explained(fs, EXT2_ET_MMP_FAILED));
    if (const errcode_t code = ext2fs_mmp_clear(fs); code != 0) return fail(explained(fs, code));
    return {};
}

Result<MmpClaim> MmpClaim::start(ext2_filsys fs, Device& device, bool writing) {
    if (!ext2fs_has_feature_mmp(fs->super)) return MmpClaim(nullptr);
    MmpClaim claim(fs);  // closes what was opened
    // Until the last step the flag keeps ~MmpClaim from writing.
    A4_CHECK(read_block(fs, device));
    const int writable = fs->flags & EXT2_FLAG_RW;
    if (!writing) fs->flags &= ~EXT2_FLAG_RW;
    const errcode_t code = ext2fs_mmp_start(fs);
    fs->flags |= writable;
    if (code != 0) return fail(explained(fs, code));
    if (writing) fs->flags &= ~EXT2_FLAG_SKIP_MMP;
    return claim;
}

MmpClaim::~MmpClaim() {
    if (fs_ != nullptr) (void)ext2fs_mmp_stop(fs_);
}

Result<> MmpClaim::keep() {
    if (fs_ == nullptr) return {};
    const errcode_t code = ext2fs_mmp_update(fs_);
    if (code == 0) return {};
    // Nothing of it is ours any more.
    fs_->flags |= EXT2_FLAG_SKIP_MMP;
    return fail(EIO, "another host has taken the volume, it is in doubt: {} ({})",
                error_message(code), who(fs_));
}

}  // namespace atomic4
