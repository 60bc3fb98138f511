#include "support/damage.h"

#include <sys/xattr.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <random>

#include "base/crc32c.h"
#include "ext4/extent_map.h"
#include "ext4/format.h"
#include "ext4/path.h"
#include "ext4/transaction.h"
#include "redo/log_record.h"
#include "redo/log_superblock.h"
#include "support/bytes.h"
#include "support/command.h"
#include "support/damage_fields.h"
#include "support/results.h"

namespace atomic4::test {

namespace {

template <class T>
T* at(Image& image, uint64_t offset) {
    return reinterpret_cast<T*>(image.data() + offset);
}
template <class T>
T get(const Image& image, uint64_t offset) {
    T value;
    std::memcpy(&value, image.data() + offset, sizeof value);
    return value;
}

constexpr uint64_t kDbUnits = 8;

// As the kernel gives one to every file; mke2fs doesn't.
void give_generation(Volume& volume, const std::string& path) {
    Transaction transaction(volume);
    const ext2_ino_t number = must(lookup(volume, path));
    FileState file = must(read_file(volume, number));
    file.inode.i_generation = 7;
    if (ext2fs_write_inode(volume.fs(), number, &file.inode) != 0)
        throw std::runtime_error("can't write an inode");
    must(transaction.commit());
}

void make_tree(const std::filesystem::path& root, const std::string& deep) {
    std::filesystem::create_directories(root.string() + deep);
    std::ofstream(root.string() + deep + "/file") << std::string(5000, 'd');
    std::filesystem::create_directory(root / "many");
    for (int i = 0; i < 60; ++i)
        std::ofstream(root / "many" / (std::to_string(i) + std::string(120, 'n'))) << i;
    std::ofstream(root / "noted") << "n";
    // Best effort: a file system without user xattrs makes an image with one xattr block less.
    const std::string note(300, 'x');
    (void)::setxattr((root / "noted").c_str(), "user.note", note.data(), note.size(), 0);
}

}  // namespace

const char* to_text(DamageArea area) {
    switch (area) {
        case DamageArea::Superblock:
            return "Superblock";
        case DamageArea::GroupDescriptor:
            return "GroupDescriptor";
        case DamageArea::Bitmap:
            return "Bitmap";
        case DamageArea::Inode:
            return "Inode";
        case DamageArea::ExtentNode:
            return "ExtentNode";
        case DamageArea::Directory:
            return "Directory";
        case DamageArea::Xattr:
            return "Xattr";
        case DamageArea::LogSuperblock:
            return "LogSuperblock";
        case DamageArea::LogRecord:
            return "LogRecord";
    }
    return "?";
}

// The image as it is, open: libext2fs knows where everything is, and how to seal it.
struct DamageBase::Sound {
    explicit Sound(const Image& image) : memory(image) {
        VolumeOptions options;
        options.recovering = true;
        volume = must(Volume::open(borrowed(memory), options));
        fs = volume->fs();
    }

    ByteRange block(uint64_t number) const { return {number * fs->blocksize, fs->blocksize}; }
    ByteRange descriptor(uint32_t group) const {
        const uint64_t size = EXT2_DESC_SIZE(fs->super);
        return {(fs->super->s_first_data_block + 1) * uint64_t{fs->blocksize} + group * size, size};
    }
    ByteRange inode(ext2_ino_t number) const {
        const uint32_t group = (number - 1) / fs->super->s_inodes_per_group;
        const uint64_t index = (number - 1) % fs->super->s_inodes_per_group;
        const uint64_t size = EXT2_INODE_SIZE(fs->super);
        return {ext2fs_inode_table_loc(fs, group) * fs->blocksize + index * size, size};
    }

    // Runs work on the descriptor as the image has it, puts the result into the image, and the
    // sound one back.
    template <class Work>
    void with_descriptor(Image& image, uint32_t group, Work work) const {
        const ByteRange range = descriptor(group);
        auto* const own =
            reinterpret_cast<std::byte*>(ext2fs_group_desc(fs, fs->group_desc, group));
        const std::vector<std::byte> sound(own, own + range.length);
        std::memcpy(own, image.data() + range.offset, range.length);
        work();
        ext2fs_group_desc_csum_set(fs, group);
        std::memcpy(image.data() + range.offset, own, range.length);
        std::memcpy(own, sound.data(), sound.size());
    }

    std::vector<DamagePlace> superblock() const;
    std::vector<DamagePlace> descriptors() const;
    std::vector<DamagePlace> bitmaps() const;
    std::vector<DamagePlace> inodes() const;
    std::vector<DamagePlace> nodes() const;
    std::vector<DamagePlace> directories() const;
    std::vector<DamagePlace> xattrs() const;
    std::vector<DamagePlace> log_superblocks() const;
    std::vector<DamagePlace> log_records() const;

    std::function<void(Image&)> inode_seal(ext2_ino_t number) const {
        return [this, number, where = inode(number)](Image& image) {
            (void)ext2fs_inode_csum_set(fs, number, at<ext2_inode_large>(image, where.offset));
        };
    }
    ext2_inode read(ext2_ino_t number) const {
        ext2_inode inode{};
        if (ext2fs_read_inode(fs, number, &inode) != 0) throw std::runtime_error("inode");
        return inode;
    }
    uint64_t log_start() const {
        const ext2_ino_t log = volume->attr()->log_inode;
        const auto map = must(map_range(*volume, log, read(log), Lblk(0), Blocks(1)));
        return map.front().pblk.value() * fs->blocksize;
    }

    MemoryDevice memory;
    std::unique_ptr<Volume> volume;
    ext2_filsys fs = nullptr;
    std::map<std::string, ext2_ino_t> named;
};

namespace {

template <size_t N>
void add_fields(std::vector<DamagePlace>& places, const std::string& what, uint64_t offset,
                const Field (&fields)[N], const std::vector<ByteRange>& touched,
                const std::function<void(Image&)>& seal) {
    for (const Field& field : fields) {
        places.push_back(
            {what + ": " + field.name, {offset + field.offset, field.size}, touched, seal});
    }
}

// A structure may end before the last of its fields that are known.
void move_those_within(const ByteRange& range, std::vector<DamagePlace>& all,
                       std::vector<DamagePlace>& places) {
    for (DamagePlace& place : all) {
        if (place.bytes.offset + place.bytes.length <= range.offset + range.length)
            places.push_back(std::move(place));
    }
}

}  // namespace

std::vector<DamagePlace> DamageBase::Sound::superblock() const {
    std::vector<DamagePlace> places;
    const auto add = [&](const std::string& what, uint64_t offset) {
        const auto seal = [offset](Image& image) {
            auto* super = at<ext2_super_block>(image, offset);
            if (ext2fs_has_feature_metadata_csum(super))
                super->s_checksum = crc32c(~0u, std::span(image).subspan(offset, 0x3fc));
        };
        add_fields(places, what, offset, kSuperFields, {{offset, sizeof(ext2_super_block)}}, seal);
    };
    add("superblock", 1024);
    for (dgrp_t group = 1; group < fs->group_desc_count; ++group) {
        if (ext2fs_bg_has_super(fs, group) == 0) continue;
        add("superblock copy", ext2fs_group_first_block2(fs, group) * fs->blocksize);
        break;
    }
    return places;
}

std::vector<DamagePlace> DamageBase::Sound::descriptors() const {
    std::vector<DamagePlace> places;
    for (const uint32_t group : {0u, fs->group_desc_count - 1}) {
        const ByteRange range = descriptor(group);
        const auto seal = [this, group](Image& image) { with_descriptor(image, group, [] {}); };
        std::vector<DamagePlace> all;
        add_fields(all, "descriptor of group " + std::to_string(group), range.offset,
                   kDescriptorFields, {range}, seal);
        move_those_within(range, all, places);
    }
    return places;
}

std::vector<DamagePlace> DamageBase::Sound::bitmaps() const {
    std::vector<DamagePlace> places;
    for (const uint32_t group : {0u, fs->group_desc_count - 1}) {
        for (const bool inodes : {false, true}) {
            const uint64_t number =
                inodes ? ext2fs_inode_bitmap_loc(fs, group) : ext2fs_block_bitmap_loc(fs, group);
            const ByteRange range = block(number);
            const uint32_t bits = inodes
                                      ? fs->super->s_inodes_per_group
                                      : static_cast<uint32_t>(ext2fs_group_blocks_count(fs, group));
            // The count follows, so that the bitmap contradicts nothing but what it describes.
            const auto seal = [=, this](Image& image) {
                auto* raw = at<char>(image, range.offset);
                const std::span<const std::byte> was =
                    std::span(memory.contents()).subspan(range.offset, bits / 8);
                const std::span<const std::byte> now =
                    std::span(image).subspan(range.offset, bits / 8);
                int freed = 0;
                for (size_t i = 0; i < was.size(); ++i) {
                    freed += std::popcount(std::to_integer<uint8_t>(was[i])) -
                             std::popcount(std::to_integer<uint8_t>(now[i]));
                }
                const auto delta = static_cast<uint32_t>(freed);
                with_descriptor(image, group, [&] {
                    if (inodes) {
                        (void)ext2fs_inode_bitmap_csum_set(
                            fs, group, raw, static_cast<int>(fs->super->s_inodes_per_group / 8));
                        ext2fs_bg_free_inodes_count_set(
                            fs, group, ext2fs_bg_free_inodes_count(fs, group) + delta);
                    } else {
                        (void)ext2fs_block_bitmap_csum_set(
                            fs, group, raw, static_cast<int>(fs->super->s_clusters_per_group / 8));
                        ext2fs_bg_free_blocks_count_set(
                            fs, group, ext2fs_bg_free_blocks_count(fs, group) + delta);
                    }
                });
            };
            const std::string what = std::string(inodes ? "inode" : "block") + " bitmap of group " +
                                     std::to_string(group);
            const std::vector<ByteRange> touched{range, descriptor(group)};
            const std::pair<const char*, ByteRange> parts[] = {
                {"begin", {0, 4}},
                {"middle", {bits / 16, 8}},
                {"end", {bits / 8 - 4, 4}},
                {"padding", {fs->blocksize - 8ull, 8}},
            };
            for (const auto& [name, part] : parts) {
                places.push_back(
                    {what + ": " + name, {range.offset + part.offset, part.length}, touched, seal});
            }
        }
    }
    return places;
}

std::vector<DamagePlace> DamageBase::Sound::inodes() const {
    std::vector<DamagePlace> places;
    for (const auto& [name, number] : named) {
        const ByteRange range = inode(number);
        const std::string what = "inode of " + name;
        const auto seal = inode_seal(number);
        std::vector<DamagePlace> all;
        add_fields(all, what, range.offset, kInodeFields, {range}, seal);
        for (size_t i = 0; i < EXT2_N_BLOCKS; ++i) {
            all.push_back({what + ": i_block " + std::to_string(i),
                           {range.offset + offsetof(ext2_inode, i_block) + 4 * i, 4},
                           {range},
                           seal});
        }
        move_those_within(range, all, places);
    }
    return places;
}

std::vector<DamagePlace> DamageBase::Sound::nodes() const {
    std::vector<DamagePlace> places;
    const ext2_ino_t db = named.at("/db");
    const ByteRange own = inode(db);
    add_fields(places, "extent tree of /db: index", own.offset + offsetof(ext2_inode, i_block) + 12,
               kIndexFields, {own}, inode_seal(db));
    for (const Pblk node : must(tree_blocks(*volume, db, read(db)))) {
        const ByteRange range = block(node.value());
        const auto seal = [=, this](Image& image) {
            auto* header = at<ext3_extent_header>(image, range.offset);
            // libext2fs would look for the checksum beyond the block.
            if (sizeof *header + header->eh_max * sizeof(ext3_extent) + 4 > range.length) return;
            (void)ext2fs_extent_block_csum_set(fs, db, header);
        };
        const auto header = get<ext3_extent_header>(memory.contents(), range.offset);
        const std::string what = "extent tree of /db: node";
        add_fields(places, what, range.offset, kNodeHeaderFields, {range}, seal);
        for (const uint64_t entry : {0, 1, int{header.eh_entries} - 1}) {
            add_fields(places, what + " entry " + std::to_string(entry),
                       range.offset + sizeof header + entry * sizeof(ext3_extent), kExtentFields,
                       {range}, seal);
        }
        places.push_back({what + ": checksum",
                          {range.offset + sizeof header + header.eh_max * sizeof(ext3_extent), 4},
                          {range},
                          seal});
    }
    return places;
}

std::vector<DamagePlace> DamageBase::Sound::directories() const {
    std::vector<DamagePlace> places;
    for (const auto& [name, number] : named) {
        const ext2_inode inode = read(number);
        if (!LINUX_S_ISDIR(inode.i_mode)) continue;
        const auto map = must(map_range(*volume, number, inode, Lblk(0), Blocks(1)));
        const ByteRange range = block(map.front().pblk.value());
        const auto seal = [this, range, number = number](Image& image) {
            (void)ext2fs_dir_block_csum_set(fs, number, at<ext2_dir_entry>(image, range.offset));
        };
        uint64_t offset = 0;
        for (int entry = 0; entry < 5 && offset + 12 <= range.length; ++entry) {
            add_fields(places, "directory " + name + ", entry " + std::to_string(entry),
                       range.offset + offset, kEntryFields, {range}, seal);
            offset += get<uint16_t>(memory.contents(), range.offset + offset + 4);
        }
        places.push_back({"directory " + name + ": tail",
                          {range.offset + range.length - 12, 12},
                          {range},
                          seal});
    }
    return places;
}

std::vector<DamagePlace> DamageBase::Sound::xattrs() const {
    std::vector<DamagePlace> places;
    const Image& image = memory.contents();
    // The entries from here on, and the last of their values, which lie at the end.
    const auto add_entries = [&](const std::string& what, uint64_t offset, ByteRange range,
                                 const std::function<void(Image&)>& seal) {
        for (int i = 0; offset + 20 < range.offset + range.length; ++i) {
            const auto entry = get<ext2_ext_attr_entry>(image, offset);
            if (get<uint32_t>(image, offset) == 0) break;
            const std::string name = what + " entry " + std::to_string(i);
            add_fields(places, name, offset, kXattrEntryFields, {range}, seal);
            places.push_back(
                {name + ": name", {offset + sizeof entry, entry.e_name_len}, {range}, seal});
            offset += EXT2_EXT_ATTR_LEN(entry.e_name_len);
        }
        places.push_back(
            {what + ": values", {range.offset + range.length - 24, 24}, {range}, seal});
    };
    for (const auto& [name, number] : named) {
        const ByteRange own = inode(number);
        if (own.length > EXT2_GOOD_OLD_INODE_SIZE) {
            const uint64_t start = own.offset + EXT2_GOOD_OLD_INODE_SIZE +
                                   get<uint16_t>(image, own.offset + EXT2_GOOD_OLD_INODE_SIZE);
            if (get<uint32_t>(image, start) == EXT2_EXT_ATTR_MAGIC) {
                places.push_back({"xattrs in inode of " + name + ": h_magic",
                                  {start, 4},
                                  {own},
                                  inode_seal(number)});
                add_entries("xattrs in inode of " + name, start + 4, own, inode_seal(number));
            }
        }
        ext2_inode inode = read(number);
        const uint64_t acl = ext2fs_file_acl_block(fs, &inode);
        if (acl == 0) continue;
        const ByteRange range = block(acl);
        const auto seal = [this, range, acl, number = number](Image& to) {
            (void)ext2fs_ext_attr_block_csum_set(fs, number, acl,
                                                 at<ext2_ext_attr_header>(to, range.offset));
        };
        const std::string what = "xattr block of " + name;
        add_fields(places, what, range.offset, kXattrHeaderFields, {range}, seal);
        add_entries(what, range.offset + sizeof(ext2_ext_attr_header), range, seal);
    }
    return places;
}

std::vector<DamagePlace> DamageBase::Sound::log_superblocks() const {
    std::vector<DamagePlace> places;
    for (size_t slot = 0; slot < kSuperblockSlots; ++slot) {
        const uint64_t offset = log_start() + kSuperblockPosition[slot].value();
        const auto seal = [offset](Image& image) {
            auto* super = at<LogSuperblock>(image, offset);
            super->checksum = 0;
            super->checksum = crc32c(~0u, std::span(image).subspan(offset, kLogBlock));
        };
        add_fields(places, "log superblock " + std::to_string(slot), offset, kLogSuperFields,
                   {{offset, kLogBlock}}, seal);
    }
    return places;
}

std::vector<DamagePlace> DamageBase::Sound::log_records() const {
    std::vector<DamagePlace> places;
    uint64_t position = kFirstRecord.value();
    uint64_t epoch = 0;
    for (int i = 0;; ++i) {
        const uint64_t offset = log_start() + position;
        const auto header = get<RecordHeader>(memory.contents(), offset);
        // Behind the live ones stand those of the session before.
        if (i == 0) epoch = header.epoch;
        if (header.magic != kRecordMagic || header.epoch != epoch) break;
        const ByteRange range{offset, header.total_length};
        // As a forger who knows the epoch: the seed follows what the header says.
        const auto seal = [=](Image& image) {
            auto* now = at<RecordHeader>(image, offset);
            const uint32_t seed = record_seed(now->epoch, now->sequence, ByteOffset(position));
            const uint64_t head = header.header_length;
            now->payload_crc =
                crc32c(seed, std::span(image).subspan(offset + head, header.total_length - head));
            now->header_crc = record_header_crc(std::span(image).subspan(offset, head), seed);
        };
        const std::string what = "log record " + std::to_string(i);
        add_fields(places, what, offset, kRecordFields, {range}, seal);
        for (uint32_t n = 0; n < header.range_count; ++n) {
            add_fields(places, what + " range " + std::to_string(n),
                       offset + sizeof header + n * sizeof(RecordRange), kRangeFields, {range},
                       seal);
        }
        places.push_back(
            {what + ": header's rest", {offset + header.header_length - 64, 64}, {range}, seal});
        places.push_back({what + ": payload",
                          {offset + header.header_length, header.payload_length},
                          {range},
                          seal});
        position += header.total_length;
    }
    return places;
}

std::vector<DamagePlace> DamageBase::places(DamageArea area) const {
    switch (area) {
        case DamageArea::Superblock:
            return sound->superblock();
        case DamageArea::GroupDescriptor:
            return sound->descriptors();
        case DamageArea::Bitmap:
            return sound->bitmaps();
        case DamageArea::Inode:
            return sound->inodes();
        case DamageArea::ExtentNode:
            return sound->nodes();
        case DamageArea::Directory:
            return sound->directories();
        case DamageArea::Xattr:
            return sound->xattrs();
        case DamageArea::LogSuperblock:
            return sound->log_superblocks();
        case DamageArea::LogRecord:
            return sound->log_records();
    }
    return {};
}

DamageBase make_damage_base(const std::string& name, uint64_t block_size,
                            const std::vector<std::string>& more) {
    DamageBase base;
    base.name = name;
    base.unit = 16384;
    base.deep_directory = "/deep/er/and/deeper";
    const TempDir tree;
    make_tree(tree.path(), base.deep_directory);
    std::vector<std::string> arguments{
        "-b", std::to_string(block_size),
        "-g", std::to_string(block_size == 1024 ? 2048 : 1024),
        "-N", "256",
        "-E", "lazy_itable_init=0,hash_seed=2c1b7d0e-0000-4000-8000-000000000001",
        "-U", "2c1b7d0e-0000-4000-8000-000000000002",
        "-d", tree.path()};
    arguments.insert(arguments.end(), more.begin(), more.end());
    EnableOptions options;
    options.log_size = Bytes(128 << 10);
    MemoryDevice memory(make_atomic4(block_size == 1024 ? 8 << 20 : 12 << 20, arguments, options));
    {
        auto opened = must(open_for_writing(borrowed(memory), true));
        const ext2_ino_t db =
            must(create_atomic_file(*opened.volume, "/db", {Bytes(0), Bytes(base.unit)}));
        give_generation(*opened.volume, "/noted");
        auto writer = must(AtomicWriter::open(std::move(opened)));
        const uint32_t generation = must(writer->file(db)).generation;
        // A hole after each unit: each is an extent of its own.
        for (uint64_t i = 0; i < kDbUnits; ++i) {
            must(writer->write({db, generation, ByteOffset(2 * i * base.unit),
                                filled(base.unit, static_cast<unsigned>(i + 1))}));
        }
        must(writer->close());
    }
    {
        auto writer = must(AtomicWriter::open(must(open_for_writing(borrowed(memory), true))));
        const ext2_ino_t db = must(lookup(writer->volume(), "/db"));
        const uint32_t generation = must(writer->file(db)).generation;
        for (const uint64_t unit : {0, 4}) {
            must(writer->write({db, generation, ByteOffset(unit * base.unit),
                                filled(base.unit, static_cast<unsigned>(0x80 + unit))},
                               Engine::Logged));
        }
        // No close: the records stay live.
    }
    base.image = memory.contents();
    base.sound = std::make_shared<DamageBase::Sound>(base.image);
    Volume& volume = *base.sound->volume;
    for (const char* path :
         {"/", "/.atomic4", "/.atomic4/log", "/.atomic4/lock", "/db", "/many", "/noted"})
        base.sound->named[path] = must(lookup(volume, path));
    base.sound->named["the innermost directory"] = must(lookup(volume, base.deep_directory));
    return base;
}

void Mutant::apply(Image& image) const {
    for (const uint64_t bit : bits)
        image[place->bytes.offset + bit / 8] ^= static_cast<std::byte>(1u << (bit % 8));
    if (sealed && place->seal) place->seal(image);
}

void Mutant::undo(Image& image, const Image& sound) const {
    for (const ByteRange& range : place->touched)
        std::memcpy(image.data() + range.offset, sound.data() + range.offset, range.length);
}

std::vector<Mutant> mutants_of(const std::vector<DamagePlace>& places, bool every) {
    std::vector<Mutant> mutants;
    size_t index = 0;
    for (const DamagePlace& place : places) {
        const uint64_t count = place.bytes.length * 8;
        // The same on every machine: std::hash promises nothing.
        std::mt19937_64 random(crc32c(~0u, std::as_bytes(std::span(place.name))));
        const auto add = [&](std::vector<uint64_t> bits, bool sealed) {
            std::string name = place.name + (sealed ? ", sealed:" : ":");
            if (bits.size() > 4)
                name += " " + std::to_string(bits.size()) + " bits";
            else
                for (const uint64_t bit : bits) name += " bit " + std::to_string(bit);
            mutants.push_back({std::move(name), &place, std::move(bits), sealed});
        };
        ++index;
        if (!every) {
            add({random() % count}, true);
            if (index % 8 == 0) add({random() % count}, false);
            continue;
        }
        std::vector<uint64_t> chosen;
        for (uint64_t i = 0; i < std::min<uint64_t>(count, 64); ++i)
            chosen.push_back(count <= 64 ? i : random() % count);
        for (const bool sealed : {true, false}) {
            for (const uint64_t bit : chosen) add({bit}, sealed);
            add({random() % count, random() % count}, sealed);
            add(chosen, sealed);
        }
    }
    return mutants;
}

}  // namespace atomic4::test
