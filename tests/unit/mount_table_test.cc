#include "device/mount_table.h"

#include <gtest/gtest.h>

#include <fstream>

#include "device/ownership.h"
#include "support/command.h"

namespace atomic4::test {
namespace {

TEST(MountTable, ReadsEscapesOptionalFieldsAndSkipsRubbish) {
    TempDir dir;
    const std::string path = dir.file("mountinfo");
    std::ofstream(path)
        << "36 35 98:0 /sub /mnt/a\\040b\\134c rw,noatime master:1 shared:2 - ext3 /dev/root rw\n"
        << "rubbish\n"
        << "1 2 x:y / /nowhere rw - ext4 /dev/x rw\n"
        << "3 4 7:3 / /short rw\n"
        << "37 35 0:21 / /proc rw - proc proc rw\n";
    const auto table = read_mount_table(path);
    ASSERT_EQ(table.size(), 2u);
    EXPECT_EQ(table[0].major_number, 98u);
    EXPECT_EQ(table[0].minor_number, 0u);
    EXPECT_EQ(table[0].root, "/sub");
    EXPECT_EQ(table[0].mount_point, "/mnt/a b\\c");
    EXPECT_EQ(table[0].type, "ext3");
    EXPECT_EQ(table[0].source, "/dev/root");
    EXPECT_EQ(table[1].type, "proc");
    EXPECT_TRUE(read_mount_table(dir.file("missing")).empty());
    EXPECT_FALSE(read_mount_table().empty());
}

TEST(Ownership, AFileOfOursIsFree) {
    TempDir dir;
    const std::string path = dir.file("image");
    std::ofstream(path) << "x";
    EXPECT_TRUE(refuse_if_in_use(path).has_value());
    EXPECT_FALSE(mounted_on(path).has_value());
    EXPECT_TRUE(loop_devices_on(path).empty());
    EXPECT_EQ(refuse_if_in_use(dir.file("missing")).error().code, ENOENT);
    EXPECT_FALSE(mounted_on(dir.file("missing")).has_value());
}

}  // namespace
}  // namespace atomic4::test
