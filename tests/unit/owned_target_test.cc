// An owned volume for many clients: groups, order, engines, doubt, freezing and stopping.
#include "writer/owned_target.h"

#include <fcntl.h>
#include <sys/uio.h>

#include <algorithm>
#include <array>
#include <deque>
#include <numeric>
#include <random>

#include "support/fake_loop.h"
#include "support/fault_device.h"
#include "unit/writer_fixture.h"

namespace atomic4::test {
namespace {

using namespace std::chrono_literals;
using testing::ElementsAre;
using testing::HasSubstr;

constexpr uint64_t kUnit = 16384;

// Offers a descriptor for native writes, which the fake loop never uses as one.
class PortDevice final : public ForwardingDevice {
  public:
    using ForwardingDevice::ForwardingDevice;
    Result<AsyncPort> open_port() const override {
        return AsyncPort{UniqueFd(::open("/dev/null", O_RDWR | O_CLOEXEC)), Bytes(512), false};
    }
};

// How one operation ended.
struct Ended {
    bool ended = false;
    int code = 0;
    std::string message;
    WriteDone done;
};

class OwnedTargetTest : public WriterTest {
  protected:
    void SetUp() override {
        loop.write_now = [this](const FakeLoop::Write& write) {
            if (!results.empty()) {
                const int result = results.front();
                results.erase(results.begin());
                if (result != 0) return result;
            }
            must(memory->write(write.offset, write.from));
            return static_cast<int>(write.from.size());
        };
    }
    void TearDown() override {
        file.reset();
        target.reset();
        WriterTest::TearDown();
    }

    // A volume with a file of 16 units, all written, and a target on it.
    void serve(uint64_t log_size = 1 << 20, std::optional<AtomicLimits> limits = {}) {
        start_default("4096", log_size);
        if (limits) memory->set_atomic_limits(*limits);
        open();
        number = create("/f", 16 * kUnit, kUnit);
        close();
        serve_again();
    }
    void serve_again() {
        port = std::make_unique<PortDevice>(*recorder);
        faults = std::make_unique<FaultDevice>(*recorder);
        Device& below = with_port ? static_cast<Device&>(*port) : *faults;
        target = must(OwnedTarget::open(loop, must(open_for_writing(borrowed(below)))));
        target->on_group = [this](size_t size, Bytes) { groups.push_back(size); };
        file = must(target->open_file(number));
        recorder->events.clear();
    }
    std::shared_ptr<Ended> submit(std::unique_ptr<WriteOp> op) {
        auto ended = std::make_shared<Ended>();
        op->done = [this, ended](Result<WriteDone> result) {
            EXPECT_FALSE(ended->ended);
            EXPECT_FALSE(submitting) << "completions come from the loop";
            ended->ended = true;
            ended->code = code_of(result);
            ended->message = message_of(result);
            if (result) ended->done = *result;
            order.push_back(ended.get());
        };
        submitting = true;
        target->submit(std::move(op));
        submitting = false;
        return ended;
    }
    std::shared_ptr<Ended> write(uint64_t offset, std::span<const std::byte> data,
                                 Engine engine = Engine::Auto,
                                 WriteOp::Kind kind = WriteOp::Kind::Atomic) {
        auto op = std::make_unique<WriteOp>();
        op->kind = kind;
        op->engine = engine;
        op->ranges.push_back({file, ByteOffset(offset), data});
        return submit(std::move(op));
    }
    std::shared_ptr<Ended> batch(std::vector<WriteOp::Range> ranges) {
        auto op = std::make_unique<WriteOp>();
        op->kind = WriteOp::Kind::Batch;
        op->ranges = std::move(ranges);
        return submit(std::move(op));
    }
    WriteOp::Range at(uint64_t offset, std::span<const std::byte> data) {
        return {file, ByteOffset(offset), data};
    }
    Image read(uint64_t offset, uint64_t length) {
        Image bytes(length);
        std::optional<uint64_t> got;
        target->read(file, ByteOffset(offset), bytes,
                     [&](Result<Bytes> n) { got = must(std::move(n)).value(); });
        loop.run();
        EXPECT_TRUE(got.has_value());
        bytes.resize(got.value_or(0));
        return bytes;
    }
    int stop() {
        std::optional<int> code;
        target->stop([&](Result<> result) { code = code_of(result); });
        loop.run();
        return code.value_or(-1);
    }
    size_t count(Kind kind) const {
        return static_cast<size_t>(
            std::ranges::count(recorder->events, kind, &RecordingDevice::Event::kind));
    }
    // The process dies and a later one finds this.
    Image content_after_crash() {
        file.reset();
        target.reset();
        open();
        Image found = content(number);
        writer.reset();
        return found;
    }

    FakeLoop loop;
    std::unique_ptr<PortDevice> port;
    std::unique_ptr<FaultDevice> faults;
    std::unique_ptr<OwnedTarget> target;
    bool with_port = false;
    bool submitting = false;
    ext2_ino_t number = 0;
    FileRef file;
    std::vector<size_t> groups;
    std::vector<const Ended*> order;
    std::vector<int> results;  // of the next native writes; 0: done
};

// --- Logged --------------------------------------------------------------------------------------

TEST_F(OwnedTargetTest, WhatWaitsIsOneRecord) {
    serve();
    const auto data = filled(kUnit, 1);
    std::vector<std::shared_ptr<Ended>> all;
    for (uint64_t i = 0; i < 8; ++i) all.push_back(write(i * kUnit, data));
    EXPECT_FALSE(all[0]->ended);
    loop.run();
    for (const auto& one : all) {
        EXPECT_TRUE(one->ended);
        EXPECT_EQ(one->code, 0) << one->message;
        EXPECT_EQ(one->done.engine, Engine::Logged);
        EXPECT_EQ(one->done.ack, Ack::Exclusive);
    }
    EXPECT_THAT(groups, ElementsAre(8u));
    const TargetCounts counts = target->counts();
    EXPECT_EQ(counts.groups, 1u);
    EXPECT_EQ(counts.writes_logged, 8u);
    EXPECT_EQ(counts.bytes_logged, 8 * kUnit);
    EXPECT_EQ(counts.acks_exclusive, 8u);
    EXPECT_EQ(counts.live_records, 1u);
    EXPECT_EQ(file->writes_logged, 8u);
    // One log write, apart from the superblocks that begin the session.
    const auto record_writes = std::ranges::count_if(recorder->events, [](const auto& event) {
        return event.kind == Kind::DurableWrite && event.length.value() > 8 * kUnit;
    });
    EXPECT_EQ(record_writes, 1);
    EXPECT_TRUE(read(0, 8 * kUnit) == filled(8 * kUnit, 1));
    // And it is a record: it survives the loss of what was placed.
    file.reset();
    target.reset();
    spoil(number, 0, 8 * kUnit);
    const Image found = content_after_crash();
    EXPECT_TRUE(std::equal(found.begin(), found.begin() + 8 * kUnit, filled(8 * kUnit, 1).begin()));
}

TEST_F(OwnedTargetTest, GroupsAreNoLongerThanTheLogAllows) {
    serve(256 << 10);  // a quarter: not quite four units
    const auto data = filled(kUnit, 1);
    std::vector<std::shared_ptr<Ended>> all;
    for (uint64_t i = 0; i < 16; ++i) all.push_back(write(i * kUnit, data));
    loop.run();
    for (const auto& one : all) EXPECT_EQ(one->code, 0) << one->message;
    EXPECT_EQ(std::accumulate(groups.begin(), groups.end(), size_t{0}), 16u);
    EXPECT_LE(std::ranges::max(groups), 3u);
    EXPECT_GT(target->counts().retirements, 0u);
    EXPECT_TRUE(read(0, 16 * kUnit) == filled(16 * kUnit, 1));
}

TEST_F(OwnedTargetTest, OverlappingOnesKeepTheirOrder) {
    serve();
    std::vector<Image> data;
    for (unsigned i = 1; i <= 5; ++i) data.push_back(filled(i == 3 ? 4096 : kUnit, i));
    const auto a = write(0, data[0]);
    const auto b = write(0, data[1]);
    const auto c = write(4096, data[2]);
    const auto d = write(kUnit, data[3]);  // overlaps none: goes with the first
    const auto e = write(6144, std::span(data[4]).first(4096), Engine::Auto, WriteOp::Kind::Plain);
    loop.run();
    EXPECT_THAT(order, ElementsAre(a.get(), d.get(), b.get(), c.get(), e.get()));
    EXPECT_THAT(groups, ElementsAre(2u, 1u, 1u));
    Image want = filled(2 * kUnit, 2);
    std::fill_n(want.begin() + 4096, 4096, std::byte{3});
    std::fill_n(want.begin() + 6144, 4096, std::byte{5});
    std::fill_n(want.begin() + kUnit, kUnit, std::byte{4});
    EXPECT_TRUE(read(0, 2 * kUnit) == want);
    EXPECT_EQ(e->done.engine, Engine::Auto);
    EXPECT_EQ(e->done.ack, Ack::None);
    EXPECT_EQ(stop(), 0);
    EXPECT_EQ(fsck_complaints(memory->contents()), "");
}

TEST_F(OwnedTargetTest, EachItemFailsAlone) {
    serve();
    const auto data = filled(kUnit, 1);
    const auto good = write(0, data);
    const auto odd = write(4096, data);
    const auto empty = write(0, {});
    const auto native = write(kUnit, data, Engine::Native);
    const auto overlapping = batch({at(2 * kUnit, data), at(2 * kUnit + 4096, data)});
    const auto none = batch({});
    const auto too_long = batch({at(0, filled(512 << 10, 1))});
    const auto far = write(~uint64_t{0} - kUnit + 1, data);
    const auto good_too = write(3 * kUnit, data);
    EXPECT_FALSE(overlapping->ended);
    loop.run();
    EXPECT_EQ(good->code, 0);
    EXPECT_EQ(good_too->code, 0);
    EXPECT_EQ(odd->code, EINVAL);
    EXPECT_EQ(empty->code, EINVAL);
    EXPECT_EQ(native->code, EOPNOTSUPP);
    EXPECT_EQ(overlapping->code, EINVAL);
    EXPECT_EQ(none->code, EINVAL);
    EXPECT_EQ(too_long->code, EMSGSIZE);
    EXPECT_EQ(far->code, EFBIG);
    EXPECT_THAT(groups, ElementsAre(2u));
    EXPECT_EQ(target->poisoned(), nullptr);
}

TEST_F(OwnedTargetTest, NoSpaceFailsAlone) {
    serve();
    fill_up(target->volume(), 8);
    const auto data = filled(kUnit, 1);
    const auto a = write(0, data);
    const auto b = write(64 * kUnit, data);
    const auto c = write(640 * kUnit, data);
    const auto d = write(6400 * kUnit, data);
    const auto e = write(kUnit, data);
    loop.run();
    EXPECT_EQ(a->code, 0);
    EXPECT_EQ(e->code, 0);
    EXPECT_EQ(d->code, ENOSPC) << d->message;
    EXPECT_EQ(target->poisoned(), nullptr);
    EXPECT_EQ(stop(), 0);
    EXPECT_EQ(fsck_complaints(memory->contents()), "");
}

// Appends and writes into holes in one go: none sees the other's stale mapping.
TEST_F(OwnedTargetTest, GrowthAndHolesInAGroup) {
    serve(4 << 20);
    std::vector<Image> data;
    std::vector<std::shared_ptr<Ended>> all;
    Image want(16 * kUnit);
    const auto put = [&](uint64_t unit, unsigned value) {
        data.push_back(filled(kUnit, value));
        if (want.size() < (unit + 1) * kUnit) want.resize((unit + 1) * kUnit);
        std::fill_n(want.begin() + static_cast<ptrdiff_t>(unit * kUnit), kUnit,
                    static_cast<std::byte>(value));
    };
    const std::vector<std::vector<uint64_t>> rounds{{0, 40, 3, 16, 41}, {20, 21, 5, 30, 50, 39}};
    unsigned value = 0;
    for (const auto& round : rounds) {
        data.clear();
        for (const uint64_t unit : round) put(unit, ++value);
        for (size_t i = 0; i < round.size(); ++i) all.push_back(write(round[i] * kUnit, data[i]));
        loop.run();
    }
    for (const auto& one : all) EXPECT_EQ(one->code, 0) << one->message;
    EXPECT_TRUE(read(0, want.size()) == want);
    EXPECT_EQ(must(target->limits(file)).size.value(), want.size());
    // After a crash, and after a clean end.
    const Image now = memory->contents();
    EXPECT_TRUE(content_after_crash() == want);
    start(now);
    serve_again();
    EXPECT_EQ(stop(), 0);
    EXPECT_EQ(fsck_complaints(memory->contents()), "");
    EXPECT_TRUE(dump_file(memory->contents(), "/f") == want);
}

TEST_F(OwnedTargetTest, Batches) {
    serve();
    const auto one = filled(4096, 1);
    const auto two = filled(8192, 2);
    const auto b = batch({at(0, one), at(5 * 4096, two)});
    const auto w = write(8 * kUnit, std::span(two));
    loop.run();
    EXPECT_EQ(b->code, 0) << b->message;
    EXPECT_EQ(w->code, 0);
    EXPECT_THAT(groups, ElementsAre(2u));
    EXPECT_EQ(target->counts().batches, 1u);
    EXPECT_TRUE(read(0, 4096) == one);
    EXPECT_TRUE(read(5 * 4096, 8192) == two);
    // A crash within its placements: replay makes it whole.
    file.reset();
    target.reset();
    spoil(number, 5 * 4096, 8192);
    const Image found = content_after_crash();
    EXPECT_TRUE(std::equal(two.begin(), two.end(), found.begin() + 5 * 4096));
    EXPECT_TRUE(std::equal(one.begin(), one.end(), found.begin()));
}

TEST_F(OwnedTargetTest, RetiresWhenIdleAndWhenTheLastHandleCloses) {
    serve();
    const auto data = filled(kUnit, 1);
    write(0, data);
    loop.run();
    EXPECT_EQ(target->counts().live_records, 1u);
    loop.advance(100ms);
    write(0, data);
    loop.run();
    loop.advance(100ms);  // the timer looks, and finds that there was a write
    EXPECT_EQ(target->counts().live_records, 2u);
    loop.advance(200ms);
    EXPECT_EQ(target->counts().live_records, 0u);
    EXPECT_EQ(target->counts().retirements, 1u);
    loop.advance(1h);
    EXPECT_EQ(target->counts().retirements, 1u);

    write(0, data);
    loop.run();
    const FileRef again = must(target->open_file(number));
    EXPECT_EQ(again, file);
    EXPECT_EQ(target->counts().files, 1u);
    target->close(again);
    loop.run();
    EXPECT_EQ(target->counts().live_records, 1u);
    target->close(file);
    loop.run();
    EXPECT_EQ(target->counts().live_records, 0u);
    EXPECT_EQ(target->counts().files, 0u);
}

TEST_F(OwnedTargetTest, FreezeHoldsWritesAndRetires) {
    serve();
    const auto data = filled(kUnit, 1);
    const auto before = write(0, data);
    std::optional<int> frozen;
    target->freeze([&](Result<> result) { frozen = code_of(result); });
    const auto held_data = filled(kUnit, 2);
    const auto held_too_data = filled(kUnit, 3);
    const auto held = write(0, held_data);
    const auto held_too = write(0, held_too_data);
    loop.run();
    EXPECT_TRUE(before->ended);
    EXPECT_EQ(frozen, 0);
    EXPECT_EQ(target->counts().live_records, 0u);
    EXPECT_FALSE(held->ended);
    EXPECT_TRUE(read(0, kUnit) == data);
    recorder->events.clear();
    loop.run();
    EXPECT_TRUE(recorder->events.empty());
    target->thaw();
    loop.run();
    EXPECT_TRUE(held->ended);
    EXPECT_EQ(held_too->code, 0);
    EXPECT_TRUE(read(0, kUnit) == held_too_data);
    EXPECT_EQ(stop(), 0);
}

TEST_F(OwnedTargetTest, StopEndsTheSession) {
    serve();
    const auto data = filled(kUnit, 1);
    const auto last = write(0, data);
    EXPECT_EQ(stop(), 0);
    EXPECT_EQ(last->code, 0);
    EXPECT_FALSE(needs_replay());
    const auto late = write(0, data);
    loop.run();
    EXPECT_EQ(late->code, ESHUTDOWN);
    target.reset();
    EXPECT_FALSE(open());
    EXPECT_EQ(fsck_complaints(memory->contents()), "");
}

// Whichever write or flush fails: what was acknowledged is there after a restart, whole.
TEST_F(OwnedTargetTest, FailuresPoison) {
    for (uint64_t nth = 0; nth < 200; ++nth) {
        SCOPED_TRACE(nth);
        serve();
        faults->count_only({.reads = false, .zeros = false});
        faults->set_torn(true);
        faults->fail_at(nth, EIO, true);
        Image want(16 * kUnit);
        bool failed = false;
        std::vector<Image> data;
        for (unsigned round = 1; round <= 3; ++round) {
            std::vector<std::shared_ptr<Ended>> all;
            data.clear();
            for (uint64_t i = 0; i < 4; ++i) data.push_back(filled(kUnit, 16 * round + 1));
            for (uint64_t i = 0; i < 4; ++i) all.push_back(write(i * kUnit, data[i]));
            loop.run();
            for (uint64_t i = 0; i < 4; ++i) {
                ASSERT_TRUE(all[i]->ended);
                EXPECT_EQ(all[i]->code, all[0]->code);  // one record
                if (all[i]->code == 0) {
                    EXPECT_FALSE(failed) << "after a failure";
                    std::ranges::copy(data[i], want.begin() + static_cast<ptrdiff_t>(i * kUnit));
                } else {
                    EXPECT_EQ(all[i]->code, EIO);
                    failed = true;
                }
            }
            if (round == 2) loop.advance(1s);
        }
        const bool closed = stop() == 0;
        const bool fired = faults->fired();
        EXPECT_EQ(closed, !fired);
        EXPECT_EQ(target->poisoned() != nullptr, fired);
        const Image found = content_after_crash();
        for (uint64_t i = 0; i < 4; ++i) {
            const auto unit = std::span(found).subspan(i * kUnit, kUnit);
            EXPECT_TRUE(std::ranges::all_of(unit, [&](auto byte) { return byte == unit[0]; }));
            if (!failed) {
                EXPECT_TRUE(unit[0] == want[i * kUnit]);
            }
            EXPECT_GE(unit[0], want[i * kUnit]);
        }
        if (!fired) return;
    }
    FAIL() << "the fault was never reached";
}

// --- Native --------------------------------------------------------------------------------------

class OwnedNative : public OwnedTargetTest {
  protected:
    OwnedNative() { with_port = true; }
    void serve_native() { serve(1 << 20, native_limits(4096, kUnit)); }
    alignas(4096) std::array<std::byte, 4 * kUnit> aligned{};
    std::span<const std::byte> unit(size_t i, unsigned value) {
        const auto part = std::span(aligned).subspan(i * kUnit, kUnit);
        std::ranges::fill(part, static_cast<std::byte>(value));
        return part;
    }
};

TEST_F(OwnedNative, InParallelFromTheClientsMemory) {
    serve_native();
    loop.hold = true;
    std::vector<std::shared_ptr<Ended>> all;
    for (uint64_t i = 0; i < 3; ++i) all.push_back(write(i * kUnit, unit(i, 1)));
    EXPECT_FALSE(target->device_busy());
    loop.run();
    EXPECT_TRUE(target->device_busy());
    ASSERT_EQ(loop.pending.size(), 3u);
    for (size_t i = 0; i < 3; ++i) {
        EXPECT_EQ(loop.pending[i].from.data(), aligned.data() + i * kUnit);
        EXPECT_EQ(loop.flags_seen[i], 0x40 | RWF_DSYNC);
        EXPECT_TRUE(is_aligned(loop.pending[i].offset.value(), kUnit));
    }
    for (const size_t next : {2u, 0u, 0u}) loop.let_go(next);
    loop.run();
    EXPECT_THAT(order, ElementsAre(all[2].get(), all[0].get(), all[1].get()));
    for (const auto& one : all) EXPECT_EQ(one->done.engine, Engine::Native);
    EXPECT_FALSE(target->device_busy());
    EXPECT_EQ(target->counts().atomic_submissions, 3u);
    EXPECT_EQ(target->counts().writes_native, 3u);
    EXPECT_EQ(target->counts().groups, 0u);
    EXPECT_TRUE(read(0, 3 * kUnit) == filled(3 * kUnit, 1));
    EXPECT_FALSE(needs_replay());
    EXPECT_EQ(must(target->limits(file)).engine, Engine::Native);
    EXPECT_EQ(stop(), 0);
}

TEST_F(OwnedNative, UnalignedMemoryIsCopied) {
    serve_native();
    loop.hold = true;
    Image bytes = filled(kUnit + 1, 7);
    const auto one = write(0, std::span(bytes).subspan(1));
    loop.run();
    ASSERT_EQ(loop.pending.size(), 1u);
    EXPECT_TRUE(is_aligned(reinterpret_cast<uintptr_t>(loop.pending[0].from.data()), 4096));
    loop.let_go(0);
    loop.run();
    EXPECT_EQ(one->code, 0);
    EXPECT_TRUE(read(0, kUnit) == filled(kUnit, 7));
}

TEST_F(OwnedNative, OverlappingOnesWait) {
    serve_native();
    loop.hold = true;
    const auto a = write(0, unit(0, 1));
    const auto b = write(0, unit(1, 2), Engine::Logged);
    const auto c = write(4096, unit(2, 3).first(4096), Engine::Auto, WriteOp::Kind::Plain);
    const auto d = write(0, unit(3, 4).first(4096));
    const auto other = filled(kUnit, 9);
    const auto e = write(4 * kUnit, other, Engine::Logged);
    Image seen(kUnit);
    bool was_read = false;
    target->read(file, ByteOffset(0), seen, [&](const auto&) { was_read = true; });
    loop.run();
    EXPECT_TRUE(e->ended);
    EXPECT_FALSE(a->ended || b->ended || c->ended || d->ended || was_read);
    ASSERT_EQ(loop.pending.size(), 1u);
    EXPECT_GT(target->counts().live_records, 0u);
    loop.let_go(0);
    loop.run();
    EXPECT_TRUE(a->ended && b->ended && c->ended);
    // The native one over logged and plain bytes: they were retired first.
    ASSERT_EQ(loop.pending.size(), 1u);
    EXPECT_FALSE(d->ended || was_read);
    EXPECT_EQ(target->counts().live_records, 0u);
    loop.let_go(0);
    loop.run();
    EXPECT_TRUE(d->ended && was_read);
    Image want = filled(kUnit, 2);
    std::fill_n(want.begin(), 4096, std::byte{4});
    std::fill_n(want.begin() + 4096, 4096, std::byte{3});
    EXPECT_TRUE(seen == want);
}

TEST_F(OwnedNative, Refusals) {
    serve_native();
    for (const int code : {EINVAL, EOPNOTSUPP}) {
        results = {-code, -code};
        const auto forced = write(0, unit(0, 1), Engine::Native);
        loop.run();
        EXPECT_EQ(forced->code, code) << forced->message;
        const auto first = write(kUnit, unit(1, 2));
        const auto second = write(kUnit, unit(2, 3));  // waits for the detour
        loop.run();
        EXPECT_EQ(first->code, 0) << first->message;
        EXPECT_EQ(first->done.engine, Engine::Logged);
        EXPECT_EQ(second->done.engine, Engine::Native);
        EXPECT_TRUE(read(kUnit, kUnit) == filled(kUnit, 3));
        EXPECT_EQ(target->poisoned(), nullptr);
    }
    results = {-EINTR, -ENOSPC};
    const auto full = write(0, unit(0, 1));
    loop.run();
    EXPECT_EQ(full->code, ENOSPC);
    EXPECT_EQ(target->poisoned(), nullptr);
    EXPECT_EQ(stop(), 0);
}

TEST_F(OwnedNative, DoubtPoisons) {
    for (const int result : {-EIO, 8192}) {
        SCOPED_TRACE(result);
        serve_native();
        results = {result};
        const auto bad = write(0, unit(0, 1));
        const auto beside = write(kUnit, unit(1, 1));
        loop.run();
        EXPECT_EQ(bad->code, EIO);
        EXPECT_THAT(bad->message, HasSubstr("in doubt"));
        EXPECT_EQ(beside->code, 0);  // was under way, and is durable
        const auto later = write(kUnit, unit(1, 1));
        loop.run();
        EXPECT_EQ(later->code, EIO);
        ASSERT_NE(target->poisoned(), nullptr);
        EXPECT_THAT(*target->poisoned(), HasSubstr("native write"));
        EXPECT_EQ(stop(), EIO);
        file.reset();
        target.reset();
    }
}

TEST_F(OwnedNative, FreezeAndStopWaitForThem) {
    serve_native();
    loop.hold = true;
    const auto a = write(0, unit(0, 1));
    std::optional<int> frozen;
    target->freeze([&](Result<> result) { frozen = code_of(result); });
    loop.run();
    EXPECT_FALSE(frozen);
    loop.let_go(0);
    loop.run();
    EXPECT_EQ(frozen, 0);
    const auto b = write(0, unit(1, 2));
    loop.run();
    EXPECT_TRUE(loop.pending.empty());
    std::optional<int> stopped;
    target->stop([&](Result<> result) { stopped = code_of(result); });
    loop.run();
    EXPECT_FALSE(stopped);
    ASSERT_EQ(loop.pending.size(), 1u);
    loop.let_go(0);
    loop.run();
    EXPECT_TRUE(a->ended && b->ended);
    EXPECT_EQ(stopped, 0);
    // Gone while one is under way: the late completion finds nobody.
    target.reset();
    serve_again();
    write(0, unit(0, 3));
    loop.run();
    file.reset();
    target.reset();
    loop.let_go(0);
    loop.run();
}

TEST_F(OwnedNative, WithoutADescriptorOneAtATime) {
    with_port = false;
    serve_native();
    const auto a = write(0, unit(0, 1));
    const auto b = write(0, unit(1, 2), Engine::Native);
    loop.run();
    EXPECT_EQ(a->done.engine, Engine::Native);
    EXPECT_EQ(b->done.engine, Engine::Native);
    EXPECT_TRUE(loop.flags_seen.empty());
    EXPECT_EQ(count(Kind::AtomicWrite), 2u);
    EXPECT_TRUE(read(0, kUnit) == filled(kUnit, 2));
}

// Everything at once, against a model; completions in random order.
TEST_F(OwnedNative, RandomAgainstAModel) {
    for (const uint64_t seed : {1u, 2u, 3u}) {
        SCOPED_TRACE(seed);
        std::mt19937_64 random(seed);
        serve_native();
        loop.hold = true;
        results.clear();
        Image want(16 * kUnit);
        std::deque<Image> memory_of_clients;
        std::vector<std::shared_ptr<Ended>> all;
        for (int step = 0; step < 600; ++step) {
            const uint64_t length = uint64_t{4096} << random() % 3;
            const uint64_t offset = round_down(random() % (want.size() - length), length);
            Image& data = memory_of_clients.emplace_back(length + 1, std::byte(random()));
            const auto bytes = std::span(data).subspan(random() % 2, length);
            const auto kind = random() % 8;
            if (kind == 0) {
                all.push_back(write(offset, bytes, Engine::Auto, WriteOp::Kind::Plain));
            } else if (kind == 1 && offset >= length) {
                all.push_back(batch({at(offset, bytes), at(offset - length, bytes)}));
                std::ranges::copy(bytes, want.begin() + static_cast<ptrdiff_t>(offset - length));
            } else {
                all.push_back(write(offset, bytes, kind < 4 ? Engine::Logged : Engine::Auto));
            }
            std::ranges::copy(bytes, want.begin() + static_cast<ptrdiff_t>(offset));
            if (random() % 4 == 0) loop.run();
            if (!loop.pending.empty() && random() % 2 == 0)
                loop.let_go(random() % loop.pending.size());
            if (random() % 100 == 0) loop.advance(1s);
        }
        loop.hold = false;
        while (!loop.pending.empty()) {
            loop.let_go(random() % loop.pending.size());
            loop.run();
        }
        loop.run();
        for (const auto& one : all) ASSERT_EQ(one->code, 0) << one->message;
        EXPECT_TRUE(read(0, want.size()) == want);
        EXPECT_GT(target->counts().writes_native, 100u);
        EXPECT_GT(target->counts().writes_logged, 100u);
        EXPECT_EQ(stop(), 0);
        EXPECT_EQ(fsck_complaints(memory->contents()), "");
        EXPECT_TRUE(dump_file(memory->contents(), "/f") == want);
        file.reset();
        target.reset();
    }
}

}  // namespace
}  // namespace atomic4::test
