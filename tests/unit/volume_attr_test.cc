// The text of the volume attribute.
#include "ext4/volume_attr.h"

#include "ext4/format.h"
#include "unit/volume_fixture.h"

namespace atomic4::test {
namespace {

using testing::HasSubstr;

constexpr const char* kGood =
    "version=1 unit=16384 log=12:305419896:00112233445566778899aabbccddeeff";

TEST(VolumeAttr, RoundTrip) {
    const VolumeAttr attr = must(VolumeAttr::parse(kGood));
    EXPECT_EQ(attr.unit, Bytes(16384));
    EXPECT_EQ(attr.log_inode, 12u);
    EXPECT_EQ(attr.log_generation, 305419896u);
    EXPECT_EQ(attr.log_id[0], 0x00);
    EXPECT_EQ(attr.log_id[15], 0xff);
    EXPECT_TRUE(attr.unknown.empty());
    EXPECT_EQ(attr.to_text(), kGood);
}

TEST(VolumeAttr, UnknownKeysAreKeptInOrder) {
    const std::string text = std::string(kGood) + " colour=blue flag x=1=2 colour=red";
    const VolumeAttr attr = must(VolumeAttr::parse(text));
    EXPECT_THAT(attr.unknown, testing::ElementsAre("colour=blue", "flag", "x=1=2", "colour=red"));
    EXPECT_EQ(attr.to_text(), text);
    // Wherever they stand.
    const VolumeAttr first = must(VolumeAttr::parse(std::string("a=b ") + kGood));
    EXPECT_THAT(first.unknown, testing::ElementsAre("a=b"));
    EXPECT_EQ(must(VolumeAttr::parse(first.to_text())).to_text(), first.to_text());
}

TEST(VolumeAttr, OrderOfKeysDoesNotMatter) {
    EXPECT_EQ(must(VolumeAttr::parse(
                       "log=12:305419896:00112233445566778899AABBCCDDEEFF unit=16384 version=1"))
                  .to_text(),
              kGood);
}

TEST(VolumeAttr, Damage) {
    const std::string log = "log=12:305419896:00112233445566778899aabbccddeeff";
    struct Row {
        std::string text;
        int code;
    };
    const std::vector<Row> rows{
        {"", EUCLEAN},
        {" ", EUCLEAN},
        {"garbage", EUCLEAN},
        {"version=1", EUCLEAN},
        {"version=1 unit=16384", EUCLEAN},
        {"unit=16384 " + log, EUCLEAN},
        {"version=1 " + log, EUCLEAN},
        {"version=1 version=1 unit=16384 " + log, EUCLEAN},
        {"version=1 unit=16384 unit=16384 " + log, EUCLEAN},
        {"version=1 unit=16384 " + log + " " + log, EUCLEAN},
        {"version=2 unit=16384 " + log, EOPNOTSUPP},
        {"version=0 unit=16384 " + log, EOPNOTSUPP},
        // Another version may have another form: nothing after it is judged.
        {"version=2 unit=banana", EOPNOTSUPP},
        {"version= unit=16384 " + log, EUCLEAN},
        {"version unit=16384 " + log, EUCLEAN},
        {"version=1x unit=16384 " + log, EUCLEAN},
        {"version=-1 unit=16384 " + log, EUCLEAN},
        {"version=99999999999 unit=16384 " + log, EUCLEAN},
        {"version=1 unit=0 " + log, EUCLEAN},
        {"version=1 unit=12288 " + log, EUCLEAN},
        {"version=1 unit=8388608 " + log, EUCLEAN},
        {"version=1 unit=16K " + log, EUCLEAN},
        {"version=1 unit=+16384 " + log, EUCLEAN},
        {"version=1 unit=16384 log=", EUCLEAN},
        {"version=1 unit=16384 log=12", EUCLEAN},
        {"version=1 unit=16384 log=12:5", EUCLEAN},
        {"version=1 unit=16384 log=0:5:00112233445566778899aabbccddeeff", EUCLEAN},
        {"version=1 unit=16384 log=12:0:00112233445566778899aabbccddeeff", EUCLEAN},
        {"version=1 unit=16384 log=12:5:00112233445566778899aabbccddeef", EUCLEAN},
        {"version=1 unit=16384 log=12:5:00112233445566778899aabbccddeeff0", EUCLEAN},
        {"version=1 unit=16384 log=12:5:00112233445566778899aabbccddeexx", EUCLEAN},
        {"version=1 unit=16384 log=12:5:0011223344556677-899aabbccddeef1", EUCLEAN},
        {"version=1 unit=16384 log=12:99999999999:00112233445566778899aabbccddeeff", EUCLEAN},
    };
    for (const Row& row : rows) {
        const auto attr = VolumeAttr::parse(row.text);
        EXPECT_EQ(code_of(attr), row.code) << row.text;
        EXPECT_FALSE(message_of(attr).empty());
    }
    EXPECT_THAT(message_of(VolumeAttr::parse("version=7 unit=16384 " + log)),
                HasSubstr("use a newer atomic4"));
}

// Two of them at the end were one less after each writing.
TEST(VolumeAttr, EmptyWordsAreDropped) {
    const std::string log = "log=12:5:00112233445566778899aabbccddeeff";
    const auto attr = must(VolumeAttr::parse("version=1  unit=16384 " + log + "   later=key  "));
    EXPECT_EQ(attr.to_text(), "version=1 unit=16384 " + log + " later=key");
}

}  // namespace
}  // namespace atomic4::test
