#include "device/mount_table.h"

#include <cstdio>
#include <fstream>
#include <sstream>

namespace atomic4 {
namespace {

bool is_octal(char c) {
    return c >= '0' && c <= '7';
}

// The kernel writes space, tab, newline and backslash as \ooo.
std::string unescape(const std::string& text) {
    std::string result;
    for (size_t i = 0; i < text.size(); ++i) {
        if (text[i] == '\\' && i + 3 < text.size() && is_octal(text[i + 1]) &&
            is_octal(text[i + 2]) && is_octal(text[i + 3])) {
            const int value =
                (text[i + 1] - '0') * 64 + (text[i + 2] - '0') * 8 + (text[i + 3] - '0');
            result.push_back(static_cast<char>(value));
            i += 3;
        } else {
            result.push_back(text[i]);
        }
    }
    return result;
}

}  // namespace

// "36 35 98:0 /root /mount/point rw,noatime master:1 - ext3 /dev/root rw,errors=continue": any
// number of optional fields before the dash (proc_pid_mountinfo(5)).
std::vector<MountEntry> read_mount_table(const std::string& path) {
    std::vector<MountEntry> result;
    std::ifstream file(path);
    for (std::string line; std::getline(file, line);) {
        std::istringstream words(line);
        std::string id, parent, device, options, word;
        MountEntry entry;
        if (!(words >> id >> parent >> device >> entry.root >> entry.mount_point >> options))
            continue;
        if (std::sscanf(device.c_str(), "%u:%u", &entry.major_number, &entry.minor_number) != 2)
            continue;
        while (words >> word && word != "-") {
        }
        if (!(words >> entry.type >> entry.source)) continue;
        std::string super_options;
        words >> super_options;
        entry.read_only = super_options == "ro" || super_options.starts_with("ro,");
        entry.root = unescape(entry.root);
        entry.mount_point = unescape(entry.mount_point);
        entry.source = unescape(entry.source);
        result.push_back(std::move(entry));
    }
    return result;
}

}  // namespace atomic4
