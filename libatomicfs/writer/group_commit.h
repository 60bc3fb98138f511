// Group commit: many writes, one record; and the order of everything that a write's safety hangs
// on.
//
//   1 log       one record with all writes of the group, one contiguous durable write. One is in
//               flight at a time, so a crash tears at most the last record. What has come in
//               meanwhile is the next group: no timers.
//   2 place     only when the record is durable, from the log's own copy: a crash in the middle is
//               repaired by replay. The next group's log write overlaps this; the one after that
//               waits.
//   3 ack       of a write that needs no more than its placement (its file is exclusive)
//   4 flush     of all files that were written since the last one: what was placed is durable
//   5 ack       of a write that made its file longer
//   6 retire    only when flushed; durable in the next record if there is one to write now, else in
//               a log superblock. Until then replay would write the record again, over newer bytes.
//   7 ack       of a write to a file that others may write (strict)
//   8 free      when both superblocks say it, the log's space is used again
//
// Steps 4 to 8 run in the background, when somebody waits for them or half of the log is used.
//
// A placement takes as long as somebody keeps the file locked. After a while it is late: its group
// is no longer one of the two that others wait for, and when somebody waits for a retirement, which
// goes in the order of the log, what is late is logged once more. From then on the newer record has
// it, and those before can retire. Little may be late at a time (a sixth of the log), so that
// there is always room for that; what is more is waited for.
//
// A failure in 1, 2, 4 or 6 is final: nobody knows what is stored. Everything that isn't
// acknowledged, and everything later, is EIO, "in doubt"; the log is marked, so that a restart
// places all live records again, whatever the files seem to hold.
//
// Threads: the event loop's.
#pragma once

#include <chrono>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "device/event_loop.h"
#include "redo/redo_log.h"
#include "writer/target.h"

namespace atomic4 {

class GroupCommit {
  public:
    // What an acknowledgement waits for.
    enum class Need { Placed, Flushed, Retired };

    struct Part {
        FileRef file;
        RangeRef range;
        std::span<const std::byte> data;  // copied by begin()
    };
    // Written all or nothing, also where it has several parts.
    struct Item {
        std::vector<Part> parts;
        Need need = Need::Retired;
        std::function<void()> placed;  // may be empty; not called once in doubt
        std::function<void(Result<>)> done;
    };

    // Where placements go.
    class Placer {
      public:
        virtual ~Placer() = default;
        // The bytes stay valid until done. durable: when done, they need no flush.
        virtual void place(const FileRef& file, ByteOffset offset, std::span<const std::byte> data,
                           bool durable, std::function<void(Result<>)> done) = 0;
        // Whatever was placed before is durable.
        virtual void flush_placed(std::function<void(Result<>)> done) = 0;
        // Something has changed for those who wait: a group may begin, or space is free.
        virtual void wake() = 0;
    };

    // Slow devices have such latencies, too; then this does no harm.
    static constexpr std::chrono::milliseconds kLate{400};

    GroupCommit(EventLoop& loop, std::unique_ptr<RedoLog> log, int log_fd, Placer& placer,
                std::chrono::milliseconds late_after = kLate);
    GroupCommit(const GroupCommit&) = delete;
    GroupCommit& operator=(const GroupCommit&) = delete;
    ~GroupCommit() { *alive_ = false; }

    // A group may begin now.
    bool ready() const { return !poisoned_ && !logging_ && on_their_way() < 2; }
    // Whether a group of so many parts and bytes fits the log now.
    bool has_room(size_t parts, Bytes payload) const;
    // Retires what it can, to make room; wake() will be called.
    void make_room();
    // A group with more parts or payload gains nothing, unless it is one write.
    static constexpr size_t kGroupParts = 512;
    Bytes group_max() const;
    // ready() and has_room() hold.
    void begin(std::vector<Item> items);

    bool overlaps_live(uint32_t inode, ByteOffset offset, Bytes length) const {
        return log_->overlaps_live(inode, offset, length);
    }
    // Called when everything that was logged so far is durably retired (perhaps at once, from
    // inside this call), or with an error once in doubt.
    void when_retired(std::function<void(Result<>)> call);
    // What is on its way into this file is acknowledged only when it is retired.
    void make_strict(uint32_t inode);
    // A failure outside that leaves doubt about what is stored.
    void poison(const Error& error, std::string_view doing);
    const std::string* poisoned() const { return poisoned_ ? &*poisoned_ : nullptr; }
    // "in doubt", for those who come later.
    Error in_doubt() const;

    // A placement into this file is late: whatever else goes there would only wait behind it.
    bool late(uint32_t inode) const;
    bool any_late() const { return !late_.empty(); }
    size_t late() const { return late_.size(); }  // writes
    // Told of each file when a placement into it becomes late.
    std::function<void(uint32_t inode)> on_late;

    // Everything that was logged is placed.
    bool idle() const { return !logging_ && groups_.empty(); }
    // Something is under way whose end the device decides.
    bool device_busy() const { return logging_ || on_their_way() > 0 || flushing_ || storing_; }
    // Ends the session; idle, and everything retired.
    Result<> close();
    RedoLog& log() { return *log_; }
    const RedoLog& log() const { return *log_; }
    uint64_t groups() const { return group_count_; }
    uint64_t retirements() const { return retirement_count_; }

  private:
    struct Group;
    // An item on its way, until it is placed.
    struct Placement {
        Item item;
        std::vector<std::span<const std::byte>> logged;  // each part, in `memory`
        std::shared_ptr<const LogBuffer> memory;
        std::vector<bool> placed;  // each part
        size_t left = 0;           // parts
        Group* group = nullptr;    // whose record has it
        bool late = false;
        bool moving = false;  // into a record that isn't durable yet
    };
    using PlacementRef = std::shared_ptr<Placement>;
    struct Group {
        uint64_t sequence = 0;
        Bytes length;                     // of its record
        std::vector<PlacementRef> own;    // first logged by it
        std::vector<PlacementRef> moved;  // late ones of earlier groups, while it is being logged
        size_t own_left = 0;              // not late, not placed
        size_t left = 0;                  // not placed, or moved on
        std::vector<RedoLog::LogWrite> writes;
        std::shared_ptr<const LogBuffer> memory;  // of the writes
        bool logged = false;
        bool late = false;
        std::chrono::steady_clock::time_point since;  // logged
    };
    // What a record would carry.
    struct Load {
        size_t parts = 0;
        Bytes payload;
        Bytes length() const { return record_header_length(parts) + record_padded(payload); }
    };
    struct Waiter {
        Need need;
        std::function<void(Result<>)> call;
    };

    size_t on_their_way() const;
    void start(const RedoLog::Staged& staged, std::vector<PlacementRef> own,
               std::vector<PlacementRef> moved);
    void write_log(Group& group, size_t index);
    void logged(Group& group, Result<> written);
    void place(Group& group);
    void placed(const PlacementRef& it);
    void leave();
    void finish();
    void look_later();
    void look_for_late();
    bool may_be_late(const Group& group) const;
    static void add_unplaced(const Placement& it, Load& load);
    Load late_load() const;
    Bytes late_max() const;
    bool moving_wanted() const;
    Bytes moving_frees() const;
    void move_when_wanted();
    void move_late();
    void acknowledge_later(uint64_t sequence, Need need, std::function<void(Result<>)> call);
    void advance();
    void flushed(uint64_t sequence);
    void store_retired();
    void serve();
    bool wants_space() const;

    EventLoop& loop_;
    std::unique_ptr<RedoLog> log_;
    const int log_fd_;
    Placer& placer_;
    const std::chrono::milliseconds late_after_;

    std::deque<std::unique_ptr<Group>> groups_;  // being logged, or not all placed
    std::vector<PlacementRef> late_;
    Load unplaced_;  // of all groups
    bool logging_ = false;
    bool flushing_ = false;
    bool storing_ = false;
    bool mark_later_ = false;
    bool looking_ = false;
    bool move_scheduled_ = false;
    std::chrono::steady_clock::time_point next_move_;
    bool space_wanted_ = false;
    uint64_t placed_ = 0;          // records up to this one are placed
    uint64_t flushed_ = 0;         // … and flushed
    uint64_t logged_retired_ = 0;  // what the record being logged says
    uint64_t flush_wanted_ = 0;
    uint64_t retire_wanted_ = 0;
    std::multimap<uint64_t, Waiter> waiters_;  // by the sequence they wait for
    std::optional<std::string> poisoned_;
    uint64_t group_count_ = 0;
    uint64_t retirement_count_ = 0;
    std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
};

}  // namespace atomic4
