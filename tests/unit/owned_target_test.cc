// An owned volume for many clients: groups, order, batches, doubt, freezing and stopping.
#include "writer/owned_target.h"

#include <numeric>

#include "unit/owned_target_fixture.h"

namespace atomic4::test {
namespace {

using namespace std::chrono_literals;
using testing::ElementsAre;

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

}  // namespace
}  // namespace atomic4::test
