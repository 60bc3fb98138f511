#include "writer/mounted_target.h"

#include <algorithm>

#include "ext4/format.h"
#include "writer/mounted_pending.h"

namespace atomic4 {
namespace {

using namespace std::chrono_literals;

// So many files may be kept locked by somebody before others' plain writes and allocations wait.
constexpr size_t kHelperThreads = 64;
constexpr size_t kOpeningThreads = 2;
// Live records of a volume at rest are retired after this, so that nobody waits for them.
constexpr auto kRest = 200ms;

}  // namespace

MountedTarget::MountedTarget(EventLoop& loop, std::unique_ptr<MountedVolume> volume)
    : loop_(loop), volume_(std::move(volume)) {}

Result<std::unique_ptr<MountedTarget>> MountedTarget::open(EventLoop& loop,
                                                           std::unique_ptr<MountedVolume> volume,
                                                           const LogContents& contents,
                                                           Options options) {
    std::unique_ptr<MountedTarget> target(new MountedTarget(loop, std::move(volume)));
    A4_CHECK(target->start(contents, std::move(options)));
    return target;
}

Result<> MountedTarget::start(const LogContents& contents, Options options) {
    helpers_ = A4_TRY(HelperThreads::start(loop_, kHelperThreads));
    opening_ = A4_TRY(HelperThreads::start(loop_, kOpeningThreads));
    openers_ = std::move(options.openers);
    why_no_watch_ = std::move(options.why_no_openers);
    native_limits_ = std::move(options.native_limits);
    if (openers_) watch_poll_ = loop_.poll(openers_->fd(), POLLIN, [this](int) { watch_ready(); });
    const MountStamp stamp = A4_TRY(volume_->stamp());
    auto log = A4_TRY(RedoLog::begin(volume_->log(), contents, {stamp.mtime, stamp.count}));
    log_fd_ = volume_->log().fd();
    GroupCommit::Placer& placer = *this;
    commit_ = std::make_unique<GroupCommit>(loop_, std::move(log), log_fd_, placer);
    commit_->on_late = [this](uint32_t inode) {
        if (on_late) on_late(inode);
    };
    return {};
}

MountedTarget::~MountedTarget() {
    *alive_ = false;
    if (watch_poll_ != 0) loop_.unpoll(watch_poll_);
    // Clients may have files longer than we.
    for (const auto& [inode, file] : files_) file->access.give_up("the daemon stops");
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
        // In this order: whatever the second can be told of, the first is told of too.
        auto witness = volume_->open_same_file(descriptor.get());
        if (!witness) return refuse(witness.error());
        auto read_only = volume_->open_same_file(descriptor.get());
        if (!read_only) return refuse(read_only.error());
        FileAccess::Surroundings around{
            loop_,
            *opening_,
            openers_.get(),
            why_no_watch_,
            [this] { schedule_pump(); },
            [this](std::function<void(Result<>)> call) { commit_->when_retired(std::move(call)); },
            [this, inode = state->inode] { commit_->make_strict(inode); }};
        AtomicLimits native = native_limits_(read_only->get());
        auto file = std::make_shared<SharedFile>(*state, around, std::move(*read_only),
                                                 std::move(*witness), std::move(native));
        found = files_.emplace(state->inode, std::move(file)).first;
    }
    const SharedRef file = found->second;
    ++file->handles;
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
    const auto it = files_.find(file->inode);
    if (it == files_.end() || it->second.get() != file.get()) return;
    // settle() lets it go, when nothing needs it any more.
    if (--it->second->handles == 0) schedule_pump();
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
                        it.unit >= it.native.unit_min;
    limits.engine = native ? Engine::Native : Engine::Logged;
    if (!it.native.supported())
        limits.why_not_native = it.native.why_not;
    else if (!limits.atomic)
        limits.why_not_native = "the file has no atomic flag, so nothing promises its layout";
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
    const Engine engine = write.engine;
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
    // In doubt nothing else runs, and what had begun holds its ranges for ever.
    if (commit_->poisoned() && pending.kind == Pending::Kind::Read) return true;
    bool held = frozen_ && pending.kind != Pending::Kind::Read;
    pending.each_file([&](const FileRef& file) {
        // Reads don't need the writable descriptor.
        if (pending.kind != Pending::Kind::Read)
            held = held || shared(file).access.held() || commit_->late(file->inode);
    });
    // Whoever it waits for may punch holes.
    if (held) pending.prepared = false;
    return !held && order_.may_start(pending.ranges, pending.use());
}

void MountedTarget::pump() {
    pump_scheduled_ = false;
    if (commit_->poisoned()) {
        fail_all();
        for (const auto& [inode, file] : files_) {
            file->access.give_up("the log is in doubt");
            file->access.refuse_waiting(commit_->in_doubt());
        }
    }
    GroupPlan plan;
    order_.begin_walk();
    reserved_.clear();
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
    send_questions();
    for (auto& [file, writes] : plain_) continue_plain(file, writes);
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
            SharedFile& it = shared(file);
            if (broken == nullptr) broken = it.spoiled ? &*it.spoiled : it.access.broken();
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

bool MountedTarget::plan_logged(std::unique_ptr<Pending>& pending, GroupPlan& plan) {
    const WriteOp& op = *pending->op;
    const bool strict = std::ranges::any_of(op.ranges, [](const WriteOp::Range& range) {
        return shared(range.file).access.ack() == Ack::Strict;
    });
    // Asked while a group is on its way, so that the answer costs no time.
    if (strict && !pending->prepared) return ask_blocks(pending);
    if (plan.full || !commit_->ready()) return false;
    Bytes bytes;
    for (const WriteOp::Range& range : op.ranges) bytes += Bytes(range.data.size());
    const size_t parts = plan.parts + op.ranges.size();
    const Bytes payload = plan.payload + bytes;
    if (!plan.items.empty() &&
        (parts > GroupCommit::kGroupParts || payload > commit_->group_max())) {
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
    if (!*there) return ask_blocks(pending);

    GroupCommit::Item item;
    bool grows = false;
    for (size_t i = 0; i < op.ranges.size(); ++i) {
        const WriteOp::Range& range = op.ranges[i];
        SharedFile& file = shared(range.file);
        file.access.use();
        ++file.writes_logged;
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
        const Error* spoiled = nullptr;
        bool retired = strict;
        running->each_file([&](const FileRef& file) {
            if (spoiled == nullptr && shared(file).spoiled) spoiled = &*shared(file).spoiled;
            retired = retired || shared(file).access.ack() == Ack::Strict;  // make_strict
        });
        if (spoiled != nullptr) return running->fail_with(*spoiled);
        ++(retired ? counts_.acks_strict : counts_.acks_exclusive);
        counts_.writes_logged += 1;
        counts_.bytes_logged += bytes.value();
        if (running->op->kind == WriteOp::Kind::Batch) ++counts_.batches;
        running->op->done(WriteDone{Engine::Logged, retired ? Ack::Strict : Ack::Exclusive});
    };
    plan.items.push_back(std::move(item));
    plan.parts = parts;
    plan.payload = payload;
    return true;
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
    for (auto& [file, writes] : plain_) {
        std::deque<std::shared_ptr<Pending>> waiting;
        waiting.swap(writes.waiting);
        for (const auto& pending : waiting) finish_plain(*pending, fail(commit_->in_doubt()));
    }
}

// A file that no client has open goes when no request of it is left and no record of it is live:
// until then its openers must be held, and what was placed must be flushed before it retires.
bool MountedTarget::may_go(const SharedRef& file) {
    if (file->handles > 0) return false;
    const auto dirty = std::ranges::find(dirty_, file);
    const long held_by_us = dirty == dirty_.end() ? 1 : 2;
    if (file.use_count() > held_by_us) return false;
    if (!commit_->poisoned() && commit_->log().has_live(file->inode)) {
        if (std::exchange(file->leaving, true)) return false;
        commit_->when_retired([this, weak = std::weak_ptr(file), alive = alive_](const Result<>&) {
            if (!*alive) return;
            if (const auto it = weak.lock()) it->leaving = false;
            schedule_pump();
        });
        return false;
    }
    // Plain writes; they may stay in the page cache.
    if (dirty != dirty_.end()) dirty_.erase(dirty);
    return true;
}

void MountedTarget::ended() {
    // Somebody may have been waiting for the last.
    if (--running_ == 0) schedule_pump();
}

// Files that nobody needs go; when nothing runs the waiting are told and live records retire.
void MountedTarget::settle() {
    std::erase_if(plain_, [](const auto& entry) {
        return entry.second.waiting.empty() && entry.second.running == 0;
    });
    std::erase_if(files_, [this](const auto& entry) { return may_go(entry.second); });
    const bool writes_wait =
        std::ranges::any_of(
            queue_, [](const auto& pending) { return pending->kind != Pending::Kind::Read; }) ||
        std::ranges::any_of(plain_,
                            [](const auto& entry) { return !entry.second.waiting.empty(); });
    // Reads change nothing: a frozen volume has them all the time.
    const bool quiet = running_ == 0 && (frozen_ || reading_ == 0) &&
                       (commit_->poisoned() || (commit_->idle() && !commit_->device_busy())) &&
                       (frozen_ || !writes_wait);
    if (quiet) {
        std::vector<std::function<void(Result<>)>> calls;
        calls.swap(freeze_calls_);
        std::ranges::move(std::exchange(stop_calls_, {}), std::back_inserter(calls));
        for (const auto& call : calls) commit_->when_retired(call);
    }
    // What is late stays live, and would be logged again and again.
    if (!commit_->poisoned() && !commit_->log().empty() && !commit_->any_late() && !retire_timer_) {
        retire_timer_ = true;
        loop_.after(kRest, [this, seen = activity_, alive = alive_](int) {
            if (!*alive) return;
            retire_timer_ = false;
            if (seen == activity_ && !commit_->any_late())
                commit_->when_retired([](const Result<>&) {});
            else
                schedule_pump();
        });
    }
}

void MountedTarget::freeze(std::function<void(Result<>)> done) {
    frozen_ = true;
    freeze_calls_.push_back(std::move(done));
    schedule_pump();
}

void MountedTarget::thaw() {
    frozen_ = false;
    for (auto& call : std::exchange(freeze_calls_, {}))
        loop_.defer([call = std::move(call)] {
            call(fail(EBUSY, "thawed before everything had retired"));
        });
    schedule_pump();
}

void MountedTarget::stop(std::function<void(Result<>)> done) {
    stopping_ = true;
    frozen_ = false;
    stop_calls_.push_back([this, done = std::move(done)](Result<> retired) {
        // In doubt: the session stays open in the log, for the restart to recover.
        if (retired) retired = commit_->close();
        for (const auto& [inode, file] : files_) file->access.give_up("the daemon stops");
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
    counts.late = commit_->late();
    counts.frozen = frozen_;
    counts.files = files_.size();
    for (const auto& [inode, file] : files_)
        ++(file->access.ack() == Ack::Strict ? counts.files_strict : counts.files_exclusive);
    return counts;
}

}  // namespace atomic4
