// The rules of an atomic write on an owned volume: what is refused, and with which errno.
#include "writer/write_rules.h"

#include "unit/writer_fixture.h"

namespace atomic4::test {
namespace {

using testing::HasSubstr;

constexpr uint64_t kKiB = 1024;
constexpr uint64_t kMiB = 1024 * kKiB;

TEST(Engines, Names) {
    for (const Engine engine : {Engine::Auto, Engine::Native, Engine::Logged})
        EXPECT_EQ(must(parse_engine(to_text(engine))), engine);
    for (const char* text : {"", "Auto", "raw", "auto ", "?"}) {
        EXPECT_EQ(code_of(parse_engine(text)), EINVAL) << text;
        EXPECT_THAT(message_of(parse_engine(text)), HasSubstr("want auto, native or logged"));
    }
}

// The order is mainline's (F14): size, power of two, offset.
TEST(CheckRequest, Table) {
    struct Row {
        uint64_t offset, length;
        int code;
        const char* words;
    };
    for (const Row& row : {Row{0, 4096, 0, ""},
                           {4096, 4096, 0, ""},
                           {1 << 20, 65536, 0, ""},
                           {0, 0, EINVAL, "outside the limits 4096..65536"},
                           {0, 2048, EINVAL, "outside the limits"},
                           {0, 131072, EINVAL, "outside the limits"},
                           {1, 3000, EINVAL, "outside the limits"},
                           {1, 100'000, EINVAL, "outside the limits"},
                           {0, 4095, EINVAL, "outside the limits"},
                           {0, 4097, EINVAL, "not a power of two"},
                           {1, 12288, EINVAL, "not a power of two"},
                           {0, 65535, EINVAL, "not a power of two"},
                           {1, 4096, EINVAL, "not a multiple of the length"},
                           {512, 4096, EINVAL, "not a multiple of the length"},
                           {4096, 8192, EINVAL, "not a multiple of the length"},
                           {32768, 65536, EINVAL, "not a multiple of the length"},
                           {~uint64_t{0} - 4095, 4096, EFBIG, "too large"},
                           {~uint64_t{0}, 4096, EINVAL, "not a multiple"}}) {
        const auto done =
            check_request(ByteOffset(row.offset), Bytes(row.length), Bytes(4096), Bytes(65536));
        EXPECT_EQ(code_of(done), row.code) << row.length << " at " << row.offset;
        EXPECT_THAT(message_of(done), HasSubstr(row.words));
    }
}

class Rules : public WriterTest {};

TEST_F(Rules, Files) {
    start_default();
    open();
    const auto number = create_plain("/f");
    const FileState good = must(writer->file(number));
    Volume& volume = writer->volume();
    EXPECT_TRUE(check_file(volume, good));
    struct Row {
        std::function<void(FileState&)> edit;
        int code;
        const char* words;
    };
    const auto flag = [](uint32_t bit) { return [bit](FileState& f) { f.inode.i_flags |= bit; }; };
    const auto type = [](uint16_t mode) { return [mode](FileState& f) { f.inode.i_mode = mode; }; };
    const std::vector<Row> rows{
        {type(LINUX_S_IFDIR | 0755), EISDIR, "is a directory"},
        {type(LINUX_S_IFLNK | 0777), EINVAL, "not a regular file"},
        {type(LINUX_S_IFIFO | 0644), EINVAL, "not a regular file"},
        {type(LINUX_S_IFBLK | 0644), EINVAL, "not a regular file"},
        {[&](FileState& f) { f.number = volume.attr()->log_inode; }, EPERM, "the redo log"},
        {[&](FileState& f) { f.number = must(lookup(volume, "/.atomic4/lock")); }, EPERM,
         "the volume's lock file"},
        {flag(EXT2_APPEND_FL), EPERM, "append-only"},
        {flag(EXT2_IMMUTABLE_FL), EPERM, "immutable"},
        {flag(EXT4_ENCRYPT_FL), EOPNOTSUPP, "encrypted"},
        {flag(EXT4_VERITY_FL), EOPNOTSUPP, "verity"},
        {flag(EXT2_COMPR_FL), EOPNOTSUPP, "compressed"},
        {flag(EXT4_INLINE_DATA_FL), EOPNOTSUPP, "inline_data"},
        {flag(EXT3_JOURNAL_DATA_FL), EIO, "data=journal"},
        {[](FileState& f) { f.generation = 0; }, EOPNOTSUPP, "generation 0"},
        {flag(EXT2_SYNC_FL | EXT2_NOATIME_FL | EXT2_NODUMP_FL), 0, ""},
    };
    for (const Row& row : rows) {
        FileState file = good;
        row.edit(file);
        const auto done = check_file(volume, file);
        EXPECT_EQ(code_of(done), row.code) << row.words;
        EXPECT_THAT(message_of(done), HasSubstr(row.words));
    }
}

TEST_F(Rules, VolumeInJournalMode) {
    for (const auto& [options, code] : {std::pair<uint32_t, int>{EXT3_DEFM_JMODE_DATA, EIO},
                                        {EXT3_DEFM_JMODE_ORDERED, 0},
                                        {EXT3_DEFM_JMODE_WBACK, 0},
                                        {0u, 0}}) {
        start_default();
        edit_super(memory->contents(), [&](auto& s) {
            s.s_default_mount_opts =
                (s.s_default_mount_opts & ~uint32_t{EXT3_DEFM_JMODE}) | options;
        });
        open();
        const auto number = create("/f", 65536, 4096);
        const auto done = write(number, 0, filled(4096, 1));
        EXPECT_EQ(code_of(done), code) << options;
        if (code != 0) {
            EXPECT_THAT(message_of(done), HasSubstr("tune2fs -o ^journal_data"));
        }
    }
}

// The same through the writer: each kind of call refuses each kind of file, and nothing changes.
TEST_F(Rules, FilesThroughTheWriter) {
    start_default();
    open();
    const auto number = create("/f", 65536, 4096);
    must(write(number, 0, filled(4096, 1)));
    close();
    struct Row {
        std::function<void(ext2_inode&)> edit;
        int code;
    };
    const auto flag = [](uint32_t bit) { return [bit](ext2_inode& i) { i.i_flags |= bit; }; };
    const Image image = memory->contents();
    for (const Row& row : {Row{flag(EXT2_APPEND_FL), EPERM},
                           {flag(EXT2_IMMUTABLE_FL), EPERM},
                           {flag(EXT4_ENCRYPT_FL), EOPNOTSUPP},
                           {flag(EXT4_VERITY_FL), EOPNOTSUPP},
                           {flag(EXT3_JOURNAL_DATA_FL), EIO},
                           {[](ext2_inode& i) { i.i_generation = 0; }, EOPNOTSUPP}}) {
        start(image);
        edit_inode(number, row.edit);
        open();
        const Image before = memory->contents();
        const auto data = filled(4096, 2);
        for (const Engine engine : {Engine::Auto, Engine::Native, Engine::Logged})
            EXPECT_EQ(code_of(write(number, 0, data, engine)), row.code);
        EXPECT_EQ(code_of(writer->write_plain(range(number, 0, data))), row.code);
        const WriteRange one = range(number, 0, data);
        EXPECT_EQ(code_of(writer->write_batch(std::span(&one, 1))), row.code);
        EXPECT_TRUE(memory->contents() == before);
    }
    start(image);
    open();
    const auto data = filled(4096, 2);
    for (const ext2_ino_t inode : {writer->volume().attr()->log_inode, ext2_ino_t{EXT2_ROOT_INO}}) {
        const int code = inode == EXT2_ROOT_INO ? EISDIR : EPERM;
        EXPECT_EQ(code_of(write(inode, 0, data)), code);
        EXPECT_EQ(code_of(writer->write_plain(range(inode, 0, data))), code);
    }
}

TEST_F(Rules, Stale) {
    start_default();
    open();
    const auto number = create("/f", 65536, 4096);
    const auto data = filled(4096, 2);
    WriteRange wrong = range(number, 0, data);
    wrong.generation ^= 1;
    EXPECT_EQ(code_of(writer->write(wrong)), ESTALE);
    EXPECT_EQ(code_of(writer->write_plain(wrong)), ESTALE);
    EXPECT_EQ(code_of(writer->write_batch(std::span(&wrong, 1))), ESTALE);
    wrong.inode = 1 << 20;
    EXPECT_EQ(code_of(writer->write(wrong)), ESTALE);
    EXPECT_EQ(code_of(writer->file(number + 1)), ESTALE);
    // Stale comes before what is wrong with the request.
    wrong.offset = ByteOffset(1);
    EXPECT_EQ(code_of(writer->write(wrong)), ESTALE);
    EXPECT_EQ(writer->live_records(), 0u);
    EXPECT_FALSE(needs_replay());
}

TEST_F(Rules, Limits) {
    start_default("1024", 256 << 10);
    open();
    // A quarter of 240 KiB is 60 KiB.
    EXPECT_EQ(writer->log_unit_max(), Bytes(32768));
    WriteLimits limits = write_limits(writer->volume(), writer->log_unit_max());
    EXPECT_EQ(limits.unit_min, Bytes(1024));
    EXPECT_EQ(limits.unit_max_logged, Bytes(32768));
    EXPECT_EQ(limits.unit_max_native, Bytes(0));
    EXPECT_EQ(limits.segments_max, 1u);
    EXPECT_EQ(limits.why_not_native, "this is memory");
    EXPECT_EQ(limits.unit_max(), Bytes(32768));
    memory->set_atomic_limits(native_limits(4096, 64 * kMiB));
    limits = write_limits(writer->volume(), writer->log_unit_max());
    EXPECT_EQ(limits.unit_max_native, Bytes(4 * kMiB));
    EXPECT_EQ(limits.unit_max(), Bytes(4 * kMiB));
    memory->set_atomic_limits(native_limits(512, 16384));
    EXPECT_EQ(write_limits(writer->volume(), writer->log_unit_max()).unit_max(), Bytes(32768));
    // A large log promises no more than 4 MiB.
    start(make_dirty_atomic4(64 << 20, {"-b", "4096"}, log_of(24 << 20)));
    open();
    EXPECT_EQ(writer->log_unit_max(), Bytes(4 * kMiB));
}

// xfstests' table: each power of two from unit_min to unit_max works, what is not in it is EINVAL.
TEST_F(Rules, EverySizeAndNoOther) {
    for (const char* block_size : {"1024", "4096"}) {
        SCOPED_TRACE(block_size);
        start_default(block_size, kMiB);
        open();
        const uint64_t min = writer->volume().block_size().value();
        const uint64_t max = writer->log_unit_max().value();
        ASSERT_EQ(max, 128 * kKiB);
        const auto mapped = create("/mapped", 512 * kKiB, 16384);
        const auto hole = create_plain("/hole");
        const auto grown = create("/grown", 0, 16384);
        int n = 0;
        Image want_grown;
        for (uint64_t length = min; length <= max; length *= 2) {
            SCOPED_TRACE(length);
            const auto data = filled(length, static_cast<unsigned>(++n));
            for (const uint64_t offset : {uint64_t{0}, length, 512 * kKiB - length}) {
                must(write(mapped, offset, data, Engine::Logged));
                Image got(length);
                EXPECT_EQ(must(writer->read(mapped, ByteOffset(offset), got)), Bytes(length));
                EXPECT_TRUE(got == data);
            }
            must(write(hole, kMiB + length, data));
            must(write(hole, 8 * length, data));
            must(write(grown, round_up(want_grown.size(), length), data));
            want_grown.resize(round_up(want_grown.size(), length));
            want_grown.insert(want_grown.end(), data.begin(), data.end());
            EXPECT_EQ(size_of(grown), want_grown.size());

            for (const auto& [offset, bytes] :
                 std::vector<std::pair<uint64_t, uint64_t>>{{0, length - 1},
                                                            {0, length + 1},
                                                            {1, length},
                                                            {512, length},
                                                            {length / 2, length},
                                                            {0, min / 2},
                                                            {0, 2 * max},
                                                            {0, 0}}) {
                for (const Engine engine : {Engine::Auto, Engine::Logged, Engine::Native}) {
                    if (engine == Engine::Native && bytes == 2 * max) continue;
                    EXPECT_EQ(code_of(write(mapped, offset, filled(bytes, 9), engine)), EINVAL)
                        << bytes << " at " << offset << " " << to_text(engine);
                }
            }
            for (const Engine engine : {Engine::Auto, Engine::Logged, Engine::Native})
                EXPECT_EQ(
                    code_of(write(mapped, ~uint64_t{0} - length + 1, filled(length, 9), engine)),
                    EFBIG);
        }
        EXPECT_TRUE(content(grown) == want_grown);
        close();
        EXPECT_EQ(fsck_complaints(memory->contents()), "");
        EXPECT_TRUE(dump_file(memory->contents(), "/grown") == want_grown);
    }
}

// Forced native where there is no hardware: EOPNOTSUPP, but what is wrong with the request first.
TEST_F(Rules, ForcedNativeWithoutHardware) {
    start_default();
    open();
    const auto number = create("/f", 65536, 16384);
    const Image before = memory->contents();
    const auto refused = write(number, 0, filled(4096, 1), Engine::Native);
    EXPECT_EQ(code_of(refused), EOPNOTSUPP);
    EXPECT_THAT(message_of(refused), HasSubstr("this is memory"));
    EXPECT_EQ(code_of(write(number, 0, filled(4096, 1), Engine::Native)), EOPNOTSUPP);
    EXPECT_EQ(code_of(write(number, 1 << 20, filled(4096, 1), Engine::Native)), EOPNOTSUPP);
    EXPECT_EQ(code_of(write(number, 0, filled(3000, 1), Engine::Native)), EINVAL);
    EXPECT_EQ(code_of(write(number, 512, filled(4096, 1), Engine::Native)), EINVAL);
    EXPECT_TRUE(memory->contents() == before);
    // Auto says why it was logged.
    const WriteOutcome outcome = must(write(number, 0, filled(4096, 1)));
    EXPECT_EQ(outcome.engine, Engine::Logged);
    EXPECT_THAT(outcome.why_not_native, HasSubstr("this is memory"));
    EXPECT_EQ(must(write(number, 0, filled(4096, 1), Engine::Logged)).why_not_native, "");
}

TEST_F(Rules, NativeTable) {
    start_default();
    memory->set_atomic_limits(native_limits(4096, 65536, 32768));
    open();
    const Volume& volume = writer->volume();
    RangeShape good;
    good.one_written_run = true;
    good.device_offset = ByteOffset(1 << 20);
    struct Row {
        std::function<void(RangeShape&)> edit;
        uint64_t length;
        int code;
        const char* words;
    };
    const auto same = [](RangeShape&) {};
    for (const Row& row : std::vector<Row>{
             {same, 4096, 0, ""},
             {same, 32768, 0, ""},
             {same, 2048, EINVAL, "limits 4096..65536"},
             {same, 131072, EINVAL, "limits 4096..65536"},
             {same, 65536, EINVAL, "crosses the device's atomic boundary"},
             {[](auto& s) { s.beyond_eof = true; }, 4096, EIO, "beyond EOF"},
             {[](auto& s) { s.holes = true; }, 4096, EIO, "holes"},
             {[](auto& s) { s.unwritten = true; }, 4096, EIO, "unwritten"},
             {[](auto& s) { s.one_written_run = false; }, 4096, EIO, "not one contiguous run"},
             {[](auto& s) { s.device_offset = ByteOffset(1024); }, 4096, EIO, "not a multiple"},
             {[](auto& s) { s.device_offset = ByteOffset(4096); }, 8192, EIO, "not a multiple"}}) {
        RangeShape shape = good;
        row.edit(shape);
        const auto done = check_native(volume, shape, Bytes(row.length));
        EXPECT_EQ(code_of(done), row.code) << row.words;
        EXPECT_THAT(message_of(done), HasSubstr(row.words));
    }
}

TEST_F(Rules, NativeForTheFileAsAWhole) {
    start_default();
    open();
    const Volume& volume = writer->volume();
    const FileState one = must(writer->file(create("/1k", 65536, 1024)));
    const FileState four = must(writer->file(create("/4k", 65536, 4096)));
    EXPECT_EQ(why_not_native(volume, four, 0), "this is memory");
    memory->set_atomic_limits(native_limits(4096, 2 * kMiB));
    EXPECT_EQ(why_not_native(volume, one, 0), "the device's smallest atomic write is 4K");
    EXPECT_EQ(why_not_native(volume, four, 0), "");
    EXPECT_EQ(why_not_native(volume, four, 2), "2 units lost the layout");
    // As a write of one unit then goes.
    EXPECT_EQ(must(write(one.number, 0, filled(1024, 1))).engine, Engine::Logged);
    EXPECT_EQ(must(write(four.number, 0, filled(4096, 1))).engine, Engine::Native);
    memory->set_atomic_limits(native_limits(512, 2048));
    EXPECT_EQ(why_not_native(volume, four, 0), "the device's largest atomic write is 2K");
    EXPECT_EQ(why_not_native(volume, one, 0), "");
    memory->set_atomic_limits(native_limits(512, 65536, 2048));
    EXPECT_THAT(why_not_native(volume, four, 0), HasSubstr("not cross multiples of 2K"));
    EXPECT_EQ(why_not_native(volume, one, 0), "");
    FileState plain = one;
    plain.atomic = false;
    EXPECT_THAT(why_not_native(volume, plain, 0), HasSubstr("no atomic flag"));
}

TEST_F(Rules, LongerThanTheLogTakes) {
    start_default("1024", 256 << 10);
    memory->set_atomic_limits(native_limits(1024, 65536));
    open();
    ASSERT_EQ(writer->log_unit_max(), Bytes(32768));
    const auto number = create("/f", 65536, 4096);
    const auto done = write(number, 65536, filled(65536, 1));
    EXPECT_EQ(code_of(done), EIO);
    EXPECT_THAT(message_of(done), HasSubstr("beyond EOF"));
    EXPECT_THAT(message_of(done), HasSubstr("the logged engine takes at most 32768 bytes here"));
}

TEST_F(Rules, Batches) {
    start_default("1024", 256 << 10);
    open();
    const auto a = create("/a", 65536, 4096);
    const auto b = create("/b", 65536, 4096);
    const Image before = memory->contents();
    const auto data = filled(200'000, 7);
    const auto part = [&](ext2_ino_t inode, uint64_t offset, uint64_t length) {
        return range(inode, offset, std::span(data).first(length));
    };
    struct Row {
        std::vector<WriteRange> ranges;
        int code;
        const char* words;
    };
    for (const Row& row : std::vector<Row>{
             {{}, EINVAL, "without ranges"},
             {{part(a, 0, 0)}, EINVAL, "no multiples of the block size 1024"},
             {{part(a, 0, 1000)}, EINVAL, "no multiples"},
             {{part(a, 512, 1024)}, EINVAL, "no multiples"},
             {{part(a, 0, 1024), part(b, 100, 1024)}, EINVAL, "batch range 1"},
             {{part(a, ~uint64_t{0} - 1023, 1024)}, EFBIG, "too large"},
             {{part(a, 0, 2048), part(a, 1024, 1024)}, EINVAL, "ranges 0 and 1 overlap"},
             {{part(a, 1024, 1024), part(b, 0, 1024), part(a, 0, 4096)},
              EINVAL,
              "ranges 0 and 2 overlap"},
             {{part(a, 0, 1024), part(a, 0, 1024)}, EINVAL, "overlap"},
             {{part(a, 0, 60 * 1024), part(b, 0, 1024)}, EMSGSIZE, "a quarter of the log"},
             {{part(a, 0, 1024), part(EXT2_ROOT_INO, 0, 1024)}, EISDIR, "directory"}}) {
        const auto done = writer->write_batch(row.ranges);
        EXPECT_EQ(code_of(done), row.code) << row.words;
        EXPECT_THAT(message_of(done), HasSubstr(row.words));
    }
    EXPECT_TRUE(memory->contents() == before);
    // Neighbours, several files, sizes that are no powers of two, exactly a quarter of the log.
    EXPECT_TRUE(writer->write_batch(
        std::vector{part(a, 0, 3072), part(a, 3072, 1024), part(b, 5 * 1024, 56 * 1024)}));
    EXPECT_EQ(writer->live_records(), 1u);
}

}  // namespace
}  // namespace atomic4::test
