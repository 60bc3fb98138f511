#include "writer/group_commit.h"

#include <sys/uio.h>

#include <algorithm>
#include <set>
#include <utility>

namespace atomic4 {
namespace {

using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;

// Of the log's capacity: what is late, logged once more, with headers.
constexpr uint64_t kLateShare = 6;
// What is late is not logged again at a higher rate than this, however often somebody waits for it.
constexpr uint64_t kMovedPerSecond = uint64_t{64} << 20;
constexpr auto kMemoryPause = 100ms;
// A group beyond this waits for no gain: the log write's length then decides, not its latency.
constexpr Bytes kGroupBytes{uint64_t{4} << 20};
// The buffers of groups of which something is late.
constexpr Bytes kLateMemory{uint64_t{128} << 20};

Result<> whole(int result, size_t length, std::string_view what) {
    if (result < 0) return fail(Error::from_errno(-result, what));
    if (static_cast<size_t>(result) != length)
        return fail(EIO, "{}: only {} of {} bytes were written", what, result, length);
    return {};
}

}  // namespace

GroupCommit::GroupCommit(EventLoop& loop, std::unique_ptr<RedoLog> log, int log_fd, Placer& placer,
                         std::chrono::milliseconds late_after)
    : loop_(loop),
      log_(std::move(log)),
      log_fd_(log_fd),
      placer_(placer),
      late_after_(late_after),
      placed_(log_->last_sequence()),
      flushed_(placed_) {}

bool GroupCommit::wants_space() const {
    return space_wanted_ || log_->used().value() > log_->capacity().value() / 2;
}

// Space is kept for what may become late, twice: one of the two fits, wherever the head stands.
bool GroupCommit::has_room(size_t parts, Bytes payload) const {
    const auto left = log_->free_after(Load{parts, payload}.length());
    const Load unplaced{unplaced_.parts + parts, unplaced_.payload + payload};
    const Bytes late = std::min(unplaced.length(), late_max());
    return left && *left >= late + late;
}

Bytes GroupCommit::late_max() const {
    return Bytes(log_->capacity().value() / kLateShare);
}

// Two of them, all of it late, may be: so many are on their way before the first is found late.
Bytes GroupCommit::group_max() const {
    const Bytes headers = record_header_length(kGroupParts) * 2;
    const Bytes late = late_max();
    const Bytes payload = late > headers ? Bytes((late - headers).value() / 2) : Bytes(0);
    return std::clamp(payload, Bytes(kLogBlock), kGroupBytes);
}

void GroupCommit::make_room() {
    // What is late stays live, however often it is moved.
    if (late_.empty()) retire_wanted_ = std::max(retire_wanted_, log_->last_sequence());
    space_wanted_ = true;
    advance();
}

size_t GroupCommit::on_their_way() const {
    return static_cast<size_t>(std::ranges::count_if(groups_, [](const auto& group) {
        return !group->late && (!group->logged || group->own_left > 0);
    }));
}

void GroupCommit::begin(std::vector<Item> items) {
    std::vector<RangeRef> ranges;
    std::vector<std::span<const std::byte>> data;
    for (uint32_t operation = 0; operation < items.size(); ++operation) {
        for (Part& part : items[operation].parts) {
            part.range.operation = operation;
            ranges.push_back(part.range);
            data.push_back(part.data);
        }
    }
    const auto staged = log_->stage_append(ranges, data);
    if (!staged) {
        // No memory, or a caller that didn't ask has_room: nothing has happened.
        for (Item& item : items) {
            if (item.placed) item.placed();
            item.done(fail(Error(staged.error())));
        }
        return;
    }
    std::vector<PlacementRef> own;
    auto payload = staged->appended.payloads.begin();
    for (Item& item : items) {
        auto it = std::make_shared<Placement>();
        it->left = item.parts.size();
        it->item = std::move(item);
        it->placed.resize(it->left);
        it->logged.assign(payload, payload + static_cast<ptrdiff_t>(it->left));
        payload += static_cast<ptrdiff_t>(it->left);
        it->memory = staged->appended.memory;
        add_unplaced(*it, unplaced_);
        own.push_back(std::move(it));
    }
    ++group_count_;
    start(*staged, std::move(own), {});
}

void GroupCommit::start(const RedoLog::Staged& staged, std::vector<PlacementRef> own,
                        std::vector<PlacementRef> moved) {
    auto group = std::make_unique<Group>();
    group->sequence = staged.appended.sequence;
    group->writes = staged.writes;
    group->memory = staged.appended.memory;
    for (const auto& write : staged.writes) group->length += Bytes(write.bytes.size());
    group->own_left = group->left = own.size();
    for (const PlacementRef& it : own) it->group = group.get();
    group->own = std::move(own);
    group->moved = std::move(moved);
    logging_ = true;
    logged_retired_ = flushed_;
    groups_.push_back(std::move(group));
    write_log(*groups_.back(), 0);
}

// The pad, if there is one, must be durable before the record.
void GroupCommit::write_log(Group& group, size_t index) {
    const RedoLog::LogWrite& write = group.writes[index];
    loop_.write(log_fd_, write.position, write.bytes, RWF_DSYNC,
                [this, &group, index, length = write.bytes.size()](int result) {
                    auto written = whole(result, length, "log write");
                    if (written && index + 1 < group.writes.size())
                        return write_log(group, index + 1);
                    logged(group, std::move(written));
                });
}

void GroupCommit::logged(Group& group, Result<> written) {
    logging_ = false;
    if (auto finished = log_->finish_append(std::move(written)); !finished) {
        poison(finished.error(), "log write");
        return;
    }
    if (poisoned_) return;
    group.logged = true;
    group.since = Clock::now();
    group.memory.reset();
    const std::vector<PlacementRef> moved = std::exchange(group.moved, {});
    for (const PlacementRef& it : moved) {
        // This record has it now.
        --std::exchange(it->group, &group)->left;
        ++group.left;
        it->moving = false;
    }
    leave();
    // The next group's log write goes first: all wait for the log, only this group for its places.
    placer_.wake();
    if (group.own_left > 0) {
        loop_.defer([this, &group, alive = alive_] {
            if (*alive && !poisoned_) place(group);
        });
    }
    // Those that were placed meanwhile; this may be the end of the group.
    for (const PlacementRef& it : moved)
        if (it->left == 0) placed(it);
    if (!moved.empty()) finish();
    move_when_wanted();
    serve();  // the record may have said what is retired
}

void GroupCommit::place(Group& group) {
    look_later();
    // A single write that has to be durable in place becomes so by itself, without a flush.
    const bool durable =
        group.own.size() == 1 && group.own[0]->left == 1 && group.own[0]->item.need != Need::Placed;
    for (const PlacementRef& it : group.own) {
        for (size_t i = 0; i < it->logged.size(); ++i) {
            const Part& part = it->item.parts[i];
            placer_.place(part.file, part.range.offset, it->logged[i], durable,
                          [this, it, i](Result<> done) {
                              if (poisoned_) return placer_.wake();
                              if (!done) return poison(done.error(), "placement");
                              it->placed[i] = true;
                              --unplaced_.parts;
                              unplaced_.payload -= Bytes(it->logged[i].size());
                              if (--it->left == 0) placed(it);
                          });
        }
    }
}

void GroupCommit::placed(const PlacementRef& it) {
    if (it->moving) return;  // its range stays held until the newer record is live
    Group& group = *it->group;
    --group.left;
    if (it->late)
        std::erase(late_, it);
    else
        --group.own_left;
    Item& item = it->item;
    const Need need = item.need;
    const auto done = std::exchange(item.done, nullptr);
    if (item.placed) item.placed();
    if (need != Need::Placed) acknowledge_later(group.sequence, need, done);
    if (group.left == 0 || it->late) finish();
    if (need == Need::Placed) done({});
}

// Groups that are placed, in the order of their records.
void GroupCommit::leave() {
    while (!groups_.empty() && groups_.front()->logged && groups_.front()->left == 0) {
        placed_ = groups_.front()->sequence;
        groups_.pop_front();
    }
    log_->note_placed(placed_);
}

void GroupCommit::finish() {
    leave();
    advance();
    placer_.wake();
}

// --- late placements ---

bool GroupCommit::late(uint32_t inode) const {
    return std::ranges::any_of(late_, [inode](const PlacementRef& it) {
        for (size_t i = 0; i < it->placed.size(); ++i)
            if (!it->placed[i] && it->item.parts[i].range.inode == inode) return true;
        return false;
    });
}

void GroupCommit::look_later() {
    if (std::exchange(looking_, true)) return;
    loop_.after(late_after_ / 2, [this, alive = alive_](int) {
        if (*alive) look_for_late();
    });
}

void GroupCommit::look_for_late() {
    looking_ = false;
    if (poisoned_) return;
    const auto now = Clock::now();
    std::set<uint32_t> files;
    bool found = false;
    for (const auto& group : groups_) {
        if (!group->logged || group->late || group->own_left == 0) continue;
        if (now - group->since < late_after_ || !may_be_late(*group)) {
            look_later();
            continue;
        }
        found = group->late = true;
        group->own_left = 0;
        for (const PlacementRef& it : group->own) {
            if (it->left == 0) continue;
            it->late = true;
            late_.push_back(it);
            for (size_t i = 0; i < it->placed.size(); ++i)
                if (!it->placed[i]) files.insert(it->item.parts[i].range.inode);
        }
    }
    if (!found) return;
    for (const uint32_t inode : files)
        if (on_late) on_late(inode);
    advance();
    placer_.wake();
}

void GroupCommit::add_unplaced(const Placement& it, Load& load) {
    for (size_t i = 0; i < it.placed.size(); ++i) {
        if (it.placed[i]) continue;
        ++load.parts;
        load.payload += Bytes(it.logged[i].size());
    }
}

GroupCommit::Load GroupCommit::late_load() const {
    Load load;
    for (const PlacementRef& it : late_) add_unplaced(*it, load);
    return load;
}

bool GroupCommit::may_be_late(const Group& group) const {
    Load load = late_load();
    std::set<const LogBuffer*> buffers;
    for (const PlacementRef& it : late_) buffers.insert(it->memory.get());
    for (const PlacementRef& it : group.own) {
        if (it->left > 0) add_unplaced(*it, load);
        buffers.insert(it->memory.get());
    }
    Bytes memory;
    for (const LogBuffer* buffer : buffers) memory += buffer->size();
    return load.length() <= late_max() && memory <= kLateMemory;
}

// Only what is late keeps the first group from being placed, and somebody waits for it to retire,
// or for space of which more comes free than it takes.
bool GroupCommit::moving_wanted() const {
    if (poisoned_ || logging_ || late_.empty()) return false;
    const Group& first = *groups_.front();
    if (!first.late && first.own_left > 0) return false;
    const Bytes length = late_load().length();
    if (!log_->free_after(length)) return false;
    if (std::max(flush_wanted_, retire_wanted_) >= first.sequence) return true;
    return wants_space() && moving_frees() > length;
}

// Records that are placed, or would be if what is late had moved.
Bytes GroupCommit::moving_frees() const {
    Bytes length;
    for (const auto& group : groups_)
        if (group->late || (group->logged && group->left == 0)) length += group->length;
    return length;
}

// Not at once: a group may be about to begin, and all that is late is logged again for each who
// waits.
void GroupCommit::move_when_wanted() {
    if (move_scheduled_ || !moving_wanted()) return;
    move_scheduled_ = true;
    const auto move = [this, alive = alive_] {
        if (!*alive) return;
        move_scheduled_ = false;
        if (moving_wanted()) move_late();
    };
    const auto pause = next_move_ - Clock::now();
    if (pause.count() > 0)
        loop_.after(pause, [move](int) { move(); });
    else
        loop_.defer(move);
}

void GroupCommit::move_late() {
    std::vector<RangeRef> ranges;
    std::vector<std::span<const std::byte>> data;
    uint32_t operation = 0;
    for (const PlacementRef& it : late_) {
        const bool begun = it->left < it->placed.size();
        for (size_t i = 0; i < it->placed.size(); ++i) {
            if (it->placed[i]) continue;
            ranges.push_back(it->item.parts[i].range);
            ranges.back().operation = operation | (begun ? kOperationBegun : 0);
            data.push_back(it->logged[i]);
        }
        ++operation;
    }
    const auto staged = log_->stage_append(ranges, data);
    if (!staged) {
        // No memory.
        next_move_ = Clock::now() + kMemoryPause;
        return move_when_wanted();
    }
    const auto length = late_load().length().value();
    next_move_ = Clock::now() + std::chrono::nanoseconds(length * 1'000'000'000 / kMovedPerSecond);
    for (const PlacementRef& it : late_) it->moving = true;
    start(*staged, {}, late_);
}

// --- flush, retire, acknowledge ---

void GroupCommit::acknowledge_later(uint64_t sequence, Need need,
                                    std::function<void(Result<>)> call) {
    uint64_t& wanted = need == Need::Flushed ? flush_wanted_ : retire_wanted_;
    wanted = std::max(wanted, sequence);
    waiters_.emplace(sequence, Waiter{need, std::move(call)});
}

void GroupCommit::when_retired(std::function<void(Result<>)> call) {
    if (poisoned_) return call(fail(in_doubt()));
    // Also the one that is being logged now.
    const uint64_t sequence = groups_.empty() ? log_->last_sequence() : groups_.back()->sequence;
    if (log_->durable_retired() >= sequence || (idle() && log_->empty())) return call({});
    acknowledge_later(sequence, Need::Retired, std::move(call));
    advance();
}

void GroupCommit::make_strict(uint32_t inode) {
    const auto change = [inode](const PlacementRef& it) {
        const bool concerned = std::ranges::any_of(
            it->item.parts, [inode](const Part& part) { return part.range.inode == inode; });
        if (it->left > 0 && concerned) it->item.need = Need::Retired;
    };
    for (const auto& group : groups_) std::ranges::for_each(group->own, change);
    std::ranges::for_each(late_, change);
}

// Flush, then retire: whatever is placed by now.
void GroupCommit::advance() {
    if (poisoned_) return;
    move_when_wanted();
    if (flushing_) return;
    const uint64_t wanted = std::max(flush_wanted_, retire_wanted_);
    if (placed_ > flushed_ && (wanted > flushed_ || wants_space())) {
        flushing_ = true;
        placer_.flush_placed([this, sequence = placed_](Result<> done) {
            flushing_ = false;
            if (poisoned_) return placer_.wake();
            if (!done) return poison(done.error(), "flush");
            flushed(sequence);
        });
        return;
    }
    store_retired();
}

void GroupCommit::flushed(uint64_t sequence) {
    flushed_ = sequence;
    log_->note_retired(sequence);
    serve();
    // If a group is waiting, its record says it.
    placer_.wake();
    advance();
}

void GroupCommit::store_retired() {
    if (storing_ || poisoned_) return;
    const bool waited_for = std::min(retire_wanted_, flushed_) > log_->durable_retired() &&
                            !(logging_ && logged_retired_ >= std::min(retire_wanted_, flushed_));
    if (!waited_for && !wants_space()) return;
    const auto write = log_->stage_retired();
    if (!write) {
        // Both say everything that there is to say, unless what is late moves.
        space_wanted_ = !late_.empty() && moving_frees() > late_load().length();
        return;
    }
    storing_ = true;
    ++retirement_count_;
    loop_.write(log_fd_, write->position, write->bytes, RWF_DSYNC,
                [this, length = write->bytes.size()](int result) {
                    storing_ = false;
                    auto finished =
                        log_->finish_retired(whole(result, length, "log superblock write"));
                    if (mark_later_) {
                        mark_later_ = false;
                        (void)log_->mark(kLogInDoubt | kLogUnguarded).has_value();
                    }
                    if (poisoned_) return;
                    if (!finished) return poison(finished.error(), "log superblock write");
                    serve();
                    placer_.wake();
                    advance();
                });
}

void GroupCommit::serve() {
    const uint64_t retired = log_->durable_retired();
    std::vector<std::function<void(Result<>)>> ready;
    for (auto it = waiters_.begin(); it != waiters_.end() && it->first <= flushed_;) {
        if (it->second.need == Need::Flushed || it->first <= retired) {
            ready.push_back(std::move(it->second.call));
            it = waiters_.erase(it);
        } else {
            ++it;
        }
    }
    for (const auto& call : ready) call({});
}

Error GroupCommit::in_doubt() const {
    return Error{EIO, fmt::format("in doubt since an earlier failure, until a restart has "
                                  "recovered: {}",
                                  poisoned_.value_or(""))};
}

void GroupCommit::poison(const Error& error, std::string_view doing) {
    if (poisoned_) return;
    poisoned_ = fmt::format("{}: {}", doing, error.message);
    // A restart must not take the files' word for what was placed; and until then nobody is held
    // from opening them. If this fails too, the restart judges by what it finds.
    if (storing_)
        mark_later_ = true;
    else
        (void)log_->mark(kLogInDoubt | kLogUnguarded).has_value();
    const Error told{EIO, fmt::format("{}; in doubt until a restart has recovered", *poisoned_)};
    std::vector<std::function<void(Result<>)>> failed;
    const auto give_up = [&failed](const PlacementRef& it) {
        if (auto done = std::exchange(it->item.done, nullptr)) failed.push_back(std::move(done));
    };
    for (const auto& group : groups_) std::ranges::for_each(group->own, give_up);
    std::ranges::for_each(late_, give_up);
    for (auto& [sequence, waiter] : waiters_) failed.push_back(std::move(waiter.call));
    waiters_.clear();
    for (const auto& call : failed)
        if (call) call(fail(Error(told)));
    placer_.wake();
}

Result<> GroupCommit::close() {
    if (poisoned_) return fail(in_doubt());
    return log_->close();
}

}  // namespace atomic4
