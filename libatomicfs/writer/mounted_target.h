// A mounted volume as a target: log and data are written through files, both O_DIRECT, so that the
// kernel keeps caches, mappings, locks, sizes and times right (design: group_commit.h, who else
// writes: file_access.h).
//
//   logged   the record first; then the data through the file. Holes and what lies beyond EOF are
//            preallocated before, so that no record is written whose placement has no space
//   native   RWF_ATOMIC through the file, where statx(2) says that it can. In auto what the kernel
//            turns down, and what collides with others (below), is logged instead
//   plain    through the page cache, in pieces and not many of a file at a time: others who open
//            the file, or freeze the volume, wait for those only
//
// Before a native or plain write, records that are live in its range retire.
//
// Another process's buffered write into the neighbourhood, at the very moment of a placement, can
// leave a cached page with the old bytes and make the kernel report EIO at the next flush ("page
// cache invalidation failure on direct I/O"): written back, it would undo the placement. Where
// cached pages are found in a placed range that others may write, the bytes are written again
// through the cache, and that flush counts. A native write has no record that would make that
// untorn: in auto it is logged, and forced, when the kernel reports the collision, it is in doubt.
//
// Threads: the event loop's.
#pragma once

#include <deque>
#include <list>
#include <map>
#include <set>

#include "device/atomic_limits.h"
#include "ext4/mounted_volume.h"
#include "redo/log_reader.h"
#include "writer/file_access.h"
#include "writer/group_commit.h"
#include "writer/range_order.h"

namespace atomic4 {

class SharedFile;

class MountedTarget final : public Target, private GroupCommit::Placer {
  public:
    struct Options {
        std::unique_ptr<Openers> openers;  // null: every file is strict
        std::string why_no_openers;
        // What the kernel writes untorn through a file.
        std::function<AtomicLimits(int fd)> native_limits = probe_atomic_limits;
    };
    // contents: of the volume's log, without live records (mounted_replay.h). Begins a session.
    static Result<std::unique_ptr<MountedTarget>> open(EventLoop& loop,
                                                       std::unique_ptr<MountedVolume> volume,
                                                       const LogContents& contents,
                                                       Options options);
    ~MountedTarget() override;

    // The file behind a client's descriptor, whose authority is established; the descriptor is
    // closed. EXDEV: of another file system. Else check_mounted_file's errors.
    // cooperative: that process writes the file only through us.
    void open_file(UniqueFd descriptor, pid_t peer, bool cooperative,
                   std::function<void(Result<FileRef>)> done);

    void submit(std::unique_ptr<WriteOp> op) override;
    void read(FileRef file, ByteOffset offset, std::span<std::byte> into,
              std::function<void(Result<Bytes>)> done) override;
    void flush(FileRef file, std::function<void(Result<>)> done) override;
    Result<FileLimits> limits(const FileRef& file) override;
    void close(FileRef file) override;
    void freeze(std::function<void(Result<>)> done) override;
    void thaw() override;
    void stop(std::function<void(Result<>)> done) override;

    const std::string* poisoned() const override { return commit_->poisoned(); }
    Bytes block_size() const override { return volume_->block_size(); }
    Bytes batch_max() const override { return Bytes(commit_->log().capacity().value() / 4); }
    TargetCounts counts() const override;
    bool device_busy() const override { return commit_->device_busy() || running_ + reading_ > 0; }

    MountedVolume& volume() { return *volume_; }
    // Why no file can be exclusive; empty: they can.
    const std::string& why_no_watch() const { return why_no_watch_; }

  private:
    struct Pending;
    struct Asking;
    struct Question;
    using SharedRef = std::shared_ptr<SharedFile>;
    // Of one file: those that hold their ranges, in the order of their submission.
    struct PlainWrites {
        std::deque<std::shared_ptr<Pending>> waiting;  // for a turn with the helper threads
        size_t running = 0;                            // pieces that they have
        Bytes running_bytes;
    };

    MountedTarget(EventLoop& loop, std::unique_ptr<MountedVolume> volume);
    Result<> start(const LogContents& contents, Options options);
    void watch_ready();

    Result<std::unique_ptr<Pending>> admit(std::unique_ptr<WriteOp> op);
    void queue(std::unique_ptr<Pending> pending);
    void schedule_pump();
    void pump();
    bool may_run(Pending& pending);
    // True: it has left the queue.
    bool start_one(std::unique_ptr<Pending>& pending, struct GroupPlan& plan);
    Result<bool> prepare(Pending& pending);
    // True: it has left the queue.
    bool ask_blocks(std::unique_ptr<Pending>& pending);
    void send_questions();
    void answered(const SharedRef& file, std::span<Question> questions,
                  const struct FileLayout& before);
    void answered(Asking& asking);
    bool plan_logged(std::unique_ptr<Pending>& pending, GroupPlan& plan);
    bool retired_first(Pending& pending);
    void start_native(std::unique_ptr<Pending> pending);
    void native_done(const std::shared_ptr<Pending>& pending, int result);
    void native_acknowledged(Pending& pending, SharedFile& file);
    void log_instead(const std::shared_ptr<Pending>& pending);
    void start_plain(std::unique_ptr<Pending> pending);
    void continue_plain(const SharedRef& file, PlainWrites& writes);
    void finish_plain(Pending& pending, Result<> result);
    void start_read(std::unique_ptr<Pending> pending);
    void finish_simple(Pending& pending);
    void ended();
    void fail_all();
    bool may_go(const SharedRef& file);
    void settle();

    void place(const FileRef& file, ByteOffset offset, std::span<const std::byte> data,
               bool durable, std::function<void(Result<>)> done) override;
    struct Attempt {
        bool durable = false;
        int disturbed = 0;  // by others' pages, so far
        int unexplained = 0;
        int holes = 0;
    };
    void place_part(const SharedRef& file, ByteOffset offset, std::span<const std::byte> data,
                    Attempt attempt, std::function<void(Result<>)> done);
    void place_around_holes(const SharedRef& file, ByteOffset offset,
                            std::span<const std::byte> data, Attempt attempt,
                            std::function<void(Result<>)> done);
    void place_parts(const SharedRef& file, ByteOffset offset, std::span<const std::byte> data,
                     Attempt attempt, const std::shared_ptr<std::vector<struct MappedPart>>& parts,
                     std::function<void(Result<>)> done);
    void placed(const SharedRef& file, ByteOffset offset, std::span<const std::byte> data,
                bool durable, std::function<void(Result<>)> done);
    void place_cached(const SharedRef& file, ByteOffset offset, std::span<const std::byte> data,
                      std::function<void(Result<>)> done);
    void write_cached(const SharedRef& file, ByteOffset offset, std::span<const std::byte> data,
                      std::function<void(Result<>)> done);
    void through_cache(const SharedRef& file, std::function<int(int fd)> work,
                       EventLoop::Completion done);
    void mark_dirty(const SharedRef& file);
    void flush_placed(std::function<void(Result<>)> done) override;
    void flush_file(const SharedRef& file, std::function<void(Result<>)> done);
    void flush_noisy(const SharedRef& file, int before, const std::function<void(Result<>)>& done);
    void commit_everything(std::function<void(Result<>)> done);
    void confirm_flush(std::function<void(Result<>)> done);
    void ask_journal();
    void wake() override { schedule_pump(); }

    EventLoop& loop_;
    std::unique_ptr<MountedVolume> volume_;
    std::unique_ptr<HelperThreads> helpers_;  // a lane for each file, by its inode
    std::unique_ptr<HelperThreads> opening_;  // openers are waiting for these
    std::unique_ptr<Openers> openers_;
    std::string why_no_watch_;
    std::function<AtomicLimits(int fd)> native_limits_;
    EventLoop::PollId watch_poll_ = 0;

    std::unique_ptr<GroupCommit> commit_;
    int log_fd_ = -1;
    bool confirming_ = false;
    std::vector<std::function<void(Result<>)>> unconfirmed_;

    std::map<uint32_t, SharedRef> files_;
    std::list<std::unique_ptr<Pending>> queue_;
    std::map<SharedRef, std::vector<Question>> questions_;  // of this turn of the loop
    std::map<SharedRef, PlainWrites> plain_;
    RangeOrder order_;
    std::set<const SharedFile*> reserved_;  // in this walk, by who can't ask about all yet
    std::vector<SharedRef> dirty_;
    size_t running_ = 0;  // plain and native writes, preparations, placements, flushes
    size_t reading_ = 0;
    bool pump_scheduled_ = false;
    bool frozen_ = false;
    bool stopping_ = false;
    bool retire_timer_ = false;
    uint64_t activity_ = 0;  // operations so far
    // When nothing runs.
    std::vector<std::function<void(Result<>)>> freeze_calls_;
    std::vector<std::function<void(Result<>)>> stop_calls_;
    TargetCounts counts_;
    std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
};

}  // namespace atomic4
