// Damage to an atomic4 image: every field of what is on disk, as a place whose bits can be flipped,
// with the checksums over it as they were or made right again, so that the damage gets past them.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "support/image.h"

namespace atomic4::test {

enum class DamageArea {
    Superblock,
    GroupDescriptor,
    Bitmap,
    Inode,
    ExtentNode,
    Directory,
    Xattr,
    LogSuperblock,
    LogRecord,
};
const char* to_text(DamageArea area);
inline constexpr DamageArea kDamageAreas[] = {
    DamageArea::Superblock, DamageArea::GroupDescriptor, DamageArea::Bitmap,
    DamageArea::Inode,      DamageArea::ExtentNode,      DamageArea::Directory,
    DamageArea::Xattr,      DamageArea::LogSuperblock,   DamageArea::LogRecord};

struct ByteRange {
    uint64_t offset;
    uint64_t length;
};

struct DamagePlace {
    std::string name;  // "inode of /db: i_size"
    ByteRange bytes;
    // What a flip and a seal can change: to undo them.
    std::vector<ByteRange> touched;
    // Makes the checksums over the place right again; null: it has none.
    std::function<void(Image&)> seal = nullptr;
};

// A small volume with one of everything, and a live record in its redo log:
//   /db          atomic, in several extents: its tree has a node of its own
//   /deep/…      directories in each other, with a file in the innermost
//   /many        a directory of several blocks
//   /noted       a file with an xattr block
struct DamageBase {
    std::string name;
    Image image;
    uint64_t unit;  // of /db
    std::string deep_directory;
    // Valid as long as this is: they use libext2fs's view of the sound image.
    std::vector<DamagePlace> places(DamageArea area) const;

    struct Sound;
    std::shared_ptr<Sound> sound;
};

// Blocks of 1 or 4 KiB; more: arguments for mke2fs.
DamageBase make_damage_base(const std::string& name, uint64_t block_size,
                            const std::vector<std::string>& more = {});

// A choice of bits of a place: where flipped together they are one mutant.
struct Mutant {
    std::string name;
    const DamagePlace* place;
    std::vector<uint64_t> bits;  // counted from the place's first byte
    bool sealed;
    void apply(Image& image) const;
    void undo(Image& image, const Image& sound) const;
};

// Without `every`, each place once with its checksums right, some also with wrong ones; which bit
// is random by the place's name. With it, every bit (64 of a long place), zeros and ones, both
// ways.
std::vector<Mutant> mutants_of(const std::vector<DamagePlace>& places, bool every);

}  // namespace atomic4::test
