#include "writer/write_rules.h"

#include <map>

#include "base/size_parse.h"
#include "base/text.h"
#include "ext4/file_rules.h"
#include "ext4/format.h"

namespace atomic4 {

const char* to_text(Engine engine) {
    switch (engine) {
        case Engine::Auto:
            return "auto";
        case Engine::Native:
            return "native";
        case Engine::Logged:
            return "logged";
    }
    return "?";
}

Result<Engine> parse_engine(std::string_view text) {
    for (const Engine engine : {Engine::Auto, Engine::Native, Engine::Logged}) {
        if (text == to_text(engine)) return engine;
    }
    return fail(EINVAL, "engine '{}': want auto, native or logged", text);
}

Result<> check_request(ByteOffset offset, Bytes length, Bytes unit_min, Bytes unit_max) {
    if (length < unit_min || length > unit_max) {
        return fail(EINVAL, "an atomic write of {} bytes is outside the limits {}..{}", length,
                    unit_min, unit_max);
    }
    if (!is_power_of_two(length.value()))
        return fail(EINVAL, "the length {} is not a power of two", length);
    if (!is_aligned(offset.value(), length.value()))
        return fail(EINVAL, "the offset {} is not a multiple of the length {}", offset, length);
    if (offset.value() + length.value() < offset.value())
        return fail(EFBIG, "the offset {} is too large", offset);
    return {};
}

Result<> check_batch(std::span<const RequestedRange> parts, Bytes block_size, Bytes max) {
    if (parts.empty()) return fail(EINVAL, "a batch without ranges");
    const uint64_t block = block_size.value();
    std::map<std::pair<uint64_t, uint64_t>, std::pair<uint64_t, size_t>> seen;
    uint64_t total = 0;
    for (size_t i = 0; i < parts.size(); ++i) {
        const uint64_t offset = parts[i].offset.value();
        const uint64_t length = parts[i].length.value();
        if (offset + length < offset)
            return fail(EFBIG, "batch range {}: the offset {} is too large", i, offset);
        if (length == 0 || length % block != 0 || offset % block != 0) {
            return fail(EINVAL,
                        "batch range {}: {} bytes at {} are no multiples of the block size {}", i,
                        length, offset, block);
        }
        // The neighbours among those before it, which don't overlap each other.
        const auto next = seen.lower_bound({parts[i].inode, offset});
        const auto clash = [&](size_t other) {
            return fail(EINVAL, "batch ranges {} and {} overlap", std::min(other, i),
                        std::max(other, i));
        };
        if (next != seen.end() && next->first.first == parts[i].inode &&
            next->first.second < offset + length)
            return clash(next->second.second);
        if (next != seen.begin()) {
            const auto before = std::prev(next);
            if (before->first.first == parts[i].inode && before->second.first > offset)
                return clash(before->second.second);
        }
        seen.emplace(std::pair(parts[i].inode, offset), std::pair(offset + length, i));
        if (length > max.value() - std::min(max.value(), total))
            return fail(EMSGSIZE, "a batch of more than {} bytes, a quarter of the log", max);
        total += length;
    }
    return {};
}

Result<> check_file(Volume& volume, const FileState& file) {
    FileFacts facts;
    facts.inode = file.number;
    facts.generation = file.generation;
    facts.mode = file.inode.i_mode;
    facts.flags = file.inode.i_flags;
    facts.is_log = volume.attr() && file.number == volume.attr()->log_inode;
    facts.is_lock = volume.attr() && file.number == A4_TRY(volume.lock_inode());
    facts.volume_journals_data =
        (volume.fs()->super->s_default_mount_opts & EXT3_DEFM_JMODE) == EXT3_DEFM_JMODE_DATA;
    return check_file_rules(facts);
}

Result<> check_native(const Volume& volume, const RangeShape& shape, Bytes length) {
    const AtomicLimits& limits = volume.device().atomic_limits();
    if (!limits.supported())
        return fail(EOPNOTSUPP, "no native atomic writes here: {}", limits.why_not);
    if (length < limits.unit_min || length > limits.unit_max) {
        return fail(EINVAL, "{} bytes are outside the device's limits {}..{}", length,
                    limits.unit_min, limits.unit_max);
    }
    if (shape.beyond_eof)
        return fail(EIO, "the range lies beyond EOF: only the logged engine grows a file");
    if (shape.holes) return fail(EIO, "the range has holes");
    if (shape.unwritten) return fail(EIO, "the range has unwritten blocks");
    if (!shape.one_written_run)
        return fail(EIO, "the range is not one contiguous run on the device");
    if (!is_aligned(shape.device_offset.value(), length.value())) {
        return fail(EIO, "the range lies at {} on the device, which is not a multiple of {}",
                    shape.device_offset, length);
    }
    return check_atomic_limits(limits, shape.device_offset, length);
}

std::string why_not_native(const Volume& volume, const FileState& file, uint64_t layout_problems) {
    const AtomicLimits& limits = volume.device().atomic_limits();
    if (!limits.supported()) return limits.why_not;
    if (!file.atomic || !file.unit)
        return "the file has no atomic flag, so nothing promises its layout";
    if (*file.unit < limits.unit_min) {
        return fmt::format("the device's smallest atomic write is {}",
                           format_size(limits.unit_min));
    }
    if (*file.unit > limits.unit_max)
        return fmt::format("the device's largest atomic write is {}", format_size(limits.unit_max));
    if (limits.boundary.value() != 0 && *file.unit > limits.boundary) {
        return fmt::format("the device's atomic writes may not cross multiples of {}",
                           format_size(limits.boundary));
    }
    if (layout_problems > 0)
        return fmt::format("{} lost the layout", counted(layout_problems, "unit"));
    return {};
}

WriteLimits write_limits(const Volume& volume, Bytes log_unit_max) {
    const AtomicLimits& device = volume.device().atomic_limits();
    WriteLimits limits;
    limits.unit_min = volume.block_size();
    limits.unit_max_logged = log_unit_max;
    limits.unit_max_native = std::min(device.unit_max, Bytes(kUnitMax));
    limits.why_not_native = device.why_not;
    return limits;
}

}  // namespace atomic4
