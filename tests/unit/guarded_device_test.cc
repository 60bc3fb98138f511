// What a guarded device refuses, and how a protected file is compared afterwards.
#include "guard/guarded_device.h"

#include <gmock/gmock.h>

#include <cstring>
#include <random>

#include "device/forwarding_device.h"
#include "ext4/format.h"
#include "ext4/path.h"
#include "ext4/transaction.h"
#include "ext4/xattr.h"
#include "guard/atomic_files.h"
#include "guard/rehearsal_device.h"
#include "support/bytes.h"
#include "support/image.h"
#include "support/results.h"

namespace atomic4::test {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

constexpr uint64_t kBlock = 1024;
constexpr uint64_t kUnit = 16384;

class GuardedDeviceTest : public testing::Test {
  protected:
    GuardedDeviceTest() : memory_(make_atomic4(16 << 20, {"-b", "1024"})) {
        with_volume([&](Volume& volume) {
            number_ = must(create_atomic_file(volume, "/db", {Bytes(4 * kUnit), Bytes(kUnit)}));
        });
        with_volume([&](Volume& volume) { set_ = must(protect_atomic_files(volume)); });
        masked_ = must(SuperblockMask::make(memory_));
        guarded_ = std::make_unique<GuardedDevice>(*masked_, set_);
    }

    template <class Work>
    void with_volume(Work work) {
        VolumeOptions options;
        options.purpose = OpenFor::Write;
        const auto volume = must(Volume::open(lent(memory_), options));
        work(*volume);
    }
    const ProtectedFile& file() const {
        for (const ProtectedFile& file : set_.files()) {
            if (file.number == number_) return file;
        }
        throw std::runtime_error("not protected");
    }
    Image at(uint64_t offset, size_t size) {
        Image bytes(size);
        must(guarded_->read(ByteOffset(offset), bytes));
        return bytes;
    }
    std::vector<std::string> changes() {
        VolumeOptions options;
        options.purpose = OpenFor::Inspect;
        const auto volume = must(Volume::open(lent(memory_), options));
        std::vector<std::string> texts;
        for (const FileChange& change : must(changes_in(*volume, set_)))
            texts.push_back(change.text);
        return texts;
    }

    MemoryDevice memory_;
    ext2_ino_t number_ = 0;
    ProtectedSet set_;
    std::unique_ptr<SuperblockMask> masked_;
    std::unique_ptr<GuardedDevice> guarded_;
};

TEST_F(GuardedDeviceTest, NoByteOfAFilesDataCanBeWritten) {
    const Image before = memory_.contents();
    for (const Mapping& mapping : file().mappings) {
        const uint64_t begin = mapping.pblk.value() * kBlock;
        const uint64_t end = (mapping.pblk + mapping.length).value() * kBlock;
        for (const uint64_t offset : {begin, begin + 100, end - 1}) {
            const auto refused = guarded_->write(ByteOffset(offset), filled(1, 0x55));
            EXPECT_EQ(code_of(refused), EPERM);
            EXPECT_THAT(message_of(refused), HasSubstr("data of /db"));
        }
        // What only touches it at either end is refused whole.
        EXPECT_EQ(code_of(guarded_->write(ByteOffset(begin - kBlock), filled(kBlock + 1, 1))),
                  EPERM);
        EXPECT_EQ(code_of(guarded_->write(ByteOffset(end - 1), filled(kBlock, 1))), EPERM);
        EXPECT_EQ(code_of(guarded_->zero(ByteOffset(begin), Bytes(kBlock))), EPERM);
        // The same bytes are no excuse.
        EXPECT_EQ(code_of(guarded_->write(ByteOffset(begin), at(begin, kBlock))), EPERM);
    }
    EXPECT_TRUE(memory_.contents() == before);
    EXPECT_EQ(guarded_->writes(), 0u);
    EXPECT_GT(guarded_->writes_refused(), 0u);
    const Refusal& first = guarded_->refusals().front();
    EXPECT_EQ(first.inode, number_);
    EXPECT_EQ(first.path, "/db");
    EXPECT_EQ(first.block, file().mappings.front().pblk);
    EXPECT_THAT(first.to_text(), HasSubstr(fmt::format("would change block {}, data of /db (inode "
                                                       "{})",
                                                       first.block, number_)));
}

TEST_F(GuardedDeviceTest, OfItsInodeWhatSaysWhereTheDataIsStays) {
    const uint64_t inode = file().inode_at.value();
    const uint64_t block = inode / kBlock * kBlock;
    // A tool writes the whole block of the table, with other inodes and times changed.
    Image table = at(block, kBlock);
    must(guarded_->write(ByteOffset(block), table));
    ext2_inode changed{};
    const auto with = [&](auto change) {
        Image bytes = table;
        std::memcpy(&changed, bytes.data() + (inode - block), sizeof changed);
        change(changed);
        std::memcpy(bytes.data() + (inode - block), &changed, sizeof changed);
        return guarded_->write(ByteOffset(block), bytes);
    };
    EXPECT_EQ(code_of(with([](ext2_inode& i) { i.i_mode = 0; })), EPERM);
    EXPECT_EQ(code_of(with([](ext2_inode& i) { i.i_flags ^= kInodeFlagAtomic; })), EPERM);
    EXPECT_EQ(code_of(with([](ext2_inode& i) { i.i_block[4] ^= 1; })), EPERM);
    EXPECT_EQ(code_of(with([](ext2_inode& i) { ++i.i_generation; })), EPERM);
    must(with([](ext2_inode& i) { i.i_atime = 5; }));
    must(with([](ext2_inode& i) { i.i_links_count = 2; }));
    EXPECT_THAT(guarded_->refusals().front().to_text(), HasSubstr("the inode of /db"));
    // Also by a write of one byte.
    EXPECT_EQ(code_of(guarded_->write(ByteOffset(inode), filled(1, 0))), EPERM);
}

TEST_F(GuardedDeviceTest, EverythingElseIsLetThrough) {
    std::mt19937_64 random(7);
    uint64_t through = 0;
    for (int i = 0; i < 500; ++i) {
        const uint64_t offset = random() % (memory_.contents().size() / kBlock) * kBlock;
        if (offset < 8 * kBlock || !set_.in(offset, offset + kBlock).empty()) continue;
        Image bytes = random_bytes(kBlock, random);
        bytes[0x38] = std::byte{0};  // no superblock's magic number
        if (offset == 8193 * kBlock) continue;
        must(guarded_->write(ByteOffset(offset), bytes));
        EXPECT_TRUE(at(offset, kBlock) == bytes);
        ++through;
    }
    EXPECT_GT(through, 400u);
    EXPECT_EQ(guarded_->writes(), through);
    EXPECT_EQ(guarded_->writes_refused(), 0u);
}

// By metadata elsewhere a file can be moved all the same: it is noticed.
TEST_F(GuardedDeviceTest, ChangesAreNoticed) {
    EXPECT_THAT(changes(), IsEmpty());
    with_volume([&](Volume& volume) {
        Transaction transaction(volume);
        ext2_inode inode = must(read_file(volume, number_)).inode;
        const PblkRun run = must(volume.allocator().allocate(0, Pblk(0)));
        must(set_mapping(volume, number_, &inode, Lblk(20), run, MapState::Written));
        must(transaction.commit());
    });
    EXPECT_THAT(
        changes(),
        ElementsAre(HasSubstr(fmt::format("/db (inode {}): its block 20 has moved from {} to ",
                                          number_, file().mappings.front().pblk + Blocks(20)))));
    with_volume([&](Volume& volume) { must(release_file(volume, number_)); });
    EXPECT_THAT(changes(), ElementsAre(HasSubstr("has lost the atomic flag")));
}

TEST_F(GuardedDeviceTest, ARehearsalChangesNothing) {
    const Image before = memory_.contents();
    const auto rehearsal = must(RehearsalDevice::make(memory_));
    std::mt19937_64 random(11);
    Image model = before;
    for (int i = 0; i < 300; ++i) {
        const uint64_t offset = random() % (model.size() - 20000);
        const Image bytes = random_bytes(random() % 20000, random);
        must(rehearsal->write(ByteOffset(offset), bytes));
        std::ranges::copy(bytes, model.begin() + static_cast<std::ptrdiff_t>(offset));
    }
    must(rehearsal->write(ByteOffset(model.size() - 700), filled(700, 3)));
    std::fill(model.end() - 700, model.end(), std::byte{3});
    Image all(model.size());
    must(rehearsal->read(ByteOffset(0), all));
    EXPECT_TRUE(all == model);
    Image part(12345);
    must(rehearsal->read(ByteOffset(777), part));
    EXPECT_TRUE(std::equal(part.begin(), part.end(), model.begin() + 777));
    EXPECT_TRUE(memory_.contents() == before);
    EXPECT_EQ(code_of(rehearsal->write(ByteOffset(model.size()), filled(1, 0))), EINVAL);
}

// Whatever became of the inode, the tree and the bitmaps: they come back, and e2fsck does the rest.
TEST_F(GuardedDeviceTest, PuttingBack) {
    for (const Mapping& mapping : file().mappings) {
        must(memory_.write(ByteOffset(mapping.pblk.value() * kBlock),
                           filled(mapping.length.value() * kBlock, 0x5a)));
    }
    // As e2fsck discards a file: no inode, its blocks free.
    with_volume([&](Volume& volume) {
        Transaction transaction(volume);
        must(stage_delete(volume, number_));
        must(transaction.commit(Transaction::Order::Freeing));
    });
    ASSERT_THAT(changes(), ElementsAre(HasSubstr("/db")));
    {
        VolumeOptions options;
        options.purpose = OpenFor::Write;
        options.damaged_too = true;
        const auto volume = must(Volume::open(lent(memory_), options));
        must(put_back(*volume, set_, must(changes_in(*volume, set_))));
        EXPECT_NE(volume->fs()->super->s_state & EXT2_ERROR_FS, 0);
    }
    EXPECT_THAT(changes(), IsEmpty());
    // Nobody gets its blocks.
    {
        VolumeOptions options;
        options.purpose = OpenFor::Write;
        options.damaged_too = true;
        const auto volume = must(Volume::open(lent(memory_), options));
        for (const Mapping& mapping : file().mappings)
            EXPECT_FALSE(must(volume->allocator().is_free(mapping.pblk)));
    }
    Image repaired;
    EXPECT_LE(e2fsck(memory_.contents(), {"-fy"}, &repaired).status, 1);
    EXPECT_EQ(fsck_complaints(repaired), "");
    must(memory_.write(ByteOffset(0), repaired));
    EXPECT_THAT(changes(), IsEmpty());
    with_volume([&](Volume& volume) { EXPECT_EQ(must(lookup(volume, "/db")), number_); });
}

// With the xattrs that it has now: those before may have been what was wrong.
TEST_F(GuardedDeviceTest, PuttingBackOnlyTheUnit) {
    with_volume([&](Volume& volume) {
        Transaction transaction(volume);
        must(write_xattr(volume.fs(), number_, kUnitXattr, std::nullopt));
        must(write_xattr(volume.fs(), number_, "user.other", "new"));
        must(transaction.commit());
    });
    ASSERT_THAT(changes(), ElementsAre(HasSubstr("has lost its unit")));
    with_volume([&](Volume& volume) {
        const auto changes = must(changes_in(volume, set_));
        ASSERT_EQ(changes.size(), 1u);
        EXPECT_EQ(changes.front().lost, Lost::Unit);
        must(put_back(volume, set_, changes));
        EXPECT_EQ(must(read_xattr(volume.fs(), number_, "user.other")), "new");
        EXPECT_NE(volume.fs()->super->s_state & EXT2_ERROR_FS, 0);
    });
    EXPECT_THAT(changes(), IsEmpty());
    Image checked;
    EXPECT_LE(e2fsck(memory_.contents(), {"-fy"}, &checked).status, 1);
    EXPECT_EQ(fsck_complaints(checked), "");
}

// The file has a block of xattrs, and there is none for a copy of it: it is rewritten in place.
TEST_F(GuardedDeviceTest, TheUnitComesBackOnAFullVolume) {
    with_volume([&](Volume& volume) {
        Transaction transaction(volume);
        must(write_xattr(volume.fs(), number_, "user.large", std::string(300, 'x')));
        must(transaction.commit());
    });
    with_volume([&](Volume& volume) { set_ = must(protect_atomic_files(volume)); });
    with_volume([&](Volume& volume) {
        Transaction transaction(volume);
        must(write_xattr(volume.fs(), number_, kUnitXattr, std::nullopt));
        for (auto place = volume.allocator().choose_block(Pblk(0)); place;
             place = volume.allocator().choose_block(*place))
            must(volume.allocator().take(*place));
        must(transaction.commit());
    });
    with_volume([&](Volume& volume) {
        ASSERT_EQ(code_of(volume.allocator().choose_block(Pblk(0))), ENOSPC);
        must(put_back(volume, set_, must(changes_in(volume, set_))));
        EXPECT_EQ(must(read_xattr(volume.fs(), number_, "user.large")), std::string(300, 'x'));
    });
    EXPECT_THAT(changes(), IsEmpty());
}

// Without the bitmaps, which are e2fsck's; and not over what others have by then.
TEST_F(GuardedDeviceTest, PuttingInodesBack) {
    with_volume([&](Volume& volume) {
        Transaction transaction(volume);
        must(stage_delete(volume, number_));
        must(transaction.commit(Transaction::Order::Freeing));
    });
    const Image without = memory_.contents();
    const auto put_inodes_back = [&] {
        VolumeOptions options;
        options.purpose = OpenFor::Inspect;
        MemoryDevice seen(memory_.contents());
        const auto volume = must(Volume::open(lent(seen), options));
        return put_back_inodes(*volume, memory_, set_, {number_});
    };
    must(put_inodes_back());
    EXPECT_THAT(changes(), IsEmpty());
    Image repaired;
    EXPECT_LE(e2fsck(memory_.contents(), {"-fy"}, &repaired).status, 1);
    EXPECT_EQ(fsck_complaints(repaired), "");

    must(memory_.write(ByteOffset(0), without));
    with_volume([&](Volume& volume) {
        must(create_atomic_file(volume, "/with_its_number", {Bytes(kUnit), Bytes(kUnit)}));
        must(create_atomic_file(volume, "/other", {Bytes(64 * kUnit), Bytes(kUnit)}));
    });
    const Image others = memory_.contents();
    EXPECT_EQ(code_of(put_inodes_back()), EUCLEAN);
    EXPECT_EQ(memory_.contents(), others);
}

}  // namespace
}  // namespace atomic4::test
