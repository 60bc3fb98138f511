#include "writer/group_commit.h"

#include <sys/uio.h>

#include <algorithm>
#include <utility>

namespace atomic4 {
namespace {

Result<> whole(int result, size_t length, std::string_view what) {
    if (result < 0) return fail(Error::from_errno(-result, what));
    if (static_cast<size_t>(result) != length)
        return fail(EIO, "{}: only {} of {} bytes were written", what, result, length);
    return {};
}

}  // namespace

GroupCommit::GroupCommit(EventLoop& loop, std::unique_ptr<RedoLog> log, int log_fd, Placer& placer)
    : loop_(loop),
      log_(std::move(log)),
      log_fd_(log_fd),
      placer_(placer),
      placed_(log_->last_sequence()),
      flushed_(placed_) {}

bool GroupCommit::wants_space() const {
    return space_wanted_ || log_->used().value() > log_->capacity().value() / 2;
}

bool GroupCommit::has_room(size_t parts, Bytes payload) const {
    return record_header_length(parts) + record_padded(payload) <= log_->room();
}

void GroupCommit::make_room() {
    retire_wanted_ = std::max(retire_wanted_, log_->last_sequence());
    space_wanted_ = true;
    advance();
}

void GroupCommit::begin(std::vector<Item> items) {
    auto group = std::make_shared<Group>();
    std::vector<RangeRef> ranges;
    std::vector<std::span<const std::byte>> data;
    for (uint32_t operation = 0; operation < items.size(); ++operation) {
        for (Part& part : items[operation].parts) {
            part.range.operation = operation;
            ranges.push_back(part.range);
            data.push_back(part.data);
        }
    }
    group->items = std::move(items);
    auto staged = log_->stage_append(ranges, data);
    if (!staged) {
        // No memory, or a caller that didn't ask has_room: nothing has happened.
        for (Item& item : group->items) {
            if (item.placed) item.placed();
            item.done(fail(Error(staged.error())));
        }
        return;
    }
    for (const Item& item : group->items) group->parts_left.push_back(item.parts.size());
    group->items_left = group->items.size();
    group->sequence = staged->appended.sequence;
    group->staged = std::move(*staged);
    logging_ = true;
    logged_retired_ = flushed_;
    ++group_count_;
    groups_.push_back(group);
    write_log(group, 0);
}

// The pad, if there is one, must be durable before the record.
void GroupCommit::write_log(const std::shared_ptr<Group>& group, size_t index) {
    const RedoLog::LogWrite& write = group->staged->writes[index];
    loop_.write(log_fd_, write.position, write.bytes, RWF_DSYNC,
                [this, group, index, length = write.bytes.size()](int result) {
                    auto written = whole(result, length, "log write");
                    if (written && index + 1 < group->staged->writes.size())
                        return write_log(group, index + 1);
                    logged(group, std::move(written));
                });
}

void GroupCommit::logged(const std::shared_ptr<Group>& group, Result<> written) {
    logging_ = false;
    if (auto finished = log_->finish_append(std::move(written)); !finished) {
        poison(finished.error(), "log write");
        return;
    }
    if (poisoned_) return;
    group->logged = true;
    // The next group's log write goes first: all wait for the log, only this group for its places.
    placer_.wake();
    loop_.defer([this, group] {
        if (!poisoned_) place(group);
    });
    serve();  // the record may have said what is retired
}

void GroupCommit::place(const std::shared_ptr<Group>& group) {
    // A single write that has to be durable in place becomes so by itself, without a flush.
    const bool durable = group->items.size() == 1 && group->items[0].parts.size() == 1 &&
                         group->items[0].need != Need::Placed;
    size_t payload = 0;
    for (size_t i = 0; i < group->items.size(); ++i) {
        for (const Part& part : group->items[i].parts) {
            placer_.place(part.file, part.range.offset, group->staged->appended.payloads[payload++],
                          durable, [this, group, i](Result<> done) {
                              if (poisoned_) return placer_.wake();
                              if (!done) return poison(done.error(), "placement");
                              if (--group->parts_left[i] == 0) placed(group, i);
                          });
        }
    }
}

void GroupCommit::placed(const std::shared_ptr<Group>& group, size_t index) {
    Item& item = group->items[index];
    const Need need = item.need;
    const auto done = std::exchange(item.done, nullptr);
    if (item.placed) item.placed();
    if (need != Need::Placed) acknowledge_later(group->sequence, need, done);
    if (--group->items_left == 0) {
        while (!groups_.empty() && groups_.front()->logged && groups_.front()->items_left == 0) {
            placed_ = groups_.front()->sequence;
            groups_.pop_front();
        }
        log_->note_placed(placed_);
        advance();
        placer_.wake();
    }
    if (need == Need::Placed) done({});
}

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

// Flush, then retire: whatever is placed by now.
void GroupCommit::advance() {
    if (poisoned_ || flushing_) return;
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
        space_wanted_ = false;  // both say everything that there is to say
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
    for (const auto& group : groups_)
        for (Item& item : group->items)
            if (item.done) failed.push_back(std::move(item.done));
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
