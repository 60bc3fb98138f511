// A power cut at every moment of adopting a file.
//
// Whatever is left: the volume opens and e2fsck repairs it; the file's contents are what they were,
// and its xattrs; its layout is the old one or the new one, never a mixture; adopting it again
// completes it. Other files are untouched.
#include <gtest/gtest.h>

#include <algorithm>
#include <iterator>

#include "ext4/format.h"
#include "ext4/layout_plan.h"
#include "ext4/path.h"
#include "ext4/transaction.h"
#include "ext4/xattr.h"
#include "support/bytes.h"
#include "support/crash_scenario.h"
#include "support/fault_driver.h"
#include "support/results.h"
#include "support/small_layouts.h"
#include "writer/adopt.h"

namespace atomic4::test {
namespace {

constexpr size_t kImagesPerFsck = 2;
constexpr size_t kInlineBytes = 100;  // more than i_block holds
const std::string kOthers(500, 'x');  // an xattr that needs a block of its own

enum class Kind { Extents, Tree, Indirect, Again, Inline };

// What the short form of these tests takes of a case.
enum class Short { CutsAndFaults, Cuts, Nothing };

struct Case {
    const char* name;
    const SmallLayout& layout;
    Kind kind;
    uint64_t unit = 16384;
    int fates = 16;  // of each cut, in the short form
    Short in_short = Short::CutsAndFaults;
};

void PrintTo(const Case& it, std::ostream* out) {
    *out << it.name;
}

struct Start {
    Image image;
    FileModel file;
    FileModel bystander;
    Bytes unit;
    std::vector<Mapping> old;  // none: it is in the inode
};

bool is_inline(const FileState& file) {
    return (file.inode.i_flags & EXT4_INLINE_DATA_FL) != 0;
}

std::vector<Mapping> mapping_of_file(Volume& volume, const FileState& file) {
    if (is_inline(file)) return {};
    return joined(must(map_range(volume, file.number, file.inode, Lblk(0), Blocks(1 << 10))));
}

// The same blocks in an indirect map, as an ext3 would have them. Direct and indirect ones.
void make_indirect(Volume& volume, ext2_ino_t number) {
    const FileState file = must(read_file(volume, number));
    const uint64_t block = volume.block_size().value();
    std::vector<uint32_t> blocks(12 + block / 4);
    for (const Mapping& m : must(map_range(volume, number, file.inode, Lblk(0), Blocks(64)))) {
        for (uint64_t i = 0; m.state == MapState::Written && i < m.length.value(); ++i)
            blocks[m.lblk.value() + i] = static_cast<uint32_t>(m.pblk.value() + i);
    }
    Transaction transaction(volume);
    ext2_inode inode = file.inode;
    const Pblk indirect = must(volume.allocator().allocate(0, Pblk(0))).start;
    std::memset(inode.i_block, 0, sizeof inode.i_block);
    std::copy_n(blocks.begin(), 12, inode.i_block);
    inode.i_block[EXT2_IND_BLOCK] = static_cast<uint32_t>(indirect.value());
    inode.i_flags &= ~EXT4_EXTENTS_FL;
    must(volume.device().write(ByteOffset(indirect.value() * block),
                               std::as_bytes(std::span(blocks).subspan(12))));
    if (ext2fs_iblk_add_blocks(volume.fs(), &inode, 1) != 0 ||
        ext2fs_write_inode(volume.fs(), number, &inode) != 0)
        throw std::runtime_error("can't write the inode");
    must(transaction.commit());
}

// The same file with its bytes in the inode: in i_block, and in an xattr there.
FileModel make_inline_file(Volume& volume, const std::string& path, std::mt19937_64& random) {
    FileModel model = make_file(volume, path, kInlineBytes, {}, random);
    model.bytes = random_bytes(kInlineBytes, random);
    Transaction transaction(volume);
    ext2_inode inode = must(read_file(volume, model.inode)).inode;
    inode.i_flags = (inode.i_flags & ~EXT4_EXTENTS_FL) | EXT4_INLINE_DATA_FL;
    if (ext2fs_write_inode(volume.fs(), model.inode, &inode) != 0 ||
        ext2fs_inline_data_init(volume.fs(), model.inode) != 0 ||
        ext2fs_inline_data_set(volume.fs(), model.inode, nullptr, model.bytes.data(),
                               model.bytes.size()) != 0)
        throw std::runtime_error("can't put the bytes into the inode");
    must(transaction.commit());
    return model;
}

// Misaligned, in pieces, with holes and unwritten blocks; the tree needs a leaf in some cases.
std::vector<Piece> pieces_of(const Case& it) {
    std::vector<Piece> pieces{{0, 5}, {5, 3}, {21, 4}};
    if (it.kind != Kind::Indirect) pieces.push_back({25, 6, MapState::Unwritten});
    if (it.kind == Kind::Tree || it.kind == Kind::Again) {
        for (uint64_t i = 0; i < 5; ++i) pieces.push_back({40 + 20 * i, 2});
    }
    // These fill clusters in part; a whole one stays unless the unit is larger.
    if (const uint64_t cluster = it.layout.cluster; cluster > 1)
        pieces.push_back({10 * cluster, cluster});
    return pieces;
}

Start prepare(const Case& it) {
    const uint64_t block = it.layout.block;
    std::mt19937_64 random(block);
    auto arguments = it.layout.in_groups();
    // Without room for xattrs in the inode: the unit goes where the others are.
    if (it.kind == Kind::Tree) arguments.insert(arguments.end(), {"-I", "128"});
    Start start;
    start.unit = Bytes(it.unit);
    start.image = make_atomic4(it.layout.size, arguments);
    ImageDevice device(start.image);
    const auto volume = must(open_any(device, OpenFor::Write));
    start.bystander = make_file(*volume, "/bystander", 8 * block, {{0, 3}, {3, 5}}, random);
    const auto pieces = pieces_of(it);
    const uint64_t last = pieces.back().lblk + pieces.back().length;
    start.file = it.kind == Kind::Inline
                     ? make_inline_file(*volume, "/file", random)
                     : make_file(*volume, "/file", last * block - 100, pieces, random);
    const ext2_ino_t number = start.file.inode;
    {
        Transaction transaction(*volume);
        must(write_xattr(volume->fs(), number, "user.other", kOthers));
        must(transaction.commit());
    }
    const FileState file = must(read_file(*volume, number));
    // What is left of the last block is zero, as the kernel keeps it.
    if (!is_inline(file)) {
        const auto runs = must(map_range(*volume, number, file.inode, Lblk(last - 1), Blocks(1)));
        if (runs[0].state == MapState::Written)
            must(volume->device().zero(ByteOffset((runs[0].pblk.value() + 1) * block - 100),
                                       Bytes(100)));
    }
    if (it.kind == Kind::Indirect) make_indirect(*volume, number);
    if (it.kind == Kind::Again) must(adopt_file(*volume, number, Bytes(2 * block)));
    start.old = mapping_of_file(*volume, must(read_file(*volume, number)));
    return start;
}

Result<AdoptReport> adopt(Device& device, const Start& start) {
    const OpenVolume opened = A4_TRY(open_for_writing(borrowed(device)));
    return adopt_file(*opened.volume, start.file.inode, start.unit);
}

// Blocks of the file that a bitmap calls free: they would become another file's. From a bitmap that
// a cut has torn nobody takes any.
std::string called_free(Volume& volume, const FileState& file) {
    std::vector<PblkRun> runs;
    for (const Mapping& m : mapping_of_file(volume, file)) runs.push_back({m.pblk, m.length});
    if (file.extent_mapped()) {
        for (const Pblk node : must(tree_blocks(volume, file.number, file.inode)))
            runs.push_back({node, Blocks(1)});
    }
    if (const Pblk xattrs(ext2fs_file_acl_block(volume.fs(), &file.inode)); xattrs != Pblk(0))
        runs.push_back({xattrs, Blocks(1)});
    for (const PblkRun& run : runs) {
        for (uint64_t i = 0; i < run.length.value(); ++i) {
            if (must(volume.allocator().is_free(run.start + Blocks(i))))
                return fmt::format("inode {}: its block {} is called free", file.number,
                                   run.start + Blocks(i));
        }
    }
    return {};
}

// What holds before the power comes back, after e2fsck, and at the end.
std::string judge_files(Image& image, const Start& start, bool* is_new) {
    ImageDevice device(image);
    const auto opened = open_any(device, OpenFor::Read);
    if (!opened) return opened.error().message;
    Volume& volume = **opened;
    for (const FileModel* model : {&start.file, &start.bystander}) {
        if (auto wrong = same_bytes(volume, *model); !wrong.empty()) return wrong;
        const FileState state = must(read_file(volume, model->inode));
        if (auto wrong = called_free(volume, state); !wrong.empty()) return wrong;
    }
    const auto other = read_xattr(volume.fs(), start.file.inode, "user.other");
    if (!other) return "xattrs: " + other.error().message;
    if (*other != kOthers) return "an xattr has changed";
    const auto file = read_file(volume, start.file.inode);
    if (!file) return file.error().message;
    *is_new = file->atomic && file->unit == start.unit && !is_inline(*file);
    const auto beyond_i_block = read_xattr(volume.fs(), start.file.inode, "system.data");
    if (!beyond_i_block) return "xattrs: " + beyond_i_block.error().message;
    if (beyond_i_block->has_value() != is_inline(*file)) return "half of its data is in the inode";
    if (*is_new) {
        const auto layout = check_layout(volume, *file, start.unit);
        if (!layout) return layout.error().message;
        *is_new = layout->problems == 0;
    }
    if (!*is_new && mapping_of_file(volume, *file) != start.old)
        return "a layout that is neither the old nor the new one";
    return {};
}

std::string judge(Image& image, const Start& start, bool e2fsck_first) {
    bool is_new = false;
    if (auto wrong = judge_files(image, start, &is_new); !wrong.empty()) return wrong;
    if (e2fsck_first) {
        const bool was_new = is_new;
        const Fsck fsck = e2fsck(image, {"-fy"}, &image);
        if (fsck.status > 1) return "e2fsck can't repair it: " + fsck.output;
        if (auto rest = fsck_complaints(image); !rest.empty()) return "after a repair: " + rest;
        if (auto wrong = judge_files(image, start, &is_new); !wrong.empty())
            return "after e2fsck: " + wrong;
        if (is_new != was_new) return "e2fsck has changed the layout";
    }
    ImageDevice device(image);
    auto again = adopt(device, start);
    if (!again && again.error().code == EUCLEAN && !e2fsck_first) {
        // The cut has left a bitmap that doesn't match its checksum, and no other group has room.
        if (again.error().message.find("e2fsck") == std::string::npos)
            return "the message gives no advice: " + again.error().message;
        return judge(image, start, true);
    }
    if (!again) return "adopt again: " + again.error().message;
    if (again->changed == is_new) return "adopt again doesn't know what there is to do";
    if (auto wrong = judge_files(image, start, &is_new); !wrong.empty())
        return "adopted again: " + wrong;
    if (!is_new) return "adopted again, and yet the layout is the old one";
    if (!e2fsck_first) return {};
    const auto rest = fsck_complaints(image);
    return rest.empty() ? std::string() : "at the end: " + rest;
}

constexpr Case kCases[] = {
    {"block1024_extents", kBlocks1k, Kind::Extents},
    {"block4096_extents", kBlocks4k, Kind::Extents},
    {"block1024_tree", kBlocks1k, Kind::Tree},
    {"block4096_tree", kBlocks4k, Kind::Tree},
    {"block1024_indirect", kBlocks1k, Kind::Indirect},
    {"block4096_indirect", kBlocks4k, Kind::Indirect},
    {"block1024_another_unit", kBlocks1k, Kind::Again},
    // Units smaller than a cluster of 16 KiB, equal and larger.
    {"bigalloc_unit8k", kBigalloc, Kind::Extents, 8192, 4, Short::Cuts},
    {"bigalloc_unit16k", kBigalloc, Kind::Tree, 16384, 4},
    {"bigalloc_unit64k", kBigalloc, Kind::Tree, 65536, 4, Short::Cuts},
    {"bigalloc_another_unit", kBigalloc, Kind::Again, 65536, 4, Short::Nothing},
    {"inline_data", kInlineData, Kind::Inline, 16384, 4},
    {"inline_data_bigalloc", kInlineBigalloc, Kind::Inline, 8192, 4, Short::Cuts},
    {"block65536_unit64k", kBlocks64k, Kind::Extents, 65536, 4, Short::Cuts},
    {"block65536_unit128k", kBlocks64k, Kind::Tree, 131072, 4, Short::Cuts}};

std::vector<Case> cases_for(Short wanted) {
    std::vector<Case> cases;
    std::ranges::copy_if(kCases, std::back_inserter(cases),
                         [&](const Case& it) { return long_run() || it.in_short <= wanted; });
    return cases;
}

class AdoptCrash : public ::testing::TestWithParam<Case> {};
class AdoptFault : public AdoptCrash {};

TEST_P(AdoptCrash, EveryMoment) {
    const Start start = prepare(GetParam());
    ASSERT_EQ(fsck_complaints(start.image), "");
    CrashDevice device(start.image);
    const auto done = adopt(device, start);
    ASSERT_TRUE(done) << done.error().message;
    ASSERT_TRUE(done->changed);
    // None kept, all kept, and random ones.
    const int fates = long_run() ? 64 : GetParam().fates;
    std::mt19937_64 random(GetParam().layout.block);
    Image image;
    size_t images = 0;
    int failures = 0;
    for (size_t event = 0; event <= device.events() && failures < 3; ++event) {
        for (int i = 0; i < fates; ++i) {
            const uint64_t fate = i < 2 ? static_cast<uint64_t>(i) : random();
            device.image_after(event, fate, image);
            const auto wrong = judge(image, start, ++images % kImagesPerFsck == 0);
            if (wrong.empty()) continue;
            ADD_FAILURE() << "event " << event << " of " << device.events() << " ("
                          << device.describe(event) << "), fate " << fate << ": " << wrong;
            if (++failures == 3) break;
        }
    }
    RecordProperty("images", static_cast<int>(images));
}

// Every I/O fails once: the right result, or an error and the file as it was.
TEST_P(AdoptFault, EveryFault) {
    const Start start = prepare(GetParam());
    FaultOperation operation;
    operation.name = std::string("adopt ") + GetParam().name;
    operation.image = start.image;
    operation.run = [&](Device& device) -> Result<> {
        A4_TRY(adopt(device, start));
        return {};
    };
    operation.right = [&](Image& image) -> std::string {
        bool is_new = false;
        auto wrong = judge_files(image, start, &is_new);
        if (wrong.empty() && !is_new) wrong = "not adopted";
        return wrong;
    };
    operation.intact = [&](Image& image) {
        bool is_new = false;
        return judge_files(image, start, &is_new);
    };
    operation.unchanged = [&](Image& image) -> std::string {
        bool is_new = false;
        auto wrong = judge_files(image, start, &is_new);
        if (wrong.empty() && is_new) wrong = "an error, and yet it is adopted";
        return wrong;
    };
    run_with_every_fault(operation);
}

std::string name_of(const ::testing::TestParamInfo<Case>& info) {
    return info.param.name;
}

INSTANTIATE_TEST_SUITE_P(Files, AdoptCrash, ::testing::ValuesIn(cases_for(Short::Cuts)), name_of);
INSTANTIATE_TEST_SUITE_P(Files, AdoptFault, ::testing::ValuesIn(cases_for(Short::CutsAndFaults)),
                         name_of);

}  // namespace
}  // namespace atomic4::test
