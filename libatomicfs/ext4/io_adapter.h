// The io_manager through which libext2fs reaches a Device.
//
// - The first I/O error is latched: libext2fs swallows many (F18). Whoever uses the library through
//   this adapter must ask latched() before reporting success; it never clears.
// - write_byte is refused with EXT2_ET_UNIMPLEMENTED, so libext2fs writes the superblock whole
//   instead of in 2-byte pieces (F5).
// - Nothing is cached here, and flush is passed on.
//
// io_manager::open has no user pointer, so the Device is handed over in a thread_local for the
// length of one ext2fs_open2 call (open_through).
#pragma once

#include <ext2fs/ext2fs.h>

#include <memory>
#include <optional>

#include "device/device.h"

namespace atomic4 {

class IoAdapter {
  public:
    explicit IoAdapter(Device& device) : device_(device) {}
    IoAdapter(const IoAdapter&) = delete;
    IoAdapter& operator=(const IoAdapter&) = delete;

    Device& device() { return device_; }
    const std::optional<Error>& latched() const { return latched_; }
    // Latches an error met outside libext2fs's own I/O, such as in a callback.
    void latch(const Error& error) {
        if (!latched_) latched_ = error;
    }

    // ext2fs_open2 through this adapter, by the primary superblock or by a copy (its block and the
    // size of blocks). The adapter must outlive the filesystem.
    errcode_t open_through(int flags, ext2_filsys* fs, uint64_t superblock = 0,
                           Bytes block_size = Bytes(0));
    // For those who look at damaged volumes: that something points beyond the device's end is an
    // answer (EUCLEAN), and not latched.
    void expect_damage() { expects_damage_ = true; }
    // The adapter under an open filesystem.
    static IoAdapter& of(ext2_filsys fs);

    errcode_t read(io_channel channel, unsigned long long block, int count, void* data);
    errcode_t write(io_channel channel, unsigned long long block, int count, const void* data);
    errcode_t flush();
    errcode_t zero(io_channel channel, unsigned long long block, unsigned long long count);

  private:
    errcode_t keep(const Error& error);
    Device& device_;
    bool expects_damage_ = false;
    std::optional<Error> latched_;
};

}  // namespace atomic4
