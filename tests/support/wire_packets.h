// Packets of the socket protocol as a client would build them, and what must hold of whatever the
// decoders accept (unit tests and fuzz targets ask the same).
#pragma once

#include <cstdlib>
#include <cstring>
#include <span>
#include <string_view>
#include <vector>

#include "client/message.h"

namespace atomic4::test {

using Packet = std::vector<std::byte>;

inline std::span<const std::byte> bytes_of(std::string_view text) {
    return std::as_bytes(std::span(text));
}
template <class T>
    requires std::is_trivially_copyable_v<T> && (!std::is_convertible_v<T, std::string_view>)
std::span<const std::byte> bytes_of(const T& value) {
    return std::as_bytes(std::span(&value, 1));
}

inline Packet request_packet(wire::Type type, uint64_t tag, std::span<const std::byte> body = {},
                             std::span<const std::byte> tail = {}) {
    wire::RequestHeader header;
    header.type = static_cast<uint16_t>(type);
    header.length = static_cast<uint32_t>(sizeof header + body.size() + tail.size());
    header.tag = tag;
    Packet packet(sizeof header);
    std::memcpy(packet.data(), &header, sizeof header);
    packet.insert(packet.end(), body.begin(), body.end());
    packet.insert(packet.end(), tail.begin(), tail.end());
    return packet;
}

// Makes the header say how long the packet is.
inline void set_length(Packet& packet) {
    le32 length = static_cast<uint32_t>(packet.size());
    std::memcpy(packet.data() + offsetof(wire::RequestHeader, length), &length, sizeof length);
}

// Everything that message.h promises of a decoded request; false where it doesn't hold.
inline bool holds(const wire::Request& request, std::span<const std::byte> packet,
                  const wire::Connection& connection) {
    constexpr uint64_t kFileMax = INT64_MAX;
    const auto inside = [&](const wire::Payload& payload, uint64_t length) {
        if (payload.source == wire::Source::Arena)
            return payload.bytes.empty() && length <= connection.arena.value() &&
                   payload.arena_offset <= connection.arena.value() - length;
        return payload.bytes.size() == length && length <= wire::kInlineMax &&
               payload.bytes.data() >= packet.data() &&
               payload.bytes.data() + length <= packet.data() + packet.size();
    };
    const auto in_file = [&](ByteOffset offset, Bytes length) {
        return length.value() != 0 && length.value() <= kFileMax &&
               offset.value() <= kFileMax - length.value();
    };
    if ((request.type == wire::Type::Hello) == connection.greeted) return false;
    if (const auto* hello = std::get_if<wire::Hello>(&request.body))
        return hello->version == wire::kVersion;
    if (const auto* arena = std::get_if<wire::Arena>(&request.body))
        return arena->size.value() != 0 && arena->size.value() <= wire::kArenaMax &&
               connection.arena == Bytes(0);
    if (const auto* open = std::get_if<wire::Open>(&request.body)) {
        if (connection.target == wire::TargetKind::Mounted) return open->path.empty();
        return !open->path.empty() && open->path.size() <= wire::kPathMax && open->path[0] == '/' &&
               std::memchr(open->path.data(), 0, open->path.size()) == nullptr;
    }
    if (const auto* write = std::get_if<wire::Write>(&request.body))
        return in_file(write->offset, write->length) && write->length.value() <= wire::kWriteMax &&
               inside(write->payload, write->length.value());
    if (const auto* batch = std::get_if<wire::Batch>(&request.body)) {
        uint64_t total = 0;
        for (const auto& range : batch->ranges) {
            total += range.length.value();
            if (!in_file(range.offset, range.length) || total > wire::kBatchMax ||
                !inside(range.payload, range.length.value()))
                return false;
        }
        return !batch->ranges.empty() && batch->ranges.size() <= wire::kBatchRangesMax;
    }
    if (const auto* read = std::get_if<wire::Read>(&request.body)) {
        if (!in_file(read->offset, read->length) || read->length.value() > wire::kReadMax)
            return false;
        if (read->into == wire::Source::Inline) return read->length.value() <= wire::kInlineMax;
        return read->length <= connection.arena &&
               read->arena_offset <= (connection.arena - read->length).value();
    }
    return true;
}

}  // namespace atomic4::test
