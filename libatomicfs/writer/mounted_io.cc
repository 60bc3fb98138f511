// Reads, plain and native writes of a mounted target.
#include <sys/syscall.h>
#include <sys/uio.h>

#include <cstring>
#include <utility>

#include "ext4/format.h"
#include "writer/mounted_pending.h"

#ifndef RWF_ATOMIC
#define RWF_ATOMIC 0x00000040
#endif

namespace atomic4 {
namespace {

// Of the plain writes of one file, at a time: so many pieces, and bytes of two of the longest.
constexpr size_t kPlainPiece = size_t{4} << 20;
constexpr size_t kPlainPieces = 16;

AlignedMemory aligned_memory(size_t size) {
    return AlignedMemory(static_cast<std::byte*>(std::aligned_alloc(4096, round_up(size, 4096))));
}
bool aligned(const void* memory) {
    return reinterpret_cast<uintptr_t>(memory) % 4096 == 0;
}

}  // namespace

// --- reads, plain and native writes ---

void MountedTarget::finish_simple(Pending& pending) {
    if (pending.kind == Pending::Kind::Read)
        --reading_;
    else
        ended();
    order_.release(pending.ranges, pending.use());
    pending.each_file([&](const FileRef& file) {
        if (pending.kind != Pending::Kind::Read) shared(file).access.unuse();
    });
    schedule_pump();
}

void MountedTarget::start_read(std::unique_ptr<Pending> pending) {
    order_.hold(pending->ranges, pending->use());
    ++reading_;
    std::shared_ptr<Pending> running = std::move(pending);
    loop_.read(shared(running->file).access.read_only(), running->ranges[0].offset, running->into,
               [this, running](int result) {
                   finish_simple(*running);
                   if (result < 0) return running->fail_with(Error::from_errno(-result, "read"));
                   ++counts_.reads;
                   counts_.bytes_read += static_cast<uint64_t>(result);
                   running->read_done(Bytes(static_cast<uint64_t>(result)));
               });
}

void MountedTarget::start_plain(std::unique_ptr<Pending> pending) {
    order_.hold(pending->ranges, pending->use());
    const auto file = std::static_pointer_cast<SharedFile>(pending->op->ranges[0].file);
    // The pump goes on.
    plain_[file].waiting.push_back(std::move(pending));
}

// Whoever opens the file, or freezes, has to wait for what the helper threads have of it.
void MountedTarget::continue_plain(const SharedRef& file, PlainWrites& writes) {
    while (!writes.waiting.empty() && !commit_->poisoned() && !frozen_ && !file->access.held()) {
        std::shared_ptr<Pending> pending = writes.waiting.front();
        const auto left = pending->op->ranges[0].data.subspan(pending->written.value());
        const auto piece = left.first(std::min(left.size(), kPlainPiece));
        const Bytes length(piece.size());
        if (writes.running > 0 && (writes.running == kPlainPieces ||
                                   writes.running_bytes + length > Bytes(2 * kPlainPiece)))
            return;
        writes.waiting.pop_front();
        if (const Error* broken = file->access.broken(); broken != nullptr) {
            finish_plain(*pending, fail(Error(*broken)));
            continue;
        }
        file->access.use();
        ++running_;
        ++writes.running;
        writes.running_bytes += length;
        write_cached(file, pending->ranges[0].offset + pending->written, piece,
                     [this, file, pending, length](Result<> done) {
                         PlainWrites& others = plain_.at(file);
                         ended();
                         --others.running;
                         others.running_bytes -= length;
                         pending->written += length;
                         // Openers first.
                         file->access.unuse();
                         if (done && pending->written < pending->ranges[0].length)
                             others.waiting.push_front(pending);
                         else
                             finish_plain(*pending, std::move(done));
                         continue_plain(file, others);
                         schedule_pump();
                     });
    }
}

void MountedTarget::finish_plain(Pending& pending, Result<> result) {
    order_.release(pending.ranges, pending.use());
    schedule_pump();
    if (!result) return pending.fail_with(result.error());
    ++counts_.writes_plain;
    counts_.bytes_plain += pending.ranges[0].length.value();
    pending.op->done(WriteDone{});
}

void MountedTarget::start_native(std::unique_ptr<Pending> pending) {
    order_.hold(pending->ranges, pending->use());
    ++running_;
    std::shared_ptr<Pending> running = std::move(pending);
    const WriteOp::Range& range = running->op->ranges[0];
    SharedFile& file = shared(range.file);
    file.access.use();
    std::span<const std::byte> data = range.data;
    if (!aligned(data.data())) {
        running->bounce = aligned_memory(data.size());
        if (!running->bounce) {
            // Later: what goes back to the queue must not do so while it is walked.
            return loop_.defer([this, running] { native_done(running, -ENOMEM); });
        }
        std::memcpy(running->bounce.get(), data.data(), data.size());
        data = {running->bounce.get(), data.size()};
    }
    ++counts_.atomic_submissions;
    loop_.write(file.access.direct(), range.offset, data, RWF_ATOMIC | RWF_DSYNC,
                [this, running](int result) { native_done(running, result); });
}

void MountedTarget::native_done(const std::shared_ptr<Pending>& pending, int result) {
    const WriteOp::Range& range = pending->op->ranges[0];
    SharedFile& file = shared(range.file);
    const size_t length = range.data.size();
    finish_simple(*pending);
    const bool may_log = !pending->forced && Bytes(length) <= commit_->log().unit_max();
    const bool done = result == static_cast<int>(length);
    const bool others = file.access.ack() == Ack::Strict || file.cached_writes;
    const bool collided =
        (result == -EIO && (file.page_error() || file.noisy())) ||
        ((done || result == -EIO) && others && file.any_cached(range.offset, Bytes(length)));
    if (collided && may_log) return log_instead(pending);
    // The kernel may have given the range its blocks.
    if (done) {
        return confirm_flush([this, pending, &file](const Result<>& confirmed) {
            if (confirmed) return native_acknowledged(*pending, file);
            commit_->poison(confirmed.error(), "native write");
            pending->fail_with(commit_->in_doubt());
        });
    }
    Error error = done ? Error{EIO, "native write"} : io_error(result, length, "native write");
    if (collided) {
        error.message += ": others have cached the range; in doubt, the device is not";
        return pending->fail_with(error);
    }
    // A refusal changed nothing: the range is not one aligned written run, or the kernel can't.
    if (!is_refusal(error.code)) {
        // Old or new, never mixed; but which is unknown, and so is what else that device lost.
        commit_->poison(error, "native write");
        return pending->fail_with(commit_->in_doubt());
    }
    if (may_log) return log_instead(pending);
    if (error.code == EINVAL) {
        error.code = EIO;
        error.message +=
            ": the range is not one aligned written run that the device takes; adopt repairs the "
            "layout";
    }
    pending->fail_with(error);
}

void MountedTarget::native_acknowledged(Pending& pending, SharedFile& file) {
    ++file.writes_native;
    ++counts_.writes_native;
    counts_.bytes_native += pending.op->ranges[0].data.size();
    const Ack ack = file.access.ack();
    ++(ack == Ack::Strict ? counts_.acks_strict : counts_.acks_exclusive);
    pending.op->done(WriteDone{Engine::Native, ack});
}

void MountedTarget::log_instead(const std::shared_ptr<Pending>& pending) {
    auto again = std::make_unique<Pending>();
    again->op = std::move(pending->op);
    again->ranges = pending->ranges;
    queue_.push_front(std::move(again));
}

}  // namespace atomic4
