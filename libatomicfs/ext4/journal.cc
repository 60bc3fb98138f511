#include "ext4/journal.h"

#include <cstring>

#include "base/crc32c.h"
#include "ext4/atomic_file.h"
#include "ext4/extent_map.h"

namespace atomic4 {

namespace {

// Big-endian, as all of jbd2 on disk (fs/jbd2, journal_superblock_t).
constexpr size_t kSize = 1024;
constexpr size_t kMagic = 0x00;
constexpr size_t kBlockType = 0x04;
constexpr size_t kBlockSize = 0x0c;
constexpr size_t kMaxLength = 0x10;
constexpr size_t kFirst = 0x14;
constexpr size_t kStart = 0x1c;
constexpr size_t kIncompat = 0x28;
constexpr size_t kRoCompat = 0x2c;
constexpr size_t kUsers = 0x40;
constexpr size_t kChecksumType = 0x50;
constexpr size_t kChecksum = 0xfc;

constexpr uint32_t kJbdMagic = 0xc03b3998;
// What a block of it is.
constexpr uint32_t kDescriptor = 1;
constexpr uint32_t kCommit = 2;
constexpr uint32_t kRevoke = 5;
constexpr uint32_t kVersion1 = 3;
constexpr uint32_t kVersion2 = 4;
constexpr uint32_t kKnownJournalIncompat = 0x3f;
constexpr uint32_t kChecksumsV2 = 0x08;
constexpr uint32_t kChecksumsV3 = 0x10;
constexpr unsigned char kCrc32c = 4;

uint32_t number_at(std::span<const std::byte> bytes, size_t at) {
    uint32_t value = 0;
    std::memcpy(&value, bytes.data() + at, sizeof value);
    return __builtin_bswap32(value);
}

std::optional<std::string> superblock_damage(std::vector<std::byte>& bytes, Bytes block_size,
                                             Blocks length) {
    const uint32_t type = number_at(bytes, kBlockType);
    if (number_at(bytes, kMagic) != kJbdMagic || type == kDescriptor || type == kCommit ||
        type == kRevoke)
        return "its superblock is none";
    if (type != kVersion1 && type != kVersion2) return std::nullopt;  // a newer one: e2fsck says so
    if (number_at(bytes, kBlockSize) != block_size.value())
        return "its superblock says another block size";
    if (number_at(bytes, kMaxLength) > length.value())
        return "it is shorter than its superblock says";
    if (number_at(bytes, kFirst) == 0 || number_at(bytes, kStart) >= number_at(bytes, kMaxLength))
        return "its superblock points beyond it";
    if (type == kVersion1) return std::nullopt;
    const uint32_t incompat = number_at(bytes, kIncompat);
    if ((incompat & ~kKnownJournalIncompat) != 0 || number_at(bytes, kRoCompat) != 0 ||
        number_at(bytes, kUsers) > 1)
        return std::nullopt;
    const uint32_t summed = incompat & (kChecksumsV2 | kChecksumsV3);
    if (summed == 0) return std::nullopt;
    if (summed == (kChecksumsV2 | kChecksumsV3) || bytes[kChecksumType] != std::byte{kCrc32c})
        return "its superblock says impossible checksums";
    const uint32_t says = number_at(bytes, kChecksum);
    std::memset(bytes.data() + kChecksum, 0, sizeof says);
    if (says != crc32c(~uint32_t{0}, bytes)) return "its superblock has a wrong checksum";
    return std::nullopt;
}

}  // namespace

Result<std::optional<std::string>> journal_damage(Volume& volume) {
    ext2_filsys fs = volume.fs();
    std::optional<std::string> damage;
    const ext2_ino_t number = fs->super->s_journal_inum;
    if (!ext2fs_has_feature_journal(fs->super) || number == 0) return damage;
    const auto file = read_file(volume, number);
    if (!file && file.error().code == EIO) return fail(Error(file.error()));
    if (!file) return damage = file.error().message;
    if (!LINUX_S_ISREG(file->inode.i_mode) || file->inode.i_links_count == 0)
        return damage = "its inode is none of a journal";
    const auto mapped = map_range(volume, number, file->inode, Lblk(0), kWholeFile);
    if (!mapped && mapped.error().code == EIO) return fail(Error(mapped.error()));
    if (!mapped) return damage = mapped.error().message;
    if (mapped->empty() || mapped->front().state != MapState::Written)
        return damage = "it has no superblock";
    const uint64_t block = volume.block_size().value();
    std::vector<std::byte> bytes(kSize);
    A4_CHECK(volume.device()
                 .read(ByteOffset(mapped->front().pblk.value() * block), bytes)
                 .context("journal"));
    return superblock_damage(bytes, volume.block_size(), Blocks(file->size.value() / block));
}

}  // namespace atomic4
