// A volume whose image the input has changed: opened, checked, recovered, files made and removed.
// The first byte chooses the image; then patches of four bytes each: two choose a field of the
// image's structures (support/damage.h), one a bit in it, one whether the checksums are made right
// again.
//
// What must hold: looking writes nothing; a refusal of what changes one thing changes nothing; what
// gets allocated was free in the bitmaps as they stood before, by a reading of them that has
// nothing to do with ours, and is none of the volume's metadata.
//
// sources: base/*.cc device/device.cc device/memory_device.cc device/slice_device.cc
// sources: device/staging_device.cc device/atomic_limits.cc device/raw_statx.cc
// sources: ext4/[!hm]*.cc ext4/mapped_parts.cc ext4/mmp.cc redo/[!m]*.cc writer/open_volume.cc
// sources: writer/enable.cc writer/atomic_writer.cc writer/write_rules.cc writer/group_commit.cc
// sources: check/volume_check.cc check/shared_blocks.cc guard/protected_set.cc
// sources: tests/support/damage.cc tests/support/image.cc tests/support/command.cc
// libraries: -lext2fs -lcom_err -lblkid -lisal
#include <cstdint>
#include <cstring>
#include <iostream>
#include <source_location>

#include "check/volume_check.h"
#include "device/read_only_device.h"
#include "ext4/layout.h"
#include "ext4/path.h"
#include "support/damage.h"
#include "support/overlay_device.h"

namespace atomic4 {
namespace {

using test::DamageBase;
using test::DamagePlace;
using test::OverlayDevice;

constexpr uint64_t kReadsMax = 20'000;

void require(bool holds, std::source_location where = std::source_location::current()) {
    if (holds) return;
    std::cerr << "line " << where.line() << " in " << where.function_name() << " does not hold\n";
    abort();
}

struct Base {
    DamageBase base;
    std::vector<DamagePlace> places;
    test::Image image;

    explicit Base(DamageBase made) : base(std::move(made)), image(base.image) {
        for (const test::DamageArea area : test::kDamageAreas) {
            for (DamagePlace& place : base.places(area)) places.push_back(std::move(place));
        }
    }
};

// Which blocks are in use, by the image's bytes alone: the bitmaps, and where the superblock, the
// descriptors and what they name lie.
class NaiveBitmap {
  public:
    explicit NaiveBitmap(const test::Image& image) : image_(image) {
        blocksize_ = uint64_t{1024} << get<uint32_t>(1024 + 0x18);
        first_ = get<uint32_t>(1024 + 0x14);
        per_group_ = get<uint32_t>(1024 + 0x20);
        descriptor_ = (get<uint32_t>(1024 + 0x60) & 0x80) != 0 ? get<uint16_t>(1024 + 0xfe) : 32;
        table_ = uint64_t{get<uint32_t>(1024 + 0x28)} * get<uint16_t>(1024 + 0x58) / blocksize_;
        groups_ = (get<uint32_t>(1024 + 0x04) - first_ + per_group_ - 1) / per_group_;
    }
    bool in_use(uint64_t block) const {
        const uint64_t descriptors = first_ + 1;
        if (block <= first_ ||
            block < descriptors + (groups_ * descriptor_ + blocksize_ - 1) / blocksize_)
            return true;
        for (uint64_t group = 0; group < groups_; ++group) {
            const uint64_t at = descriptors * blocksize_ + group * descriptor_;
            const uint64_t table = get<uint32_t>(at + 8);
            if (block == get<uint32_t>(at) || block == get<uint32_t>(at + 4) ||
                (block >= table && block < table + table_))
                return true;
        }
        const uint64_t group = (block - first_) / per_group_;
        const uint64_t at = descriptors * blocksize_ + group * descriptor_;
        if ((get<uint16_t>(at + 0x12) & 2) != 0) return false;  // not initialised: all but metadata
        const uint64_t bit = (block - first_) % per_group_;
        return (get<uint8_t>(get<uint32_t>(at) * blocksize_ + bit / 8) >> (bit % 8) & 1) != 0;
    }

  private:
    template <class T>
    T get(uint64_t offset) const {
        T value;
        require(offset + sizeof value <= image_.size());
        std::memcpy(&value, image_.data() + offset, sizeof value);
        return value;
    }

    const test::Image& image_;
    uint64_t blocksize_ = 0;
    uint64_t first_ = 0;
    uint64_t per_group_ = 0;
    uint64_t descriptor_ = 0;
    uint64_t table_ = 0;
    uint64_t groups_ = 0;
};

std::unique_ptr<Volume> open(Device& device, OpenFor purpose) {
    VolumeOptions options;
    options.purpose = purpose;
    options.may_use_reserved = true;
    auto volume = Volume::open(test::borrowed(device), options);
    if (!volume) require(!volume.error().message.empty());
    return volume ? std::move(*volume) : nullptr;
}

void look(OverlayDevice& device) {
    ReadOnlyDevice read_only(device);
    if (const auto volume = open(read_only, OpenFor::Inspect)) (void)volume->needs_replay();
    if (const auto volume = open(read_only, OpenFor::Read)) {
        (void)check_volume(*volume);
        (void)check_one_file(*volume, "/db");
    }
    require(!device.reads_without_end() && !device.differs_from({}));
}

// True: the file is there.
bool create(OverlayDevice& device, const std::string& path, uint64_t size, uint64_t unit) {
    const auto volume = open(device, OpenFor::Write);
    if (!volume) return false;
    const test::Image before = device.contents();
    const OverlayDevice::Written written = device.written();
    const auto created = create_atomic_file(*volume, path, {Bytes(size), Bytes(unit)});
    if (!created) {
        require(!created.error().message.empty());
        require(!device.differs_from(written));
        return false;
    }
    const auto file = read_file(*volume, *created);
    require(file.has_value());
    const NaiveBitmap naive(before);
    const auto mappings =
        map_range(*volume, *created, file->inode, Lblk(0), Blocks(uint64_t{1} << 20));
    require(mappings.has_value());
    for (const Mapping& mapping : *mappings) {
        if (mapping.state == MapState::Hole) continue;
        for (uint64_t i = 0; i < mapping.length.value(); ++i)
            require(!naive.in_use(mapping.pblk.value() + i));
    }
    const auto nodes = tree_blocks(*volume, *created, file->inode);
    require(nodes.has_value());
    for (const Pblk node : *nodes) require(!naive.in_use(node.value()));
    return true;
}

void change(OverlayDevice& device, const Base& base) {
    (void)recover(test::borrowed(device), OnConflict::Keep);
    (void)recover(test::borrowed(device), OnConflict::Discard);
    create(device, "/new", 100'000, base.base.unit);
    create(device, base.base.deep_directory + "/new", 5'000, 4096);
    if (const auto volume = open(device, OpenFor::Write)) {
        if (const auto db = lookup(*volume, "/db")) (void)release_file(*volume, *db);
        (void)disable(*volume, true);
    }
    require(!device.reads_without_end());
}

}  // namespace
}  // namespace atomic4

using namespace atomic4;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    static std::vector<Base> bases = [] {
        std::vector<Base> made;
        made.emplace_back(test::make_damage_base("1 KiB blocks", 1024));
        made.emplace_back(test::make_damage_base("4 KiB blocks", 4096, {"-J", "size=4"}));
        made.emplace_back(
            test::make_damage_base("no checksums", 1024, {"-O", "^metadata_csum,^64bit"}));
        return made;
    }();
    if (size == 0) return 0;
    Base& base = bases[data[0] % bases.size()];
    std::vector<test::Mutant> mutants;
    for (size_t at = 1; at + 4 <= size && mutants.size() < 16; at += 4) {
        const DamagePlace& place =
            base.places[static_cast<size_t>(data[at] | data[at + 1] << 8) % base.places.size()];
        mutants.push_back(
            {"", &place, {data[at + 2] % (place.bytes.length * 8)}, (data[at + 3] & 1) == 0});
        mutants.back().apply(base.image);
    }
    {
        OverlayDevice device(base.image, "image", kReadsMax);
        look(device);
        change(device, base);
    }
    for (const test::Mutant& mutant : mutants) mutant.undo(base.image, base.base.image);
    return 0;
}
