#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "atomic4ctl/commands.h"
#include "common/open.h"
#include "common/progress.h"
#include "ext4/format.h"
#include "ext4/path.h"
#include "writer/atomic_writer.h"

namespace atomic4::tools {

namespace {

constexpr size_t kPlainPiece = size_t{4} << 20;

// The bytes to write, from a file or standard input.
class Input {
  public:
    static Result<Input> open(const std::string& from) {
        Input input;
        input.name_ = from == "-" ? "standard input" : from;
        input.fd_ = UniqueFd(from == "-" ? fcntl(STDIN_FILENO, F_DUPFD_CLOEXEC, 3)
                                         : ::open(from.c_str(), O_RDONLY | O_CLOEXEC));
        if (!input.fd_) return fail(Error::from_errno(errno, input.name_));
        return input;
    }
    // Up to limit bytes; fewer only at the end.
    Result<std::vector<std::byte>> read(size_t limit) {
        std::vector<std::byte> bytes(limit);
        size_t have = 0;
        while (have < limit) {
            const ssize_t n = ::read(fd_.get(), bytes.data() + have, limit - have);
            if (n < 0 && errno == EINTR) continue;
            if (n < 0) return fail(Error::from_errno(errno, name_));
            if (n == 0) break;
            have += static_cast<size_t>(n);
        }
        bytes.resize(have);
        return bytes;
    }
    const std::string& name() const { return name_; }

  private:
    UniqueFd fd_;
    std::string name_;
};

Error too_short(const Input& input, uint64_t have, Bytes want) {
    return Error{EINVAL, fmt::format("{}: has only {} of {} bytes", input.name(), have, want)};
}

Result<uint64_t> write_plainly(AtomicWriter& writer, const FileState& file, Input& input,
                               const WriteCommand& command) {
    uint64_t done = 0;
    while (!command.length || done < command.length->value()) {
        const size_t want = command.length
                                ? std::min<uint64_t>(kPlainPiece, command.length->value() - done)
                                : kPlainPiece;
        const auto bytes = A4_TRY(input.read(want));
        A4_CHECK(writer.write_plain(
            {file.number, file.generation, command.offset + Bytes(done), bytes}));
        done += bytes.size();
        if (bytes.size() < want) break;
    }
    if (command.length && done < command.length->value())
        return fail(too_short(input, done, *command.length));
    return done;
}

}  // namespace

Result<int> run(const Context& context, const WriteCommand& command) {
    Progress progress(fmt::format("writing {}", command.path));
    Input input = A4_TRY(Input::open(command.from));
    std::vector<std::byte> bytes;
    if (!command.plain) {
        // One byte more than any atomic write may have, to notice a longer input.
        if (command.length && command.length->value() > kUnitMax)
            return fail(EINVAL, "an atomic write of {} bytes is longer than the limit {}",
                        *command.length, kUnitMax);
        bytes = A4_TRY(input.read(command.length ? command.length->value() : kUnitMax + 1));
        if (command.length && bytes.size() < command.length->value())
            return fail(too_short(input, bytes.size(), *command.length));
        if (bytes.size() > kUnitMax) {
            return fail(EINVAL, "{}: has more than {} bytes, the limit of an atomic write",
                        input.name(), kUnitMax);
        }
    }
    auto writer = A4_TRY(AtomicWriter::open(A4_TRY(open_to_write(context, command.device))));
    const ext2_ino_t inode = A4_TRY(lookup(writer->volume(), command.path));
    const FileState file = A4_TRY(writer->file(inode).context(command.path));
    WriteOutcome outcome;
    uint64_t length = bytes.size();
    const auto write = [&]() -> Result<> {
        if (command.plain) {
            length = A4_TRY(write_plainly(*writer, file, input, command));
        } else {
            outcome = A4_TRY(
                writer->write({inode, file.generation, command.offset, bytes}, command.engine));
        }
        return {};
    };
    auto written = write();
    // A refused write leaves a writer in order; closing it lets stock tools in again. One that is
    // in doubt leaves its log for recovery.
    if (written || !writer->poisoned()) {
        auto closed = writer->close();
        if (written) written = std::move(closed);
    }
    progress.finish();
    A4_CHECK(std::move(written).context(command.path));
    const char* engine = command.plain ? "plain" : to_text(outcome.engine);
    if (context.json) {
        const nlohmann::json json = {{"path", command.path},
                                     {"offset", command.offset.value()},
                                     {"length", length},
                                     {"engine", engine},
                                     {"why_not_native", outcome.why_not_native}};
        context.print(json.dump(2) + "\n");
    } else {
        context.print(fmt::format("{}: {} bytes at {}, {}{}\n", command.path, length,
                                  command.offset, engine,
                                  outcome.why_not_native.empty()
                                      ? ""
                                      : fmt::format(" (not native: {})", outcome.why_not_native)));
    }
    return 0;
}

}  // namespace atomic4::tools
