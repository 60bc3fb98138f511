// Each supported layout from mkfs to disable, with a crash in between: stock e2fsck is the judge.
#include "unit/layout_matrix.h"

namespace atomic4::test {
namespace {

TEST_P(LayoutMatrix, LifeOfAVolume) {
    ASSERT_NO_FATAL_FAILURE(format());
    ASSERT_NO_FATAL_FAILURE(live());
    ASSERT_NO_FATAL_FAILURE(crash_and_recover());
    // Opened again, written again, and given back as a plain ext4 that is as full as it was.
    ASSERT_TRUE(!open());
    ASSERT_NO_FATAL_FAILURE(put("/plain", 51 * layout().block, layout().block));
    expect_contents();
    close();
    Opened opened(memory->contents());
    ASSERT_EQ(message_of(disable(*opened.volume, true)), "");
    EXPECT_EQ(fsck_complaints(opened.image()), "");
    EXPECT_FALSE(raw_super(opened.image()).gate);
    for (const auto& [path, bytes] : expected_)
        EXPECT_TRUE(dump_file(opened.image(), path) == bytes) << path;
}

// A failed operation gives everything back.
TEST_P(LayoutMatrix, NothingIsLostByFailure) {
    ASSERT_NO_FATAL_FAILURE(format());
    {
        Opened opened(memory->contents());
        const uint64_t before = opened.free_blocks();
        NewFile file;
        file.unit = Bytes(layout().units.back());
        file.size = Bytes(layout().size);
        EXPECT_EQ(code_of(create_atomic_file(*opened.volume, "/large", file)), ENOSPC);
        EXPECT_EQ(opened.free_blocks(), before);
        EXPECT_EQ(fsck_complaints(opened.image()), "");
        file.size = Bytes(layout().size / 4);
        ASSERT_EQ(message_of(create_atomic_file(*opened.volume, "/fits", file)), "");
        EXPECT_EQ(fsck_complaints(opened.image()), "");
    }
}

INSTANTIATE_TEST_SUITE_P(All, LayoutMatrix, testing::ValuesIn(layouts()), layout_name);

}  // namespace
}  // namespace atomic4::test
