#include "writer/mounted_target.h"

#include <sys/syscall.h>
#include <sys/uio.h>

#include <algorithm>
#include <cstring>

#include "base/text.h"
#include "ext4/format.h"
#include "writer/shared_file.h"

#ifndef RWF_ATOMIC
#define RWF_ATOMIC 0x00000040
#endif

namespace atomic4 {
namespace {

using namespace std::chrono_literals;

// A group beyond this waits for no gain: the log write's length then decides, not its latency.
constexpr Bytes kGroupBytes{uint64_t{4} << 20};
constexpr size_t kGroupParts = 512;
// Live records of a volume at rest are retired after this, so that nobody waits for them.
constexpr auto kRest = 200ms;
// Buffered pages that a misplaced folio may hold.
constexpr long kCachestat = 451;

SharedFile& shared(const FileRef& file) {
    return static_cast<SharedFile&>(*file);
}

struct CachestatRange {
    uint64_t offset;
    uint64_t length;
};
struct Cachestat {
    uint64_t cached, dirty, writeback, evicted, recently_evicted;
};
// Kernels before 6.5 can't tell: then assume it.
bool any_cached(int fd, ByteOffset offset, Bytes length) {
    CachestatRange range{offset.value(), length.value()};
    Cachestat stat{};
    return ::syscall(kCachestat, fd, &range, &stat, 0) != 0 || stat.cached > 0;
}

struct FreeMemory {
    void operator()(std::byte* memory) const { std::free(memory); }
};
using AlignedMemory = std::unique_ptr<std::byte, FreeMemory>;
AlignedMemory aligned_memory(size_t size) {
    return AlignedMemory(static_cast<std::byte*>(std::aligned_alloc(4096, round_up(size, 4096))));
}
bool aligned(const void* memory) {
    return reinterpret_cast<uintptr_t>(memory) % 4096 == 0;
}

Error io_error(int result, size_t length, const char* what) {
    if (result < 0) return Error::from_errno(-result, what);
    return Error{EIO, fmt::format("{}: only {} of {} bytes", what, result, length)};
}

}  // namespace

// Something that waits in the queue, or runs.
struct MountedTarget::Pending {
    enum class Kind { Logged, Native, Plain, Read };
    Kind kind = Kind::Logged;
    std::unique_ptr<WriteOp> op;  // not of a read
    std::vector<HeldRange> ranges;
    std::vector<Bytes> new_sizes;  // of a logged one, once prepared; 0: unchanged
    bool prepared = false;
    bool retiring = false;  // waits for live records of its range
    bool forced = false;    // native or nothing
    // A read.
    FileRef file;
    std::span<std::byte> into;
    std::function<void(Result<Bytes>)> read_done;
    AlignedMemory bounce;

    RangeOrder::Use use() const {
        return kind == Kind::Read ? RangeOrder::Use::Read : RangeOrder::Use::Write;
    }
    template <class Visit>
    void each_file(Visit visit) const {
        if (kind == Kind::Read) return visit(file);
        for (const WriteOp::Range& range : op->ranges) visit(range.file);
    }
    void fail_with(const Error& error) {
        if (kind == Kind::Read) {
            if (read_done) read_done(fail(Error(error)));
        } else if (op->done) {
            op->done(fail(Error(error)));
        }
    }
};

// The group that the pump is putting together.
struct GroupPlan {
    std::vector<GroupCommit::Item> items;
    size_t parts = 0;
    Bytes payload;
    bool full = false;
};

Result<std::unique_ptr<MountedTarget>> MountedTarget::open(EventLoop& loop,
                                                           std::unique_ptr<MountedVolume> volume,
                                                           const LogContents& contents,
                                                           Options options) {
    std::unique_ptr<MountedTarget> target(new MountedTarget(loop, std::move(volume)));
    A4_CHECK(target->start(contents, std::move(options)));
    return target;
}

Result<> MountedTarget::start(const LogContents& contents, Options options) {
    engine_ = options.engine;
    helper_ = A4_TRY(HelperThread::start(loop_));
    openers_ = std::move(options.openers);
    why_no_watch_ = std::move(options.why_no_openers);
    if (openers_) watch_poll_ = loop_.poll(openers_->fd(), POLLIN, [this](int) { watch_ready(); });
    const MountStamp stamp = A4_TRY(volume_->stamp());
    auto log = A4_TRY(RedoLog::begin(volume_->log(), contents, {stamp.mtime, stamp.count}));
    log_fd_ = volume_->log().fd();
    GroupCommit::Placer& placer = *this;
    commit_ = std::make_unique<GroupCommit>(loop_, std::move(log), log_fd_, placer);
    return {};
}

MountedTarget::~MountedTarget() {
    *alive_ = false;
    if (watch_poll_ != 0) loop_.unpoll(watch_poll_);
    files_.clear();
}

// --- files ---

void MountedTarget::watch_ready() {
    const auto drained = openers_->drain([this](const OpenEvent& event) {
        const auto found = files_.find(static_cast<uint32_t>(event.inode));
        switch (event.kind) {
            case OpenEvent::Kind::Open:
                if (found == files_.end())
                    (void)openers_->allow(event.token).has_value();
                else
                    found->second->access.opened(event.pid, event.token);
                break;
            case OpenEvent::Kind::CloseWrite:
                // Our own descriptors are closed for each probe.
                if (found != files_.end() && event.pid != ::getpid())
                    found->second->access.writer_closed();
                break;
            case OpenEvent::Kind::Overflow:
                for (const auto& [inode, file] : files_) file->access.events_lost();
                break;
        }
    });
    // One opener may have got EPERM from the kernel; the watch goes on.
    (void)drained.has_value();
}

void MountedTarget::open_file(UniqueFd descriptor, pid_t peer, bool cooperative,
                              std::function<void(Result<FileRef>)> done) {
    const auto refuse = [&](const Error& error) {
        loop_.defer([done, error] { done(fail(Error(error))); });
    };
    if (stopping_) return refuse({ESHUTDOWN, "the daemon is stopping"});
    auto state = read_mounted_file(*volume_, descriptor.get());
    if (!state) return refuse(state.error());
    if (auto takes = check_mounted_file(*volume_, *state); !takes) return refuse(takes.error());
    if (auto options = volume_->check_options(); !options) return refuse(options.error());

    auto found = files_.find(state->inode);
    const bool fresh = found == files_.end();
    if (fresh) {
        const std::string path = fmt::format("/proc/self/fd/{}", descriptor.get());
        UniqueFd read_only(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
        if (!read_only) return refuse(Error::from_errno(errno, "opening the file"));
        FileAccess::Surroundings around{
            loop_,
            *helper_,
            openers_.get(),
            why_no_watch_,
            [this] { schedule_pump(); },
            [this](std::function<void(Result<>)> call) { commit_->when_retired(std::move(call)); }};
        auto file = std::make_shared<SharedFile>(*state, around, std::move(read_only));
        found = files_.emplace(state->inode, std::move(file)).first;
    }
    const SharedRef file = found->second;
    ++file->handles;
    file->closing = false;
    // Ours may be the last of the client's description.
    descriptor.reset();
    const auto ready = [this, file, done = std::move(done)](Result<> opened) {
        if (opened) return done(FileRef(file));
        close(file);
        done(fail(std::move(opened).error()));
    };
    if (fresh) {
        file->access.start(ready);
    } else {
        file->access.writer_closed();
        if (cooperative) file->access.declare(peer);
        file->access.when_ready(ready);
    }
}

void MountedTarget::close(FileRef file) {
    auto it = files_.find(file->inode);
    if (it == files_.end() || it->second.get() != file.get()) return;
    SharedRef shared_file = it->second;
    if (--shared_file->handles > 0) return;
    commit_->when_retired([this, weak = std::weak_ptr(shared_file), alive = alive_](Result<>) {
        const auto gone = weak.lock();
        if (!*alive || !gone || gone->handles > 0) return;
        gone->closing = true;
        schedule_pump();
    });
}

Result<FileLimits> MountedTarget::limits(const FileRef& file) {
    SharedFile& it = shared(file);
    FileLimits limits;
    limits.size = A4_TRY(it.size());
    limits.unit = it.unit;
    limits.atomic = it.unit.value() != 0;
    limits.unit_min = block_size();
    limits.unit_max_logged = commit_->log().unit_max();
    limits.unit_max_native = std::min(it.native.unit_max, Bytes(kUnitMax));
    limits.unit_max = std::max(limits.unit_max_logged, limits.unit_max_native);
    limits.ack = it.access.ack();
    limits.why_strict = it.access.why_strict();
    const bool native = it.native.supported() && limits.atomic && it.unit <= it.native.unit_max &&
                        it.unit >= it.native.unit_min && engine_ != Engine::Logged;
    limits.engine = native ? Engine::Native : Engine::Logged;
    if (!it.native.supported())
        limits.why_not_native = it.native.why_not;
    else if (!native)
        limits.why_not_native = "the file's unit is outside the device's limits";
    return limits;
}

// --- admission ---

Result<std::unique_ptr<MountedTarget::Pending>> MountedTarget::admit(std::unique_ptr<WriteOp> op) {
    auto pending = std::make_unique<Pending>();
    pending->op = std::move(op);
    WriteOp& write = *pending->op;
    const auto refuse = [&](Error error) {
        auto done = std::move(write.done);
        loop_.defer([done = std::move(done), error] { done(fail(Error(error))); });
        return fail(std::move(error));
    };
    if (stopping_) return refuse({ESHUTDOWN, "the daemon is stopping"});
    if (commit_->poisoned()) return refuse(commit_->in_doubt());
    for (const WriteOp::Range& range : write.ranges)
        pending->ranges.push_back({range.file->inode, range.offset, Bytes(range.data.size())});

    if (write.kind == WriteOp::Kind::Batch) {
        std::vector<RequestedRange> parts;
        for (const HeldRange& range : pending->ranges)
            parts.push_back({range.inode, range.offset, range.length});
        if (auto good = check_batch(parts, block_size(), batch_max()); !good)
            return refuse(good.error());
        return pending;
    }
    const SharedFile& file = shared(write.ranges[0].file);
    const HeldRange& range = pending->ranges[0];
    if (write.kind == WriteOp::Kind::Plain) {
        pending->kind = Pending::Kind::Plain;
        if (range.length.value() == 0) return refuse({EINVAL, "a write without bytes"});
        return pending;
    }
    const Engine engine = write.engine == Engine::Auto ? engine_ : write.engine;
    const Bytes logged_max = commit_->log().unit_max();
    const Bytes native_max = std::min(file.native.unit_max, Bytes(kUnitMax));
    // Native goes by the device's limits: whether there are any comes before what they are.
    const Bytes unit_max = engine == Engine::Native
                               ? (file.native.supported() ? native_max : Bytes(kUnitMax))
                           : engine == Engine::Logged ? logged_max
                                                      : std::max(logged_max, native_max);
    if (auto good = check_request(range.offset, range.length, block_size(), unit_max); !good)
        return refuse(good.error());
    if (engine == Engine::Native && !file.native.supported())
        return refuse({EOPNOTSUPP, "no native atomic writes here: " + file.native.why_not});
    if (engine == Engine::Logged) return pending;
    const auto can = file.native.supported()
                         ? check_atomic_limits(file.native, range.offset, range.length)
                         : fail(EOPNOTSUPP, "{}", file.native.why_not);
    pending->forced = engine == Engine::Native;
    if (can)
        pending->kind = Pending::Kind::Native;
    else if (pending->forced || range.length > logged_max)
        return refuse(can.error());
    return pending;
}

void MountedTarget::submit(std::unique_ptr<WriteOp> op) {
    auto pending = admit(std::move(op));
    if (pending) queue(std::move(*pending));
}

void MountedTarget::read(FileRef file, ByteOffset offset, std::span<std::byte> into,
                         std::function<void(Result<Bytes>)> done) {
    auto pending = std::make_unique<Pending>();
    pending->kind = Pending::Kind::Read;
    pending->file = std::move(file);
    pending->ranges.push_back({pending->file->inode, offset, Bytes(into.size())});
    pending->into = into;
    pending->read_done = std::move(done);
    queue(std::move(pending));
}

void MountedTarget::queue(std::unique_ptr<Pending> pending) {
    ++activity_;
    queue_.push_back(std::move(pending));
    schedule_pump();
}

void MountedTarget::schedule_pump() {
    if (pump_scheduled_) return;
    pump_scheduled_ = true;
    // Once for all that comes in during this turn of the loop: they make one group.
    loop_.defer([this, alive = alive_] {
        if (*alive) pump();
    });
}

// --- starting ---

bool MountedTarget::may_run(Pending& pending) {
    bool held = frozen_ && pending.kind != Pending::Kind::Read;
    pending.each_file([&](const FileRef& file) {
        // Reads don't need the writable descriptor.
        if (pending.kind != Pending::Kind::Read) held = held || shared(file).access.held();
    });
    return !held && order_.may_start(pending.ranges, pending.use());
}

void MountedTarget::pump() {
    pump_scheduled_ = false;
    if (commit_->poisoned()) {
        fail_all();
        for (const auto& [inode, file] : files_) file->access.give_up();
    }
    GroupPlan plan;
    order_.begin_walk();
    for (auto it = queue_.begin(); it != queue_.end();) {
        if (may_run(**it)) {
            if (start_one(*it, plan)) {
                it = queue_.erase(it);
                continue;
            }
        }
        order_.pass_over((*it)->ranges, (*it)->use());
        ++it;
    }
    if (!plan.items.empty()) {
        if (on_group)
            on_group(plan.items.size(),
                     record_header_length(plan.parts) + record_padded(plan.payload));
        commit_->begin(std::move(plan.items));
    }
    settle();
}

bool MountedTarget::start_one(std::unique_ptr<Pending>& pending, GroupPlan& plan) {
    const Error* broken = nullptr;
    if (pending->kind != Pending::Kind::Read)
        pending->each_file([&](const FileRef& file) {
            if (broken == nullptr) broken = shared(file).access.broken();
        });
    if (broken != nullptr) {
        pending->fail_with(*broken);
        return true;
    }
    switch (pending->kind) {
        case Pending::Kind::Read:
            start_read(std::move(pending));
            return true;
        case Pending::Kind::Plain:
            if (!retired_first(*pending)) return false;
            start_plain(std::move(pending));
            return true;
        case Pending::Kind::Native:
            if (!retired_first(*pending)) return false;
            start_native(std::move(pending));
            return true;
        case Pending::Kind::Logged:
            return plan_logged(pending, plan);
    }
    return false;
}

// Nothing live is left in the ranges: a replay would put it over what comes now.
bool MountedTarget::retired_first(Pending& pending) {
    const bool live = std::ranges::any_of(pending.ranges, [&](const HeldRange& range) {
        return commit_->overlaps_live(range.inode, range.offset, range.length);
    });
    if (live && !pending.retiring) {
        pending.retiring = true;
        commit_->when_retired([this, alive = alive_](const Result<>&) {
            if (*alive) schedule_pump();
        });
    }
    if (!live) pending.retiring = false;
    return !live;
}

// What a logged write needs before its record: sizes known, blocks there. False: blocks are
// missing.
Result<bool> MountedTarget::prepare(Pending& pending) {
    pending.new_sizes.clear();
    bool there = true;
    for (const WriteOp::Range& range : pending.op->ranges) {
        SharedFile& file = shared(range.file);
        const Bytes length(range.data.size());
        const Bytes end((range.offset + length).value());
        const Bytes size = A4_TRY(file.size());
        pending.new_sizes.push_back(end > size ? end : Bytes(0));
        if (end > size) file.forget_allocated();
        there =
            there && (pending.prepared || (end <= size && file.allocated(range.offset, length)));
    }
    return there;
}

// On the helper thread: it may wait, for a frozen volume too.
void MountedTarget::allocate(std::unique_ptr<Pending> pending) {
    order_.hold(pending->ranges, pending->use());
    ++running_;
    struct Hole {
        int fd;
        off_t offset;
        off_t length;
    };
    std::vector<Hole> holes;
    std::vector<FileRef> users;
    for (const WriteOp::Range& range : pending->op->ranges) {
        SharedFile& file = shared(range.file);
        file.access.use();
        users.push_back(range.file);
        holes.push_back({file.access.direct(), static_cast<off_t>(range.offset.value()),
                         static_cast<off_t>(range.data.size())});
    }
    auto moved = std::make_shared<std::unique_ptr<Pending>>(std::move(pending));
    helper_->run(
        [holes] {
            for (const Hole& hole : holes) {
                if (::fallocate(hole.fd, FALLOC_FL_KEEP_SIZE, hole.offset, hole.length) != 0 &&
                    errno != EOPNOTSUPP)
                    return -errno;
            }
            return 0;
        },
        [this, moved, users](int result) {
            std::unique_ptr<Pending> it = std::move(*moved);
            --running_;
            order_.release(it->ranges, it->use());
            for (const FileRef& file : users) shared(file).access.unuse();
            if (result < 0) {
                it->fail_with(Error::from_errno(-result, "allocating blocks for the write"));
            } else {
                it->prepared = true;
                queue_.push_front(std::move(it));
            }
            schedule_pump();
        });
}

bool MountedTarget::plan_logged(std::unique_ptr<Pending>& pending, GroupPlan& plan) {
    if (plan.full || !commit_->ready()) return false;
    const WriteOp& op = *pending->op;
    Bytes bytes;
    for (const WriteOp::Range& range : op.ranges) bytes += Bytes(range.data.size());
    const size_t parts = plan.parts + op.ranges.size();
    const Bytes payload = plan.payload + bytes;
    if (!plan.items.empty() && (parts > kGroupParts || payload > kGroupBytes)) {
        plan.full = true;
        return false;
    }
    if (!commit_->has_room(parts, payload)) {
        plan.full = true;
        if (plan.items.empty()) commit_->make_room();
        return false;
    }
    const auto there = prepare(*pending);
    if (!there) {
        pending->fail_with(there.error());
        return true;
    }
    if (!*there) {
        allocate(std::move(pending));
        return true;
    }

    GroupCommit::Item item;
    bool strict = false;
    bool grows = false;
    for (size_t i = 0; i < op.ranges.size(); ++i) {
        const WriteOp::Range& range = op.ranges[i];
        SharedFile& file = shared(range.file);
        file.access.use();
        ++file.writes_logged;
        strict = strict || file.access.ack() == Ack::Strict;
        grows = grows || pending->new_sizes[i].value() > 0;
        item.parts.push_back({range.file,
                              {file.inode, file.generation, range.offset, Bytes(range.data.size()),
                               pending->new_sizes[i]},
                              range.data});
    }
    item.need = strict  ? GroupCommit::Need::Retired
                : grows ? GroupCommit::Need::Flushed
                        : GroupCommit::Need::Placed;
    order_.hold(pending->ranges, pending->use());
    std::shared_ptr<Pending> running = std::move(pending);
    item.placed = [this, running] {
        order_.release(running->ranges, running->use());
        running->each_file([](const FileRef& file) { shared(file).access.unuse(); });
        if (!queue_.empty()) schedule_pump();
    };
    item.done = [this, running, strict, bytes](Result<> done) {
        if (!done) return running->fail_with(done.error());
        ++(strict ? counts_.acks_strict : counts_.acks_exclusive);
        counts_.writes_logged += 1;
        counts_.bytes_logged += bytes.value();
        if (running->op->kind == WriteOp::Kind::Batch) ++counts_.batches;
        running->op->done(WriteDone{Engine::Logged, strict ? Ack::Strict : Ack::Exclusive});
    };
    plan.items.push_back(std::move(item));
    plan.parts = parts;
    plan.payload = payload;
    return true;
}

// --- reads, plain and native writes ---

void MountedTarget::finish_simple(Pending& pending) {
    --running_;
    order_.release(pending.ranges, pending.use());
    pending.each_file([&](const FileRef& file) {
        if (pending.kind != Pending::Kind::Read) shared(file).access.unuse();
    });
    schedule_pump();
}

void MountedTarget::start_read(std::unique_ptr<Pending> pending) {
    order_.hold(pending->ranges, pending->use());
    ++running_;
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
    ++running_;
    std::shared_ptr<Pending> running = std::move(pending);
    const WriteOp::Range& range = running->op->ranges[0];
    const auto file = std::static_pointer_cast<SharedFile>(range.file);
    file->access.use();
    write_cached(file, range.offset, range.data, [this, running, file](Result<> done) {
        finish_simple(*running);
        if (!done) return running->fail_with(done.error());
        ++counts_.writes_plain;
        counts_.bytes_plain += running->ranges[0].length.value();
        running->op->done(WriteDone{});
    });
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
        if (!running->bounce) return native_done(running, -ENOMEM);
        std::memcpy(running->bounce.get(), data.data(), data.size());
        data = {running->bounce.get(), data.size()};
    }
    ++counts_.atomic_submissions;
    loop_.write(file.access.direct(), range.offset, data, RWF_ATOMIC | RWF_DSYNC,
                [this, running](int result) { native_done(running, result); });
}

void MountedTarget::native_done(std::shared_ptr<Pending> pending, int result) {
    const WriteOp::Range& range = pending->op->ranges[0];
    const size_t length = range.data.size();
    finish_simple(*pending);
    if (result == static_cast<int>(length)) {
        ++range.file->writes_native;
        ++counts_.writes_native;
        counts_.bytes_native += length;
        pending->op->done(WriteDone{Engine::Native, Ack::None});
        return;
    }
    const Error error = io_error(result, length, "native write");
    // A refusal changed nothing: the range is not one aligned written run, or the kernel can't.
    const bool refused = error.code == EINVAL || error.code == EOPNOTSUPP || error.code == EAGAIN ||
                         error.code == ENOMEM || error.code == ENOSPC;
    if (!refused) {
        // Old or new, never mixed; but which is unknown, and so is what else that device lost.
        commit_->poison(error, "native write");
        return pending->fail_with(commit_->in_doubt());
    }
    if (pending->forced || Bytes(length) > commit_->log().unit_max()) {
        const int code = error.code == EINVAL ? EIO : error.code;
        return pending->fail_with(
            {code, fmt::format("{}: the range is not one aligned written run that the device "
                               "takes; adopt repairs the layout",
                               error.message)});
    }
    auto again = std::make_unique<Pending>();
    again->op = std::move(pending->op);
    again->ranges = pending->ranges;
    queue_.push_front(std::move(again));
}

// --- placement ---

void MountedTarget::place(const FileRef& file, ByteOffset offset, std::span<const std::byte> data,
                          bool durable, std::function<void(Result<>)> done) {
    const auto it = std::static_pointer_cast<SharedFile>(file);
    ++running_;
    loop_.write(
        it->access.direct(), offset, data, durable ? RWF_DSYNC : 0,
        [this, it, offset, data, durable, done = std::move(done)](int result) mutable {
            --running_;
            if (result > 0 && static_cast<size_t>(result) < data.size()) {
                // The rest; what is there already is old or new like any placement.
                const auto n = static_cast<uint64_t>(result);
                return place(it, offset + Bytes(n), data.subspan(n), durable, std::move(done));
            }
            // A page that somebody wrote meanwhile makes a durable write fail like this.
            const bool collided = result == -EIO && it->access.ack() == Ack::Strict &&
                                  any_cached(it->access.read_only(), offset, Bytes(data.size()));
            if (static_cast<size_t>(result) != data.size() && !collided)
                return done(fail(io_error(result, data.size(), "write to the file")));
            placed(it, offset, data, durable && !collided, std::move(done));
        });
}

void MountedTarget::placed(const SharedRef& file, ByteOffset offset,
                           std::span<const std::byte> data, bool durable,
                           std::function<void(Result<>)> done) {
    const bool others = file->access.ack() == Ack::Strict || file->cached_writes;
    if (others && any_cached(file->access.read_only(), offset, Bytes(data.size()))) {
        file->collided = true;
        return write_cached(file, offset, data, std::move(done));
    }
    if (!durable) mark_dirty(file);
    done({});
}

// Only once the bytes are there: a flush begun before would not have caught them.
void MountedTarget::mark_dirty(const SharedRef& file) {
    if (file->dirty) return;
    file->dirty = true;
    dirty_.push_back(file);
}

// Through the page cache; to be flushed.
void MountedTarget::write_cached(const SharedRef& file, ByteOffset offset,
                                 std::span<const std::byte> data,
                                 std::function<void(Result<>)> done) {
    ++running_;
    file->cached_writes = true;
    helper_->run(
        [direct = file->access.direct(), offset, data]() -> int {
            const std::string path = fmt::format("/proc/self/fd/{}", direct);
            const UniqueFd fd(::open(path.c_str(), O_RDWR | O_CLOEXEC));
            if (!fd) return -errno;
            for (size_t written = 0; written < data.size();) {
                const ssize_t n = ::pwrite(fd.get(), data.data() + written, data.size() - written,
                                           static_cast<off_t>(offset.value() + written));
                if (n < 0 && errno == EINTR) continue;
                if (n <= 0) return n < 0 ? -errno : -EIO;
                written += static_cast<size_t>(n);
            }
            return 0;
        },
        [this, file, done = std::move(done)](int result) {
            --running_;
            mark_dirty(file);
            done(result < 0 ? Result<>(fail(Error::from_errno(-result, "write to the file")))
                            : Result<>());
        });
}

// --- flushing ---

// fdatasync on the descriptor that lives as long as the file: what it reports once it must see.
void MountedTarget::flush_file(const SharedRef& file, bool again,
                               std::function<void(Result<>)> done) {
    ++running_;
    const bool collided = std::exchange(file->collided, false);
    loop_.fdatasync(file->access.read_only(), [this, file, again, collided,
                                               done = std::move(done)](int result) mutable {
        --running_;
        if (result >= 0) return done({});
        // The kernel's word for "a page and a direct write collided", once: what was placed has
        // been written again through the cache since. Anything else is final.
        if (result == -EIO && collided && !again) return flush_file(file, true, std::move(done));
        done(fail(Error::from_errno(-result, fmt::format("fdatasync of inode {}", file->inode))));
    });
}

void MountedTarget::flush_placed(std::function<void(Result<>)> done) {
    std::vector<SharedRef> files;
    files.swap(dirty_);
    if (files.empty()) return done({});
    struct Progress {
        size_t left;
        Result<> result;
        std::function<void(Result<>)> done;
    };
    auto progress = std::make_shared<Progress>(Progress{files.size(), {}, std::move(done)});
    for (const SharedRef& file : files) {
        file->dirty = false;
        flush_file(file, false, [progress](Result<> flushed) {
            if (!flushed && progress->result) progress->result = std::move(flushed);
            if (--progress->left == 0) progress->done(std::move(progress->result));
        });
    }
}

void MountedTarget::flush(FileRef file, std::function<void(Result<>)> done) {
    ++counts_.flushes;
    if (commit_->poisoned()) {
        loop_.defer([done, error = commit_->in_doubt()] { done(fail(Error(error))); });
        return;
    }
    // Logged writes are durable already; plain ones are in the page cache.
    const auto finish = [this, done](Result<> flushed) {
        if (!flushed) {
            commit_->poison(flushed.error(), "flush");
            return done(fail(commit_->in_doubt()));
        }
        done({});
    };
    if (!file) return flush_placed(finish);
    const auto it = std::static_pointer_cast<SharedFile>(file);
    flush_file(it, false, finish);
}

// --- rest, freeze, stop ---

void MountedTarget::fail_all() {
    std::list<std::unique_ptr<Pending>> all;
    all.swap(queue_);
    for (auto& pending : all) {
        // What is stored can still be read.
        if (pending->kind == Pending::Kind::Read)
            queue_.push_back(std::move(pending));
        else
            pending->fail_with(commit_->in_doubt());
    }
}

// When nothing runs: files that nobody has open go, the waiting are told, live records retire.
void MountedTarget::settle() {
    for (auto it = files_.begin(); it != files_.end();) {
        const SharedRef& file = it->second;
        if (file->closing && file->handles == 0) {
            // Its records are retired; what else was written may stay in the page cache.
            if (std::erase(dirty_, file) > 0) file->dirty = false;
        }
        if (file->closing && file->handles == 0 && file.use_count() == 1)
            it = files_.erase(it);
        else
            ++it;
    }
    const bool writes_wait = std::ranges::any_of(
        queue_, [](const auto& pending) { return pending->kind != Pending::Kind::Read; });
    const bool quiet =
        running_ == 0 && (commit_->poisoned() || commit_->idle()) && (frozen_ || !writes_wait);
    if (quiet && !quiet_calls_.empty()) {
        std::vector<std::function<void(Result<>)>> calls;
        calls.swap(quiet_calls_);
        for (const auto& call : calls) commit_->when_retired(call);
    }
    if (!commit_->poisoned() && !commit_->log().empty() && !retire_timer_) {
        retire_timer_ = true;
        loop_.after(kRest, [this, seen = activity_, alive = alive_](int) {
            if (!*alive) return;
            retire_timer_ = false;
            if (seen == activity_)
                commit_->when_retired([](const Result<>&) {});
            else
                schedule_pump();
        });
    }
}

void MountedTarget::freeze(std::function<void(Result<>)> done) {
    frozen_ = true;
    quiet_calls_.push_back(std::move(done));
    schedule_pump();
}

void MountedTarget::thaw() {
    frozen_ = false;
    schedule_pump();
}

void MountedTarget::stop(std::function<void(Result<>)> done) {
    stopping_ = true;
    frozen_ = false;
    quiet_calls_.push_back([this, done = std::move(done)](Result<> retired) {
        // In doubt: the session stays open in the log, for the restart to recover.
        if (retired) retired = commit_->close();
        files_.clear();
        done(std::move(retired));
    });
    schedule_pump();
}

TargetCounts MountedTarget::counts() const {
    TargetCounts counts = counts_;
    counts.groups = commit_->groups();
    counts.retirements = commit_->retirements();
    counts.log_used = commit_->log().used();
    counts.log_capacity = commit_->log().capacity();
    counts.live_records = commit_->log().live_count();
    counts.files = files_.size();
    for (const auto& [inode, file] : files_)
        ++(file->access.ack() == Ack::Strict ? counts.files_strict : counts.files_exclusive);
    return counts;
}

}  // namespace atomic4
