#include "writer/owned_target.h"

#include <fcntl.h>
#include <sys/uio.h>

#include <cstring>

#include "writer/write_rules.h"

#ifndef RWF_ATOMIC
#define RWF_ATOMIC 0x00000040
#endif

namespace atomic4 {

struct OwnedTarget::OwnedFile final : TargetFile {
    size_t opens = 0;
    // AtomicWriter::retirements() + 1 when it was last written through the log.
    uint64_t logged_before = 0;
    std::optional<uint64_t> layout_problems;
};

// What a native write needs until its end, whether or not the target lives to see it.
struct OwnedTarget::Flight {
    OperationRef operation;
    std::shared_ptr<AsyncPort> port;
    BouncePool::Buffer copy;
    ByteOffset offset;
    std::span<const std::byte> data;
};

struct OwnedTarget::Group {
    std::vector<OperationRef> members;
    uint64_t bytes = 0;
};

namespace {

uint64_t payload(const WriteOp& op) {
    uint64_t sum = 0;
    for (const WriteOp::Range& range : op.ranges) sum += range.data.size();
    return sum;
}

}  // namespace

Result<std::unique_ptr<OwnedTarget>> OwnedTarget::open(EventLoop& loop, OpenVolume opened,
                                                       OwnedOptions options) {
    auto writer = A4_TRY(AtomicWriter::open(std::move(opened)));
    std::unique_ptr<OwnedTarget> target(new OwnedTarget(loop, std::move(writer), options));
    if (target->volume().device().atomic_limits().supported()) {
        // Without one (no /proc, say) native writes are as safe, only not parallel.
        auto port = target->volume().device().open_port();
        if (port) {
            target->bounce_ = BouncePool(port->memory_alignment);
            target->port_ = std::make_shared<AsyncPort>(std::move(*port));
        }
    }
    return target;
}

OwnedTarget::OwnedTarget(EventLoop& loop, std::unique_ptr<AtomicWriter> writer,
                         OwnedOptions options)
    : loop_(loop),
      writer_(std::move(writer)),
      options_(options),
      block_size_(writer_->volume().block_size()),
      bounce_(Bytes(1)) {}

OwnedTarget::~OwnedTarget() = default;

Result<FileRef> OwnedTarget::open_file(ext2_ino_t inode, std::optional<uint32_t> generation) {
    const FileState state = A4_TRY(writer_->file(inode, generation));
    A4_CHECK(check_file(volume(), state));
    auto& file = files_[inode];
    if (!file) {
        file = std::make_shared<OwnedFile>();
        file->inode = inode;
        file->generation = state.generation;
    }
    ++file->opens;
    return FileRef(file);
}

void OwnedTarget::close(FileRef file) {
    auto& mine = static_cast<OwnedFile&>(*file);
    if (mine.opens > 0) --mine.opens;
    if (mine.opens > 0) return;
    const auto known = files_.find(mine.inode);
    if (known != files_.end() && known->second == file) files_.erase(known);
    retire_ = retire_ || mine.logged_before == writer_->retirements() + 1;
    schedule();
}

Result<FileLimits> OwnedTarget::limits(const FileRef& file) {
    auto& mine = static_cast<OwnedFile&>(*file);
    const FileState state = A4_TRY(writer_->file(mine.inode, mine.generation));
    const WriteLimits limits = write_limits(volume(), writer_->log_unit_max());
    FileLimits found;
    found.size = state.size;
    found.unit = state.unit.value_or(Bytes(0));
    found.unit_min = limits.unit_min;
    found.unit_max = limits.unit_max();
    found.unit_max_native = limits.unit_max_native;
    found.unit_max_logged = limits.unit_max_logged;
    found.ack = Ack::Exclusive;
    found.atomic = state.atomic;
    // A walk over the whole mapping, for which clients don't wait twice.
    if (!mine.layout_problems) {
        mine.layout_problems = state.atomic && state.unit
                                   ? A4_TRY(check_layout(volume(), state, *state.unit)).problems
                                   : 0;
    }
    found.why_not_native = why_not_native(volume(), state, *mine.layout_problems);
    found.engine = found.why_not_native.empty() ? Engine::Native : Engine::Logged;
    return found;
}

// --- Taking operations ---------------------------------------------------------------------------

void OwnedTarget::schedule() {
    if (scheduled_) return;
    scheduled_ = true;
    loop_.defer([this, alive = std::weak_ptr(alive_)] {
        if (!alive.expired()) pump();
    });
}

WriteRange OwnedTarget::range_of(const WriteOp::Range& range) const {
    return {range.file->inode, range.file->generation, range.offset, range.data};
}

RangeOrder::Use OwnedTarget::use_of(const Operation& operation) {
    return operation.write ? RangeOrder::Use::Write : RangeOrder::Use::Read;
}

// What has to hold before ranges can be compared; the rest is judged when its turn has come.
Result<> OwnedTarget::check_shape(const WriteOp& op) const {
    if (stopping_) return fail(ESHUTDOWN, "the volume is being closed");
    if (op.kind == WriteOp::Kind::Batch) {
        std::vector<RequestedRange> parts;
        for (const WriteOp::Range& range : op.ranges)
            parts.push_back({range.file->inode, range.offset, Bytes(range.data.size())});
        return check_batch(parts, block_size_, batch_max());
    }
    if (op.ranges.size() != 1)
        return fail(EINVAL, "a write has one range, not {}", op.ranges.size());
    const WriteOp::Range& range = op.ranges.front();
    if (op.kind == WriteOp::Kind::Atomic && range.data.empty())
        return fail(EINVAL, "an atomic write of 0 bytes");
    if (range.offset.value() + range.data.size() < range.offset.value())
        return fail(EFBIG, "the offset {} is too large", range.offset);
    return {};
}

void OwnedTarget::submit(std::unique_ptr<WriteOp> op) {
    schedule();
    if (auto fits = check_shape(*op); !fits) {
        finish(*op, fail(std::move(fits).error()));
        return;
    }
    auto operation = std::make_unique<Operation>();
    for (const WriteOp::Range& range : op->ranges)
        operation->held.push_back({range.file->inode, range.offset, Bytes(range.data.size())});
    operation->write = std::move(op);
    if (frozen_)
        frozen_out_.push_back(std::move(operation));
    else
        waiting_.push_back(std::move(operation));
}

void OwnedTarget::read(FileRef file, ByteOffset offset, std::span<std::byte> into,
                       std::function<void(Result<Bytes>)> done) {
    schedule();
    if (stopping_ || offset.value() + into.size() < offset.value()) {
        finished_.emplace_back([done = std::move(done), stopping = stopping_, offset] {
            if (stopping)
                done(fail(ESHUTDOWN, "the volume is being closed"));
            else
                done(fail(EFBIG, "the offset {} is too large", offset));
        });
        return;
    }
    auto operation = std::make_unique<Operation>();
    operation->held.push_back({file->inode, offset, Bytes(into.size())});
    operation->file = std::move(file);
    operation->offset = offset;
    operation->into = into;
    operation->read_done = std::move(done);
    waiting_.push_back(std::move(operation));
}

void OwnedTarget::flush(FileRef, std::function<void(Result<>)> done) {
    // What was acknowledged is on its way already, and one flush is for all files.
    flushes_.push_back(std::move(done));
    schedule();
}

void OwnedTarget::freeze(std::function<void(Result<>)> done) {
    frozen_ = true;
    freezes_.push_back(std::move(done));
    schedule();
}

void OwnedTarget::thaw() {
    frozen_ = false;
    for (OperationRef& operation : frozen_out_) waiting_.push_back(std::move(operation));
    frozen_out_.clear();
    for (auto& done : freezes_) {
        finished_.emplace_back([done = std::move(done)] {
            done(fail(EBUSY, "thawed before everything had retired"));
        });
    }
    freezes_.clear();
    schedule();
}

void OwnedTarget::stop(std::function<void(Result<>)> done) {
    if (frozen_) thaw();
    stopping_ = true;
    stop_ = std::move(done);
    schedule();
}

// --- Carrying them out ---------------------------------------------------------------------------

void OwnedTarget::pump() {
    scheduled_ = false;
    Group group;
    bool started = false;
    order_.begin_walk();
    std::deque<OperationRef> left;
    while (!waiting_.empty()) {
        OperationRef operation = std::move(waiting_.front());
        waiting_.pop_front();
        const auto use = use_of(*operation);
        if (order_.may_start(operation->held, use) && start(operation, group)) {
            started = true;
            continue;
        }
        order_.pass_over(operation->held, use);
        left.push_back(std::move(operation));
    }
    waiting_ = std::move(left);
    if (!group.members.empty()) write_group(std::move(group));
    // Sockets get their turn before the next group: that makes it a larger one.
    if (started && !waiting_.empty()) schedule();
    background();
    deliver();
}

// Callbacks last: they may do anything, even end this object.
void OwnedTarget::deliver() {
    const auto finished = std::exchange(finished_, {});
    for (const auto& call : finished) call();
}

// False if it has to wait for the next group; else it is on its way, or done.
bool OwnedTarget::start(OperationRef& operation, Group& group) {
    if (operation->write) return start_write(operation, group);
    do_read(*operation);
    return true;
}

bool OwnedTarget::start_write(OperationRef& operation, Group& group) {
    WriteOp& op = *operation->write;
    if (op.kind == WriteOp::Kind::Plain) {
        auto done = write_plain(op);
        finish(op, done ? Result<Engine>(Engine::Auto) : fail(std::move(done).error()));
        return true;
    }
    if (op.kind == WriteOp::Kind::Atomic && op.engine != Engine::Logged && !operation->refused) {
        auto plan = writer_->plan(range_of(op.ranges.front()), op.engine);
        if (!plan) {
            finish(op, fail(std::move(plan).error()));
            return true;
        }
        if (plan->engine == Engine::Native) {
            start_native(std::move(operation), *plan);
            return true;
        }
    }
    const uint64_t bytes = payload(op);
    if (!group.members.empty() && group.bytes + bytes > batch_max().value()) return false;
    group.bytes += bytes;
    order_.hold(operation->held, RangeOrder::Use::Write);
    group.members.push_back(std::move(operation));
    return true;
}

void OwnedTarget::write_group(Group group) {
    std::vector<std::vector<WriteRange>> ranges;
    std::vector<GroupItem> items;
    ranges.reserve(group.members.size());
    for (const OperationRef& operation : group.members) {
        auto& own = ranges.emplace_back();
        for (const WriteOp::Range& range : operation->write->ranges) own.push_back(range_of(range));
        items.push_back({own, operation->write->kind == WriteOp::Kind::Batch});
    }
    GroupOutcome outcome = writer_->write_group(items);
    const uint64_t logged_before = writer_->retirements() + 1;
    for (const auto& [carried, length] : outcome.records) {
        ++counts_.groups;
        if (on_group) on_group(carried, length);
    }
    for (size_t i = 0; i < group.members.size(); ++i) {
        Operation& operation = *group.members[i];
        order_.release(operation.held, RangeOrder::Use::Write);
        Result<>& result = outcome.items[i];
        if (result) {
            for (const WriteOp::Range& range : operation.write->ranges)
                static_cast<OwnedFile&>(*range.file).logged_before = logged_before;
        }
        finish(*operation.write,
               result ? Result<Engine>(Engine::Logged) : fail(std::move(result).error()));
    }
    retire_when_idle();
}

Result<> OwnedTarget::write_plain(const WriteOp& op) {
    return writer_->write_plain(range_of(op.ranges.front()));
}

void OwnedTarget::do_read(Operation& operation) {
    const auto look = [&]() -> Result<Bytes> {
        A4_TRY(writer_->file(operation.file->inode, operation.file->generation));
        return writer_->read(operation.file->inode, operation.offset, operation.into);
    };
    auto result = look();
    if (result) {
        ++counts_.reads;
        counts_.bytes_read += result->value();
    }
    finished_.emplace_back(
        [done = std::move(operation.read_done), result = std::move(result)] { done(result); });
}

// --- Native writes -------------------------------------------------------------------------------

void OwnedTarget::start_native(OperationRef operation, const WritePlan& plan) {
    order_.hold(operation->held, RangeOrder::Use::Write);
    ++counts_.atomic_submissions;
    const auto data = operation->write->ranges.front().data;
    if (!port_) {
        auto written = volume().device().write_atomic(plan.device_offset, data);
        end_native(std::move(operation), std::move(written));
        return;
    }
    auto flight = std::make_shared<Flight>();
    flight->port = port_;
    flight->offset = plan.device_offset;
    flight->data = data;
    if (!is_aligned(reinterpret_cast<uintptr_t>(data.data()), port_->memory_alignment.value())) {
        auto copy = bounce_.get(data.size());
        if (!copy) {
            end_native(std::move(operation), fail(std::move(copy).error()));
            return;
        }
        flight->copy = std::move(*copy);
        std::memcpy(flight->copy.memory.get(), data.data(), data.size());
        flight->data = {flight->copy.memory.get(), data.size()};
    }
    flight->operation = std::move(operation);
    ++natives_;
    submit_native(flight);
}

void OwnedTarget::submit_native(const std::shared_ptr<Flight>& flight) {
    const int fd = flight->port->fd.get();
    // Pages in the block device's cache can make the kernel fall back to a torn write (F14).
    if (flight->port->block_device) {
        ::posix_fadvise(fd, static_cast<off_t>(flight->offset.value()),
                        static_cast<off_t>(flight->data.size()), POSIX_FADV_DONTNEED);
    }
    loop_.write(fd, flight->offset, flight->data, RWF_ATOMIC | RWF_DSYNC,
                [this, flight, alive = std::weak_ptr(alive_)](int result) {
                    if (!alive.expired()) native_done(flight, result);
                });
}

void OwnedTarget::native_done(const std::shared_ptr<Flight>& flight, int result) {
    if (result == -EINTR) {
        submit_native(flight);
        return;
    }
    --natives_;
    bounce_.put(std::move(flight->copy));
    Result<> written;
    const size_t size = flight->data.size();
    if (result < 0) {
        written =
            fail(Error::from_errno(-result, fmt::format("{}: atomic write of {} bytes at {}",
                                                        volume().name(), size, flight->offset)));
    } else if (static_cast<size_t>(result) != size) {
        written = fail(EIO, "{}: atomic write of {} bytes at {}: only {} were written",
                       volume().name(), size, flight->offset, result);
    }
    end_native(std::move(flight->operation), std::move(written));
    if (!waiting_.empty() || !freezes_.empty() || stop_) schedule();
    deliver();
}

void OwnedTarget::end_native(OperationRef operation, Result<> written) {
    WriteOp& op = *operation->write;
    order_.release(operation->held, RangeOrder::Use::Write);
    const bool refused =
        !written && (written.error().code == EINVAL || written.error().code == EOPNOTSUPP);
    if (refused && op.engine == Engine::Auto && payload(op) <= writer_->log_unit_max().value()) {
        // Before all that waits: what overlaps it came later.
        operation->refused = true;
        waiting_.push_front(std::move(operation));
        schedule();
        return;
    }
    auto done = writer_->finish_native(range_of(op.ranges.front()), std::move(written));
    finish(op, done ? Result<Engine>(Engine::Native) : fail(std::move(done).error()));
}

// --- Their end -----------------------------------------------------------------------------------

void OwnedTarget::finish(WriteOp& op, Result<Engine> result) {
    if (result) count(op, *result);
    Result<WriteDone> done =
        result ? Result<WriteDone>(WriteDone{
                     *result, op.kind == WriteOp::Kind::Plain ? Ack::None : Ack::Exclusive})
               : fail(std::move(result).error());
    finished_.emplace_back(
        [call = std::move(op.done), done = std::move(done)]() mutable { call(std::move(done)); });
}

void OwnedTarget::count(const WriteOp& op, Engine engine) {
    const uint64_t bytes = payload(op);
    if (op.kind == WriteOp::Kind::Plain) {
        ++counts_.writes_plain;
        counts_.bytes_plain += bytes;
        return;
    }
    ++counts_.acks_exclusive;
    if (op.kind == WriteOp::Kind::Batch) ++counts_.batches;
    const bool native = engine == Engine::Native;
    ++(native ? counts_.writes_native : counts_.writes_logged);
    (native ? counts_.bytes_native : counts_.bytes_logged) += bytes;
    for (const WriteOp::Range& range : op.ranges)
        ++(native ? range.file->writes_native : range.file->writes_logged);
}

TargetCounts OwnedTarget::counts() const {
    TargetCounts counts = counts_;
    counts.frozen = frozen_;
    counts.retirements = writer_->retirements();
    counts.log_used = writer_->log_used();
    counts.log_capacity = writer_->log_capacity();
    counts.live_records = writer_->live_records();
    counts.files = counts.files_exclusive = files_.size();
    return counts;
}

// What isn't about a range: flushes, retirement, freezing, the end.
void OwnedTarget::background() {
    const auto tell = [this](std::vector<std::function<void(Result<>)>>& calls,
                             const Result<>& result) {
        for (auto& call : calls)
            finished_.emplace_back([call = std::move(call), result] { call(result); });
        calls.clear();
    };
    if (!flushes_.empty()) {
        const auto flushed = writer_->flush();
        if (flushed) counts_.flushes += flushes_.size();
        tell(flushes_, flushed);
    }
    if (std::exchange(retire_, false) && writer_->live_records() > 0) {
        // Its failure is the writer's poisoning: the next one to ask is told.
        [[maybe_unused]] const auto retired = writer_->retire_all();
    }
    if (!waiting_.empty() || natives_ > 0) return;
    if (!freezes_.empty()) {
        // Plain writes too.
        auto retired = writer_->flush();
        if (retired) retired = writer_->retire_all();
        tell(freezes_, retired);
    }
    if (stop_) {
        finished_.emplace_back(
            [call = std::exchange(stop_, nullptr), closed = writer_->close()] { call(closed); });
    }
}

void OwnedTarget::retire_when_idle() {
    if (idle_timer_ || writer_->live_records() == 0 || writer_->poisoned()) return;
    idle_timer_ = true;
    groups_at_timer_ = counts_.groups;
    loop_.after(options_.idle, [this, alive = std::weak_ptr(alive_)](int) {
        if (alive.expired()) return;
        idle_timer_ = false;
        if (counts_.groups != groups_at_timer_ || !waiting_.empty()) {
            retire_when_idle();
        } else {
            retire_ = true;
            schedule();
        }
    });
}

}  // namespace atomic4
