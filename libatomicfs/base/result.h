// Errors as values.
//
// Every fallible function of the library returns Result<T>. Discarding one fails the build
// (tl::expected 1.0 is not [[nodiscard]], hence the derived class). An Error is an errno value plus
// a sentence; each layer adds what it was doing in front ("redo log: record 42: write at 8192:
// Input/output error"). Nothing throws across a library, C or thread boundary.
//
// There is one conversion from errno (Error::from_errno) and one from libext2fs's errcode_t
// (ext4/errcode.h).
#pragma once

#include <fmt/format.h>

#include <cerrno>
#include <string>
#include <string_view>
#include <tl/expected.hpp>
#include <utility>

namespace atomic4 {

struct Error {
    int code = EIO;  // errno value: the machine-readable half
    std::string message;

    // "what: strerror(code)".
    static Error from_errno(int code, std::string_view what);

    Error with_context(std::string_view doing) && {
        message.insert(0, ": ").insert(0, doing);
        return std::move(*this);
    }
};

template <class T = void>
class [[nodiscard]] Result : public tl::expected<T, Error> {
  public:
    using Base = tl::expected<T, Error>;
    using Base::Base;

    // Adds what the caller was doing in front of an error's message.
    Result context(std::string_view doing) && {
        if (this->has_value()) return std::move(*this);
        return tl::unexpected<Error>(std::move(this->error()).with_context(doing));
    }
};

inline tl::unexpected<Error> fail(Error error) {
    return tl::unexpected<Error>(std::move(error));
}

// fail(ENOSPC, "no aligned free run of {} blocks", n)
template <class... Args>
tl::unexpected<Error> fail(int code, fmt::format_string<Args...> format, Args&&... args) {
    return tl::unexpected<Error>(Error{code, fmt::format(format, std::forward<Args>(args)...)});
}

}  // namespace atomic4

// Unwraps a Result<T>, or returns its error from the enclosing function.
#define A4_TRY(expression)                                                           \
    ({                                                                               \
        auto a4_result = (expression);                                               \
        if (!a4_result.has_value())                                                  \
            return ::tl::unexpected<::atomic4::Error>(std::move(a4_result).error()); \
        std::move(a4_result).value();                                                \
    })

// The same for Result<void>.
#define A4_CHECK(expression)                                                         \
    do {                                                                             \
        auto a4_result = (expression);                                               \
        if (!a4_result.has_value())                                                  \
            return ::tl::unexpected<::atomic4::Error>(std::move(a4_result).error()); \
    } while (false)
