#include <unistd.h>

#include <algorithm>
#include <optional>

#include "atomic4ctl/by_daemon.h"
#include "atomic4ctl/commands.h"
#include "common/open.h"
#include "common/progress.h"
#include "ext4/path.h"
#include "writer/atomic_writer.h"

namespace atomic4::tools {

namespace {

Result<int> read_from_volume(const Context& context, const ReadCommand& command) {
    constexpr uint64_t kPiece = uint64_t{4} << 20;
    auto opened = A4_TRY(open_for_reading(
        A4_TRY(context.open_device(command.device, Access::ReadOnly, Sharing::Exclusive))));
    warn_of_repairs(context, command.device, opened.volume->notices());
    auto reader = A4_TRY(AtomicWriter::open(std::move(opened)));
    const ext2_ino_t inode = A4_TRY(lookup(reader->volume(), command.path));
    const FileState file = A4_TRY(reader->file(inode).context(command.path));
    if (!LINUX_S_ISREG(file.inode.i_mode))
        return fail(EINVAL, "{}: not a regular file", command.path);
    return put_out(context, command, kPiece, [&](ByteOffset offset, std::span<std::byte> into) {
        return reader->read(inode, offset, into);
    });
}

}  // namespace

Result<int> run(const Context& context, const ReadCommand& command) {
    // On a terminal the bytes themselves are the sign of life.
    std::optional<Progress> progress;
    if (isatty(STDOUT_FILENO) == 0) progress.emplace(fmt::format("reading {}", command.path));
    return command.device.empty() ? read_by_daemon(context, command)
                                  : read_from_volume(context, command);
}

Result<int> put_out(const Context& context, const ReadCommand& command, uint64_t piece,
                    const ReadPiece& read) {
    std::vector<std::byte> buffer;
    for (uint64_t done = 0; done < command.length.value();) {
        buffer.resize(std::min(piece, command.length.value() - done));
        const Bytes n = A4_TRY(read(command.offset + Bytes(done), buffer).context(command.path));
        if (n.value() == 0) break;  // EOF
        context.out.write(reinterpret_cast<const char*>(buffer.data()),
                          static_cast<std::streamsize>(n.value()));
        done += n.value();
    }
    context.out.flush();
    if (!context.out) return fail(EIO, "standard output: write failed");
    return 0;
}

}  // namespace atomic4::tools
