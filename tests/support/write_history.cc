#include "support/write_history.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <stdexcept>

#include "base/unique_fd.h"
#include "support/mix.h"

namespace atomic4::test {

size_t WriteHistory::add_file(const std::string& name, uint64_t size) {
    names_.push_back(name);
    sizes_.push_back(size);
    return names_.size() - 1;
}

uint64_t WriteHistory::begin(std::vector<Part> parts, size_t position) {
    writes_.push_back({std::move(parts), false, position});
    return writes_.size();
}

uint64_t WriteHistory::begin_by_others(Part part, size_t position) {
    writes_.push_back({{part}, true, position});
    return writes_.size();
}

void WriteHistory::done(uint64_t number, size_t position) {
    writes_[number - 1].done = position;
}

size_t WriteHistory::count_done(size_t position) const {
    return static_cast<size_t>(
        std::ranges::count_if(writes_, [&](const Write& it) { return it.done <= position; }));
}

// The number first, then what only this number, file and block have, in every sector.
void WriteHistory::fill(uint64_t number, size_t file, uint64_t block, std::byte* into) {
    uint64_t state = mix(mix(number) ^ (uint64_t{file} << 40) ^ block);
    for (size_t at = 0; at < kBlock; at += sizeof(uint64_t)) {
        const uint64_t word = at == 0 ? number : (state += 0x9e3779b97f4a7c15ull);
        std::memcpy(into + at, &word, sizeof word);
    }
}

std::vector<std::byte> WriteHistory::bytes(uint64_t number, const Part& part) const {
    std::vector<std::byte> bytes(part.count * kBlock);
    for (uint64_t i = 0; i < part.count; ++i)
        fill(number, part.file, part.first + i, bytes.data() + i * kBlock);
    return bytes;
}

uint64_t WriteHistory::origin(size_t file, uint64_t block, const std::byte* bytes) const {
    uint64_t number = 0;
    std::memcpy(&number, bytes, sizeof number);
    std::array<std::byte, kBlock> expected{};
    if (number > writes_.size()) return kTorn;
    if (number != 0) fill(number, file, block, expected.data());
    return std::memcmp(bytes, expected.data(), kBlock) == 0 ? number : kTorn;
}

std::string WriteHistory::describe(uint64_t number) const {
    if (number == 0) return "nothing";
    if (number == kTorn) return "torn bytes";
    const Write& write = writes_[number - 1];
    std::string text = fmt::format("write {}{} (", number, write.by_others ? " of others" : "");
    for (const Part& part : write.parts)
        text += fmt::format("{} {}+{}, ", names_[part.file], part.first, part.count);
    text += write.done == kNever ? "never acknowledged)"
                                 : fmt::format("acknowledged at {})", write.done);
    return text;
}

std::string WriteHistory::judge(const std::vector<std::vector<std::byte>>& found,
                                size_t position) const {
    // Where others wrote and had not synced, anything may be found.
    std::vector<std::vector<bool>> unsure(found.size());
    std::vector<std::vector<uint64_t>> origins(found.size());
    for (size_t file = 0; file < found.size(); ++file) {
        if (found[file].size() % kBlock != 0)
            return fmt::format("{}: {} bytes long", names_[file], found[file].size());
        origins[file].resize(found[file].size() / kBlock);
        unsure[file].resize(origins[file].size());
    }
    for (const Write& write : writes_) {
        if (!write.by_others || write.begun > position || write.done <= position) continue;
        const Part& part = write.parts[0];
        for (uint64_t b = part.first; b < part.first + part.count; ++b)
            if (b < unsure[part.file].size()) unsure[part.file][b] = true;
    }
    std::vector<bool> took_place(writes_.size());
    for (size_t i = 0; i < writes_.size(); ++i) took_place[i] = writes_[i].done <= position;
    for (size_t file = 0; file < found.size(); ++file) {
        uint64_t end = sizes_[file];
        for (uint64_t b = 0; b < origins[file].size(); ++b) {
            const uint64_t from = origin(file, b, found[file].data() + b * kBlock);
            origins[file][b] = from;
            if (unsure[file][b]) continue;
            if (from == kTorn) return fmt::format("{}: block {} is torn", names_[file], b);
            if (from == 0) continue;
            if (writes_[from - 1].begun > position)
                return fmt::format("{}: block {} has {}, begun after the cut", names_[file], b,
                                   describe(from));
            took_place[from - 1] = true;
            end = std::max(end, (b + 1) * kBlock);
        }
        if (found[file].size() != end)
            return fmt::format("{}: {} bytes long, but its last write ends at {}", names_[file],
                               found[file].size(), end);
    }
    for (uint64_t number = 1; number <= writes_.size(); ++number) {
        if (!took_place[number - 1]) continue;
        for (const Part& part : writes_[number - 1].parts) {
            for (uint64_t b = part.first; b < part.first + part.count; ++b) {
                const bool there = b < origins[part.file].size();
                if (there && unsure[part.file][b]) continue;
                const uint64_t from = there ? origins[part.file][b] : 0;
                if (from >= number) continue;
                return fmt::format("{}: block {} has {} instead of {}", names_[part.file], b,
                                   describe(from), describe(number));
            }
        }
    }
    return {};
}

std::vector<std::byte> file_contents(const std::string& path) {
    const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
    struct stat st{};
    if (!fd || ::fstat(fd.get(), &st) != 0)
        throw std::runtime_error(path + ": " + std::strerror(errno));
    std::vector<std::byte> bytes(static_cast<size_t>(st.st_size));
    for (size_t at = 0; at < bytes.size();) {
        const ssize_t n =
            ::pread(fd.get(), bytes.data() + at, bytes.size() - at, static_cast<off_t>(at));
        if (n <= 0) throw std::runtime_error(path + ": can't be read");
        at += static_cast<size_t>(n);
    }
    return bytes;
}

}  // namespace atomic4::test
