#include "common/context.h"

#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include <iostream>

#include "base/text.h"
#include "device/ownership.h"

namespace atomic4::tools {

namespace {

Result<std::unique_ptr<Device>> open_file_device(const std::string& path, Access access,
                                                 Sharing sharing, bool direct) {
    FileDeviceOptions options;
    options.access = access;
    options.exclusive = sharing == Sharing::Exclusive;
    options.direct = direct;
    if (sharing == Sharing::Exclusive) A4_CHECK(refuse_if_in_use(path));
    std::unique_ptr<Device> device = A4_TRY(FileDevice::open(path, options));
    // Between the first look and the lock somebody may have come.
    if (sharing == Sharing::Exclusive) A4_CHECK(refuse_if_in_use(path));
    return device;
}

}  // namespace

Result<std::unique_ptr<Device>> open_real_device(const std::string& path, Access access,
                                                 Sharing sharing) {
    return open_file_device(path, access, sharing, true);
}

Result<std::unique_ptr<Device>> open_real_device_buffered(const std::string& path, Access access,
                                                          Sharing sharing) {
    return open_file_device(path, access, sharing, false);
}

namespace {

std::shared_ptr<spdlog::logger> logger_of(const std::string& name) {
    auto logger = spdlog::get(name);
    if (!logger) {
        logger = spdlog::stderr_logger_st(name);
        logger->set_pattern("%n: %v");
    }
    return logger;
}

}  // namespace

Context program_context(const std::string& name) {
    return Context{
        open_real_device, std::cout,
        [name](const std::string& text) { logger_of(name)->warn("warning: {}", printable(text)); },
        false, &std::cerr};
}

void report_error(const std::string& name, const Error& error) {
    logger_of(name)->error("{}", printable(error.message));
}

}  // namespace atomic4::tools
