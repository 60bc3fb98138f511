// Work beside the event loop: in order within a lane, lanes beside each other.
#include "writer/helper_threads.h"

#include <gmock/gmock.h>

#include <array>
#include <atomic>
#include <future>

#include "support/backends.h"

namespace atomic4::test {
namespace {

using ::testing::ElementsAre;

class HelperThreadsTest : public ::testing::TestWithParam<EventLoop::Backend> {
  protected:
    void start(size_t threads) {
        loop_ = EventLoop::create(GetParam()).value();
        helpers_ = HelperThreads::start(*loop_, threads).value();
    }
    // Work that lasts until its promise is kept.
    void run_until_told(HelperThreads::Lane lane, std::promise<void>& told, int result) {
        helpers_->run(
            lane,
            [waits = told.get_future().share(), result] {
                waits.wait();
                return result;
            },
            [this](int done) { done_.push_back(done); });
    }
    void run(HelperThreads::Lane lane, int result) {
        helpers_->run(
            lane, [result] { return result; }, [this](int done) { done_.push_back(done); });
    }
    void until_done(size_t count) {
        while (done_.size() < count) ASSERT_TRUE(loop_->run_once());
    }

    std::unique_ptr<EventLoop> loop_;
    std::unique_ptr<HelperThreads> helpers_;
    std::vector<int> done_;
};

TEST_P(HelperThreadsTest, ALaneKeepsItsOrderHoweverManyThreads) {
    start(4);
    std::atomic<int> running = 0;
    std::atomic<bool> alone = true;
    std::vector<int> expected;
    for (int i = 0; i < 200; ++i) {
        helpers_->run(
            7,
            [&, i] {
                if (++running > 1) alone = false;
                --running;
                return i;
            },
            [this](int done) { done_.push_back(done); });
        expected.push_back(i);
    }
    until_done(200);
    EXPECT_EQ(done_, expected);
    EXPECT_TRUE(alone);
}

// Each of these waits for ever, and none has been begun when the next comes.
TEST_P(HelperThreadsTest, ThereAreAsManyThreadsAsLanesThatWait) {
    start(8);
    std::array<std::promise<void>, 7> told;
    for (size_t i = 0; i < told.size(); ++i) run_until_told(i, told[i], 0);
    for (size_t i = 0; i < told.size(); ++i) run(i, 0);
    run(100, 1);
    run(101, 2);
    until_done(2);
    EXPECT_THAT(done_, ElementsAre(1, 2));
    for (auto& one : told) one.set_value();
    until_done(2 + 2 * told.size());
}

TEST_P(HelperThreadsTest, ALaneThatWaitsHoldsUpNoOther) {
    start(2);
    std::promise<void> told;
    run_until_told(1, told, 1);
    run(1, 2);
    run(1, 3);
    run(2, 10);
    run(3, 20);
    until_done(2);
    EXPECT_THAT(done_, ElementsAre(10, 20));
    told.set_value();
    until_done(5);
    EXPECT_THAT(done_, ElementsAre(10, 20, 1, 2, 3));
}

TEST_P(HelperThreadsTest, WhatComesFirstIsBegunFirst) {
    start(1);
    std::promise<void> told;
    run_until_told(1, told, 1);
    run(2, 2);
    run(1, 3);
    run(3, 4);
    told.set_value();
    until_done(4);
    EXPECT_THAT(done_, ElementsAre(1, 2, 3, 4));
}

TEST_P(HelperThreadsTest, TheEndWaitsForWhatRunsAndDropsTheRest) {
    start(1);
    std::promise<void> told;
    std::promise<void> begun;
    std::atomic<bool> finished = false;
    helpers_->run(
        1,
        [&] {
            begun.set_value();
            told.get_future().wait();
            finished = true;
            return 0;
        },
        [this](int done) { done_.push_back(done); });
    run(1, 2);
    begun.get_future().wait();
    std::thread teller([&] { told.set_value(); });
    helpers_.reset();
    teller.join();
    EXPECT_TRUE(finished);
    EXPECT_TRUE(done_.empty());
}

INSTANTIATE_TEST_SUITE_P(Backends, HelperThreadsTest, both_backends(), backend_name);

}  // namespace
}  // namespace atomic4::test
