// What a command needs from its program: where devices come from, where reports and warnings go.
// Programs fill it in; tests put their own devices and streams there.
#pragma once

#include <functional>
#include <memory>
#include <ostream>
#include <string>

#include "device/file_device.h"

namespace atomic4::tools {

enum class Sharing {
    Exclusive,  // nobody else may use the device: not mounted, no loop device, locked
    Shared,     // look at it although it may be in use (info)
};

struct Context {
    std::function<Result<std::unique_ptr<Device>>(const std::string& path, Access access, Sharing)>
        open_device;
    std::ostream& out;
    std::function<void(const std::string&)> warn;
    bool json = false;
    // Reports of those whose standard output is another program's.
    std::ostream* beside = nullptr;

    void print(const std::string& text) const { out << text; }
    void print_beside(const std::string& text) const {
        (beside != nullptr ? *beside : out) << text;
    }
};

// The real thing: files and block devices, refused while someone else uses them.
Result<std::unique_ptr<Device>> open_real_device(const std::string& path, Access access,
                                                 Sharing sharing);

// The same, but through the page cache.
Result<std::unique_ptr<Device>> open_real_device_buffered(const std::string& path, Access access,
                                                          Sharing sharing);

// A program's Context: stdout, and warnings as "NAME: warning: …" on stderr.
Context program_context(const std::string& name);
// "NAME: message" on stderr.
void report_error(const std::string& name, const Error& error);

}  // namespace atomic4::tools
