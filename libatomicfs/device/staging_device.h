// StagingDevice: collects one operation's metadata writes and serves reads from them.
//
// Between begin() and the end of the operation nothing reaches the device below: an operation that
// fails half-way has changed nothing. The owner of the operation (ext4/transaction.h) then writes
// the collected blocks in the order that a crash can stand, or drops them. Outside begin()/drop()
// it passes everything through.
//
// Granularity is one filesystem block; a partial write reads the rest of its block first.
#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "device/device.h"

namespace atomic4 {

class StagingDevice final : public Device {
  public:
    explicit StagingDevice(Device& below, Bytes block_size);

    // The block size is known only once the superblock has been read. Nothing may be staged.
    void set_block_size(Bytes block_size) { block_size_ = block_size.value(); }

    void begin() { staging_ = true; }
    // Shows readers other contents of a block until drop(), also on a read-only device.
    void overlay(uint64_t number, std::vector<std::byte> contents) {
        blocks_[number] = std::move(contents);
    }
    bool staging() const { return staging_; }
    // Ends the operation and forgets what it collected.
    void drop();
    // Forgets one collected block.
    void drop_block(uint64_t number) { blocks_.erase(number); }
    // The collected blocks by their number (in block_size units), to be written by the owner.
    const std::map<uint64_t, std::vector<std::byte>>& blocks() const { return blocks_; }

    Result<> read(ByteOffset offset, std::span<std::byte> into) override;
    Result<> write(ByteOffset offset, std::span<const std::byte> from) override;
    Result<> write_durable(ByteOffset offset, std::span<const std::byte> from) override;
    Result<> write_atomic(ByteOffset offset, std::span<const std::byte> from) override;
    Result<> zero(ByteOffset offset, Bytes length) override;
    Result<> flush() override;

    Bytes size() const override { return below_.size(); }
    const AtomicLimits& atomic_limits() const override { return below_.atomic_limits(); }
    bool read_only() const override { return below_.read_only(); }
    const std::string& name() const override { return below_.name(); }

  private:
    Device& below_;
    uint64_t block_size_;
    bool staging_ = false;
    std::map<uint64_t, std::vector<std::byte>> blocks_;
};

}  // namespace atomic4
