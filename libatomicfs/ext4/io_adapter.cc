#include "ext4/io_adapter.h"

#include <et/com_err.h>

#include <cstdarg>
#include <cstdlib>
#include <cstring>

namespace atomic4 {

namespace {

thread_local IoAdapter* opening_adapter = nullptr;

IoAdapter& adapter_of(io_channel channel) {
    return *static_cast<IoAdapter*>(channel->private_data);
}

// A negative count is a number of bytes.
uint64_t bytes_of(io_channel channel, int count) {
    return count < 0 ? static_cast<uint64_t>(-static_cast<int64_t>(count))
                     : static_cast<uint64_t>(count) * static_cast<uint64_t>(channel->block_size);
}

extern "C" {

extern struct struct_io_manager atomic4_io_manager;

static errcode_t a4_open(const char* name, int, io_channel* channel) {
    if (opening_adapter == nullptr) return EXT2_ET_BAD_DEVICE_NAME;
    auto* io = static_cast<io_channel>(std::calloc(1, sizeof(struct struct_io_channel)));
    char* copy = strdup(name);
    if (io == nullptr || copy == nullptr) {
        std::free(io);
        std::free(copy);
        return EXT2_ET_NO_MEMORY;
    }
    io->magic = EXT2_ET_MAGIC_IO_CHANNEL;
    io->manager = &atomic4_io_manager;
    io->name = copy;
    io->block_size = 1024;
    io->refcount = 1;
    io->private_data = opening_adapter;
    *channel = io;
    return 0;
}

static errcode_t a4_close(io_channel channel) {
    if (--channel->refcount > 0) return 0;
    std::free(channel->name);
    std::free(channel);
    return 0;
}

static errcode_t a4_set_blksize(io_channel channel, int blksize) {
    channel->block_size = blksize;
    return 0;
}

static errcode_t a4_read_blk64(io_channel channel, unsigned long long block, int count,
                               void* data) {
    return adapter_of(channel).read(channel, block, count, data);
}

static errcode_t a4_write_blk64(io_channel channel, unsigned long long block, int count,
                                const void* data) {
    return adapter_of(channel).write(channel, block, count, data);
}

static errcode_t a4_read_blk(io_channel channel, unsigned long block, int count, void* data) {
    return a4_read_blk64(channel, block, count, data);
}

static errcode_t a4_write_blk(io_channel channel, unsigned long block, int count,
                              const void* data) {
    return a4_write_blk64(channel, block, count, data);
}

static errcode_t a4_flush(io_channel channel) {
    return adapter_of(channel).flush();
}

static errcode_t a4_write_byte(io_channel, unsigned long, int, const void*) {
    return EXT2_ET_UNIMPLEMENTED;
}

// There are no options; but ext2fs_open2 insists on the function when given an (empty) list.
static errcode_t a4_set_option(io_channel, const char*, const char*) {
    return EXT2_ET_INVALID_ARGUMENT;
}

static errcode_t a4_zeroout(io_channel channel, unsigned long long block,
                            unsigned long long count) {
    return adapter_of(channel).zero(channel, block, count);
}

struct struct_io_manager atomic4_io_manager = {
    EXT2_ET_MAGIC_IO_MANAGER,
    "atomic4",
    a4_open,
    a4_close,
    a4_set_blksize,
    a4_read_blk,
    a4_write_blk,
    a4_flush,
    a4_write_byte,
    a4_set_option,
    nullptr,  // get_stats
    a4_read_blk64,
    a4_write_blk64,
    nullptr,  // discard
    nullptr,  // cache_readahead
    a4_zeroout,
    {},
};

// com_err prints to stderr by default; a library prints nothing.
static void a4_com_err_hook(const char*, errcode_t, const char*, va_list) {}

}  // extern "C"

}  // namespace

errcode_t IoAdapter::open_through(int flags, ext2_filsys* fs, uint64_t superblock,
                                  Bytes block_size) {
    static const bool tables_ready = [] {
        initialize_ext2_error_table();
        set_com_err_hook(a4_com_err_hook);
        return true;
    }();
    (void)tables_ready;
    opening_adapter = this;
    // io_options "" keeps the library from cutting the name at a '?'.
    const errcode_t code =
        ext2fs_open2(device_.name().c_str(), "", flags, static_cast<int>(superblock),
                     static_cast<unsigned>(block_size.value()), &atomic4_io_manager, fs);
    opening_adapter = nullptr;
    return code;
}

IoAdapter& IoAdapter::of(ext2_filsys fs) {
    return adapter_of(fs->io);
}

errcode_t IoAdapter::keep(const Error& error) {
    latch(error);
    return error.code;
}

errcode_t IoAdapter::read(io_channel channel, unsigned long long block, int count, void* data) {
    const uint64_t size = static_cast<uint64_t>(channel->block_size);
    // Damaged metadata may name any block; multiplying must not wrap back into the device.
    const bool beyond = block >= device_.size().value() / size;
    if (beyond && expects_damage_) return EUCLEAN;
    if (block > ~uint64_t{0} / size) return keep(Error{EUCLEAN, "block number out of range"});
    const auto done =
        device_.read(ByteOffset(block * size),
                     std::span(static_cast<std::byte*>(data), bytes_of(channel, count)));
    if (done) return 0;
    // Beyond the device's end: what named that block is damaged.
    if (done.error().code == EINVAL && expects_damage_) return EUCLEAN;
    const errcode_t code = keep(done.error());
    return code == EINVAL ? EUCLEAN : code;
}

errcode_t IoAdapter::write(io_channel channel, unsigned long long block, int count,
                           const void* data) {
    const uint64_t size = static_cast<uint64_t>(channel->block_size);
    if (block > ~uint64_t{0} / size) return keep(Error{EUCLEAN, "block number out of range"});
    const auto done =
        device_.write(ByteOffset(block * size),
                      std::span(static_cast<const std::byte*>(data), bytes_of(channel, count)));
    return done ? 0 : keep(done.error());
}

errcode_t IoAdapter::flush() {
    const auto done = device_.flush();
    return done ? 0 : keep(done.error());
}

errcode_t IoAdapter::zero(io_channel channel, unsigned long long block, unsigned long long count) {
    const uint64_t size = static_cast<uint64_t>(channel->block_size);
    const auto done = device_.zero(ByteOffset(block * size), Bytes(count * size));
    return done ? 0 : keep(done.error());
}

}  // namespace atomic4
