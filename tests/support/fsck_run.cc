#include "support/fsck_run.h"

#include <fcntl.h>
#include <unistd.h>

#include <cstring>
#include <fstream>
#include <iostream>
#include <sstream>
#include <stdexcept>

#include "base/crc32c.h"
#include "device/read_only_device.h"
#include "ext4/errcode.h"
#include "ext4/format.h"
#include "ext4/layout_plan.h"
#include "ext4/path.h"
#include "ext4/transaction.h"
#include "support/command.h"
#include "support/damage.h"
#include "support/results.h"

namespace atomic4::test {

namespace {

// Standard output and error go to a file while this lives.
class Captured {
  public:
    explicit Captured(const std::string& path) {
        std::fflush(nullptr);
        std::cout.flush();
        out_ = ::dup(1);
        err_ = ::dup(2);
        const int file = ::open(path.c_str(), O_CREAT | O_TRUNC | O_WRONLY | O_APPEND, 0600);
        ::dup2(file, 1);
        ::dup2(file, 2);
        ::close(file);
    }
    ~Captured() {
        std::fflush(nullptr);
        std::cout.flush();
        ::dup2(out_, 1);
        ::dup2(err_, 2);
        ::close(out_);
        ::close(err_);
    }
    Captured(const Captured&) = delete;
    Captured& operator=(const Captured&) = delete;

  private:
    int out_ = -1;
    int err_ = -1;
};

ext2_super_block super_at(const Image& image, uint64_t offset) {
    ext2_super_block super{};
    std::memcpy(&super, image.data() + offset, sizeof super);
    return super;
}

std::unique_ptr<Volume> open_whatever(Device& device, OpenFor purpose) {
    VolumeOptions options;
    options.purpose = purpose;
    options.require_atomic4 = false;
    options.damaged_too = true;
    return must(Volume::open(borrowed(device), options));
}

}  // namespace

FsckRun run_fsck(Device& device, FsckMode mode) {
    const TempDir directory;
    // The view is laid over it.
    const std::string path = directory.file("image");
    std::ofstream(path).close();
    FsckRun result;
    {
        const Captured captured(directory.file("said"));
        tools::Context context{
            [&](const std::string&, Access access,
                tools::Sharing) -> Result<std::unique_ptr<Device>> {
                if (access == Access::ReadOnly)
                    return std::unique_ptr<Device>(std::make_unique<ReadOnlyDevice>(device));
                return borrowed(device);
            },
            std::cout, [](const std::string& text) { std::cerr << "warning: " << text << "\n"; }};
        tools::FsckCommand command;
        command.device = path;
        command.mode = mode;
        command.force = true;
        const auto status = tools::run(context, command, [](const std::string&, const auto&) {
            return Error{EINVAL, "taken for a plain ext4"};
        });
        if (!status) std::cerr << status.error().message << "\n";
        result.status = status ? *status : tools::kFsckOperational;
    }
    std::ostringstream text;
    text << std::ifstream(directory.file("said")).rdbuf();
    result.output = text.str();
    return result;
}

FsckRun run_fsck(Image& image, FsckMode mode) {
    ImageDevice device(image);
    return run_fsck(device, mode);
}

std::string superblock_complaint(const Image& image) {
    const ext2_super_block primary = super_at(image, 1024);
    const uint64_t block = uint64_t{1024} << primary.s_log_block_size;
    const uint64_t groups =
        (primary.s_blocks_count - primary.s_first_data_block + primary.s_blocks_per_group - 1) /
        primary.s_blocks_per_group;
    for (uint64_t group = 0; group < groups; ++group) {
        const uint64_t offset =
            group == 0 ? 1024
                       : (primary.s_first_data_block + group * primary.s_blocks_per_group) * block;
        const ext2_super_block super = super_at(image, offset);
        if (super.s_magic != EXT2_SUPER_MAGIC ||
            std::memcmp(super.s_uuid, primary.s_uuid, sizeof super.s_uuid) != 0) {
            if (group <= 1) return fmt::format("no superblock in group {}", group);
            continue;
        }
        if ((super.s_feature_compat & kFeatureCompatAtomic4) == 0)
            return fmt::format("no gate bit in group {}", group);
        const auto bytes = std::span(image).subspan(offset, offsetof(ext2_super_block, s_checksum));
        if ((super.s_feature_ro_compat & EXT4_FEATURE_RO_COMPAT_METADATA_CSUM) != 0 &&
            super.s_checksum != crc32c(~uint32_t{0}, bytes))
            return fmt::format("a wrong checksum in group {}", group);
    }
    return {};
}

std::vector<Mapping> mapping_of_file(const Image& image, const std::string& path) {
    MemoryDevice device(image);
    const auto volume = open_whatever(device, OpenFor::Inspect);
    const ext2_ino_t number = must(lookup(*volume, path));
    const FileState file = must(read_file(*volume, number));
    return joined(must(map_range(*volume, number, file.inode, Lblk(0), kWholeFile)));
}

std::vector<std::byte> content_of_file(const Image& image, const std::string& path) {
    MemoryDevice device(image);
    const auto volume = open_whatever(device, OpenFor::Inspect);
    const FileState file = must(read_file(*volume, must(lookup(*volume, path))));
    std::vector<std::byte> content(file.size.value());
    const uint64_t block = volume->block_size().value();
    for (const Mapping& mapping : mapping_of_file(image, path)) {
        if (mapping.state != MapState::Written) continue;
        const uint64_t at = mapping.lblk.value() * block;
        if (at >= content.size()) continue;
        const uint64_t n = std::min(content.size() - at, mapping.length.value() * block);
        std::memcpy(content.data() + at, image.data() + mapping.pblk.value() * block, n);
    }
    return content;
}

DirtyVolume make_dirty_volume(uint64_t block_size) {
    DirtyVolume dirty;
    const DamageBase base = make_damage_base("dirty", block_size);
    dirty.db = mapping_of_file(base.image, "/db");
    {
        MemoryDevice device(base.image);
        must(recover(borrowed(device), OnConflict::Keep));
        dirty.db_content = content_of_file(device.contents(), "/db");
    }
    MemoryDevice device(base.image);
    {
        const auto volume = open_whatever(device, OpenFor::Write);
        ext2_filsys fs = volume->fs();
        const ext2_ino_t noted = must(lookup(*volume, "/noted"));
        Transaction transaction(*volume);
        ext2_inode inode{};
        must(check_errcode(ext2fs_read_inode(fs, noted, &inode), "/noted"));
        // Its first extent begins where /db's first does.
        if ((inode.i_flags & EXT4_EXTENTS_FL) == 0) throw std::logic_error("/noted has no extents");
        inode.i_block[5] = static_cast<uint32_t>(dirty.db.front().pblk.value());
        must(check_errcode(ext2fs_write_inode(fs, noted, &inode), "/noted"));
        must(transaction.commit());
    }
    dirty.image = device.contents();
    const auto volume = open_whatever(device, OpenFor::Inspect);
    ext2_filsys fs = volume->fs();
    const uint64_t block = dirty.db.front().pblk.value();
    const dgrp_t group = ext2fs_group_of_blk2(fs, block);
    const uint64_t bit = block - ext2fs_group_first_block2(fs, group);
    const uint64_t bitmap = ext2fs_block_bitmap_loc(fs, group) * block_size;
    for (uint64_t i = 0; i < 8; ++i) {
        dirty.image[bitmap + (bit + i) / 8] &=
            ~std::byte{static_cast<unsigned char>(1u << ((bit + i) % 8))};
    }
    return dirty;
}

}  // namespace atomic4::test
