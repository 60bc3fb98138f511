// What tests ask of a Result.
#pragma once

#include <stdexcept>
#include <string>
#include <utility>

#include "base/result.h"

namespace atomic4::test {

// The value of a result that a test can't go on without.
template <class T>
T must(Result<T> result) {
    if (!result) throw std::runtime_error(result.error().message);
    if constexpr (!std::is_void_v<T>) return std::move(*result);
}

// 0, or the errno of the error.
template <class T>
int code_of(const Result<T>& result) {
    return result ? 0 : result.error().code;
}
template <class T>
std::string message_of(const Result<T>& result) {
    return result ? std::string() : result.error().message;
}

}  // namespace atomic4::test
