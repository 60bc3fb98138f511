// Payloads read in the order of the log: in large pieces, each checked again.
#pragma once

#include <algorithm>

#include "base/crc32c.h"
#include "redo/log_buffer.h"
#include "redo/log_reader.h"

namespace atomic4 {

class PayloadStream {
  public:
    // end: the log's, from its superblock.
    PayloadStream(Device& log, ByteOffset end) : log_(log), end_(end) {}

    // With its padding; valid until the next call. Errors: read_payload's.
    Result<std::span<const std::byte>> payload(const LoggedRecord& record) {
        const Bytes length = record.position + record.total_length - record.payload;
        if (record.payload < start_ || record.payload + length > start_ + length_)
            A4_CHECK(fill(record, length));
        const auto bytes = memory_.subspan((record.payload - start_).value(), length.value());
        if (crc32c(record.payload_seed, bytes) != record.payload_crc) {
            return fail(EUCLEAN, "redo log: record {}: its payload changed since it was checked",
                        record.sequence);
        }
        return std::span<const std::byte>(bytes);
    }

  private:
    static constexpr Bytes kWindow{4 << 20};

    Result<> fill(const LoggedRecord& record, Bytes length) {
        length_ = Bytes(0);
        const Bytes wanted = std::min(std::max(length, kWindow), end_ - record.payload);
        memory_ = A4_TRY(buffer_.get(wanted));
        const auto read = log_.read(record.payload, memory_);
        if (!read)
            return fail(EIO, "redo log: record {}: {}", record.sequence, read.error().message);
        start_ = record.payload;
        length_ = wanted;
        return {};
    }

    Device& log_;
    ByteOffset end_;
    LogBuffer buffer_;
    std::span<std::byte> memory_;
    ByteOffset start_;
    Bytes length_;
};

}  // namespace atomic4
