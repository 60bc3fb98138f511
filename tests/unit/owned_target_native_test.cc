// Native writes to an owned volume for many clients: in parallel, apart from what overlaps them.
#include <sys/uio.h>

#include <array>
#include <deque>
#include <random>

#include "unit/owned_target_fixture.h"

namespace atomic4::test {
namespace {

using namespace std::chrono_literals;
using testing::ElementsAre;
using testing::HasSubstr;

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
