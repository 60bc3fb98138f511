// GatheredWrites: many small writes to a device, done as few large ones.
//
// What is added later counts, byte by byte, as if the writes had been done one after the other.
// write() does them in the order of the device, neighbours together. Between the first add() and
// the end of write() the device holds any part of them: for callers to whom that is one step, such
// as replay, which after a crash begins again.
//
// Memory: the payloads that were added, and a buffer of some MiB.
//
// Threads: one.
#pragma once

#include <cstddef>
#include <map>
#include <memory>
#include <span>
#include <vector>

#include "device/device.h"
#include "redo/log_buffer.h"
#include "redo/log_reader.h"

namespace atomic4 {

class GatheredWrites {
  public:
    explicit GatheredWrites(Device& device) : device_(device) {}

    // The bytes must stay until write(): keep() their memory.
    void add(ByteOffset at, std::span<const std::byte> bytes);
    void keep(const Payload& payload);
    // How much memory that is.
    Bytes kept() const { return kept_; }
    // Not durable. Whether or not it succeeds, nothing is left.
    Result<> write();

  private:
    Result<> write_all();

    Device& device_;
    std::map<ByteOffset, std::span<const std::byte>> writes_;  // don't overlap
    std::vector<std::shared_ptr<const PayloadMemory>> memory_;
    Bytes kept_;
    LogBuffer buffer_;
};

}  // namespace atomic4
