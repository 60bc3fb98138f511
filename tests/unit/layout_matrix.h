// The ext4 layouts that people have, and one life of an atomic4 volume on each of them: judged
// offline by unit/layout_matrix_test.cc, under a kernel mount by kernel/layout_matrix_test.cc.
#pragma once

#include <map>
#include <ostream>
#include <random>

#include "check/volume_check.h"
#include "unit/writer_fixture.h"

namespace atomic4::test {

struct Layout {
    const char* name;
    uint64_t size;
    std::vector<std::string> arguments;  // mke2fs's
    uint64_t block;
    std::vector<uint64_t> units;           // of the atomic files
    const char* kernel_cannot = nullptr;   // mount it: why
    const char* kernel_feature = nullptr;  // a file that tells whether it can
};

inline void PrintTo(const Layout& layout, std::ostream* out) {
    *out << layout.name;
}

inline std::string layout_name(const testing::TestParamInfo<Layout>& info) {
    return info.param.name;
}

inline const std::vector<Layout>& layouts() {
    constexpr uint64_t kKiB = 1024;
    constexpr uint64_t kSize = uint64_t{24} << 20;
    const auto kib1 = [](const char* name, std::vector<std::string> more) {
        more.insert(more.begin(), {"-b", "1024"});
        return Layout{name, kSize, std::move(more), kKiB, {4 * kKiB, 16 * kKiB}};
    };
    static const std::vector<Layout> all{
        kib1("blocks_1k", {}),
        {"blocks_2k", kSize, {"-b", "2048"}, 2 * kKiB, {2 * kKiB, 16 * kKiB}},
        {"blocks_4k", kSize, {"-b", "4096"}, 4 * kKiB, {4 * kKiB, 64 * kKiB}},
        kib1("meta_bg", {"-O", "meta_bg,^resize_inode", "-g", "1024"}),
        kib1("no_flex_bg", {"-O", "^flex_bg"}),
        kib1("no_64bit", {"-O", "^64bit"}),
        kib1("uninit_bg", {"-O", "^metadata_csum,uninit_bg"}),
        kib1("no_metadata_csum", {"-O", "^metadata_csum,^uninit_bg"}),
        kib1("no_journal", {"-O", "^has_journal"}),
        kib1("sparse_super2", {"-O", "sparse_super2,^resize_inode"}),
        kib1("no_sparse_super", {"-O", "^sparse_super,^resize_inode"}),
        kib1("orphan_file", {"-O", "orphan_file"}),
        kib1("ea_inode", {"-O", "ea_inode"}),
        kib1("inodes_128", {"-I", "128"}),
        kib1("inodes_1024", {"-I", "1024"}),
        kib1("large_dir", {"-O", "large_dir"}),
        // Units smaller than a cluster, equal and larger.
        {"bigalloc_1k",
         kSize,
         {"-b", "1024", "-O", "bigalloc", "-C", "16384", "-g", "256"},
         kKiB,
         {4 * kKiB, 16 * kKiB, 64 * kKiB}},
        {"bigalloc_1k_meta_bg",
         kSize,
         {"-b", "1024", "-O", "bigalloc,meta_bg,^resize_inode", "-C", "2048", "-g", "1024"},
         kKiB,
         {1 * kKiB, 2 * kKiB, 16 * kKiB}},
        {"bigalloc_4k",
         2 * kSize,
         {"-b", "4096", "-O", "bigalloc"},
         4 * kKiB,
         {16 * kKiB, 64 * kKiB, 256 * kKiB}},
        {"bigalloc_no_csum",
         kSize,
         {"-b", "1024", "-O", "bigalloc,^metadata_csum,uninit_bg", "-C", "8192", "-g", "512"},
         kKiB,
         {4 * kKiB, 32 * kKiB}},
        {"blocks_64k",
         4 * kSize,
         {"-b", "65536"},
         64 * kKiB,
         {64 * kKiB, 256 * kKiB},
         "x86 kernels mount no blocks larger than a page"},
        kib1("inline_data", {"-O", "inline_data"}),
        {"inline_data_bigalloc",
         2 * kSize,
         {"-b", "4096", "-O", "inline_data,bigalloc", "-C", "16384"},
         4 * kKiB,
         {4 * kKiB, 16 * kKiB}},
        {"casefold",
         kSize,
         {"-b", "1024", "-O", "casefold"},
         kKiB,
         {4 * kKiB},
         "this kernel lacks CONFIG_UNICODE",
         "/sys/fs/ext4/features/casefold"},
        {"no_journal_4k", kSize, {"-b", "4096", "-O", "^has_journal"}, 4 * kKiB, {16 * kKiB}},
    };
    return all;
}

// A volume of this layout, its free blocks full of garbage, and what its files ought to hold.
class LayoutMatrix : public WriterTest, public testing::WithParamInterface<Layout> {
  protected:
    const Layout& layout() const { return GetParam(); }

    void format() {
        start(make_dirty_atomic4(layout().size, layout().arguments, log_of(uint64_t{2} << 20)));
        ASSERT_EQ(fsck_complaints(memory->contents()), "");
    }

    void expect_clean() {
        EXPECT_EQ(fsck_complaints(memory->contents()), "");
        const auto volume = open_volume(*memory, OpenFor::Read, true);
        for (const Finding& finding : must(check_volume(*volume)).findings)
            ADD_FAILURE() << finding.where << ": " << meaning_of(finding.id) << ": "
                          << finding.detail;
    }

    void put(const std::string& path, uint64_t offset, uint64_t length) {
        const auto data = random_bytes(length, random_);
        Image& image = expected_[path];
        const auto done = write(must(lookup(writer->volume(), path)), offset, data, Engine::Logged);
        ASSERT_EQ(message_of(done), "") << path << ": " << length << " at " << offset;
        if (image.size() < offset + length) image.resize(offset + length);
        std::memcpy(image.data() + offset, data.data(), length);
    }

    void expect_contents() {
        for (const auto& [path, bytes] : expected_)
            EXPECT_TRUE(content(must(lookup(writer->volume(), path))) == bytes) << path;
    }

    static std::string file_of(uint64_t unit) { return fmt::format("/unit{}", unit); }

    // Files of each unit, and one without; written where there are blocks, into holes and beyond
    // EOF; many extents; then a crash while records are live, their data lost.
    void live() {
        ASSERT_TRUE(!open());
        for (const uint64_t unit : layout().units) {
            const std::string path = file_of(unit);
            create(path, 8 * unit, unit);
            expected_[path] = Image(8 * unit);
            put(path, 0, unit);
            put(path, unit + unit / 2 / layout().block * layout().block, layout().block);
            put(path, 12 * unit, unit);  // leaves a hole
            put(path, 9 * unit, unit);
            put(path, 10 * unit, layout().block);
        }
        create_plain("/plain");
        expected_["/plain"];
        const uint64_t block = layout().block;
        for (const uint64_t first : {1, 0}) {
            for (uint64_t i = first; i < 40; i += 2) put("/plain", i * block, block);
        }
        put("/plain", 100 * block, block);
        put("/plain", 66 * block, 2 * block);
        expect_contents();
    }

    void crash_and_recover() {
        const uint64_t unit = layout().units.back();
        put(file_of(unit), 2 * unit, unit);
        put(file_of(unit), 16 * unit, unit);  // grows, into the hole after EOF
        put("/plain", 50 * layout().block, layout().block);
        const ext2_ino_t inode = must(lookup(writer->volume(), file_of(unit)));
        ASSERT_GT(writer->live_records(), 0u);
        die();
        EXPECT_EQ(fsck_complaints(memory->contents()), "");
        spoil(inode, 2 * unit, unit);
        const auto report = open();
        ASSERT_TRUE(report);
        EXPECT_GT(report->records, 0u);
        expect_contents();
        close();
        expect_clean();
    }

    std::mt19937_64 random_{20231113};
    std::map<std::string, Image> expected_;
};

}  // namespace atomic4::test
