// Tests that run on both event loops: TEST_P of a fixture over EventLoop::Backend, and
//
//   INSTANTIATE_TEST_SUITE_P(Backends, SomethingTest, test::both_backends(), test::backend_name);
#pragma once

#include <gtest/gtest.h>

#include <string>

#include "device/event_loop.h"

namespace atomic4::test {

inline auto both_backends() {
    return testing::Values(EventLoop::Backend::Uring, EventLoop::Backend::Syscalls);
}
inline std::string backend_name(const testing::TestParamInfo<EventLoop::Backend>& info) {
    return info.param == EventLoop::Backend::Uring ? "io_uring" : "system_calls";
}

}  // namespace atomic4::test
