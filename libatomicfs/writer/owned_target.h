// OwnedTarget: an unmounted volume that takes writes from many clients at once (target.h).
//
// Nobody else can have an owned volume open, so every acknowledgement is exclusive: records retire
// in the background.
//
//   logged   what has come in since the last group and doesn't overlap is one record, one log
//            write; the loop stands still for it and for its placements
//   native   RWF_ATOMIC writes given to the kernel as they come, in parallel, straight from the
//            client's memory if that is aligned; prepared by AtomicWriter::plan. Where the device
//            has no descriptor for that (memory), one at a time.
//   others   plain writes, reads, flushes: carried out in between
//
// A native write that the kernel refuses (EINVAL, EOPNOTSUPP) although the device's limits allow
// it: `auto` logs it instead, `native` reports it. One that fails otherwise, or is cut short,
// leaves doubt and poisons.
//
// Records retire when nothing has been logged for a while, when the log is full, when the last
// handle of a file with live records closes, and at freeze and stop.
//
// Threads: the event loop's. An object that goes away without stop() leaves the volume as a crash
// does; the clients' memory must outlive native writes that are under way all the same.
#pragma once

#include <chrono>
#include <deque>
#include <map>
#include <memory>
#include <vector>

#include "writer/atomic_writer.h"
#include "writer/bounce_pool.h"
#include "writer/range_order.h"
#include "writer/target.h"

namespace atomic4 {

struct OwnedOptions {
    // Records retire when nothing was logged for so long.
    std::chrono::milliseconds idle{200};
};

class OwnedTarget final : public Target {
  public:
    // Takes a volume opened by open_for_writing. The loop must outlive this.
    static Result<std::unique_ptr<OwnedTarget>> open(EventLoop& loop, OpenVolume opened,
                                                     OwnedOptions options = {});
    ~OwnedTarget() override;

    // One client more has the file open. Errors of check_file; ESTALE: not this generation.
    Result<FileRef> open_file(ext2_ino_t inode, std::optional<uint32_t> generation = std::nullopt);
    Volume& volume() { return writer_->volume(); }

    void submit(std::unique_ptr<WriteOp> op) override;
    void read(FileRef file, ByteOffset offset, std::span<std::byte> into,
              std::function<void(Result<Bytes>)> done) override;
    void flush(FileRef file, std::function<void(Result<>)> done) override;
    Result<FileLimits> limits(const FileRef& file) override;
    void close(FileRef file) override;

    void freeze(std::function<void(Result<>)> done) override;
    void thaw() override;
    void stop(std::function<void(Result<>)> done) override;

    const std::string* poisoned() const override { return writer_->why_poisoned(); }
    Bytes block_size() const override { return block_size_; }
    Bytes batch_max() const override { return writer_->record_payload_max(); }
    TargetCounts counts() const override;
    bool device_busy() const override { return natives_ > 0; }

  private:
    struct OwnedFile;
    // A write or a read, from its submission to its end.
    struct Operation {
        std::unique_ptr<WriteOp> write;  // null: a read
        FileRef file;                    // of a read
        ByteOffset offset;
        std::span<std::byte> into;
        std::function<void(Result<Bytes>)> read_done;
        std::vector<HeldRange> held;
        bool refused = false;  // natively: to be logged
    };
    using OperationRef = std::unique_ptr<Operation>;
    struct Flight;
    struct Group;

    OwnedTarget(EventLoop& loop, std::unique_ptr<AtomicWriter> writer, OwnedOptions options);

    void schedule();
    void pump();
    void deliver();
    bool start(OperationRef& operation, Group& group);
    bool start_write(OperationRef& operation, Group& group);
    void start_native(OperationRef operation, const WritePlan& plan);
    void submit_native(const std::shared_ptr<Flight>& flight);
    void native_done(const std::shared_ptr<Flight>& flight, int result);
    void end_native(OperationRef operation, Result<> written);
    void write_group(Group group);
    Result<> write_plain(const WriteOp& op);
    void do_read(Operation& operation);
    void finish(WriteOp& op, Result<Engine> result);
    void count(const WriteOp& op, Engine engine);
    void background();
    void retire_when_idle();
    Result<> check_shape(const WriteOp& op) const;
    WriteRange range_of(const WriteOp::Range& range) const;
    static RangeOrder::Use use_of(const Operation& operation);

    EventLoop& loop_;
    std::unique_ptr<AtomicWriter> writer_;
    const OwnedOptions options_;
    const Bytes block_size_;
    std::shared_ptr<AsyncPort> port_;  // null: native writes one at a time
    BouncePool bounce_;
    std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);

    std::map<ext2_ino_t, std::shared_ptr<OwnedFile>> files_;
    std::deque<OperationRef> waiting_;  // in the order of their submission
    std::vector<OperationRef> frozen_out_;
    RangeOrder order_;
    size_t natives_ = 0;  // under way
    std::vector<std::function<void(Result<>)>> flushes_;
    std::vector<std::function<void(Result<>)>> freezes_;
    std::function<void(Result<>)> stop_;
    std::vector<std::function<void()>> finished_;
    bool scheduled_ = false;
    bool frozen_ = false;
    bool stopping_ = false;
    bool retire_ = false;
    bool idle_timer_ = false;
    uint64_t groups_at_timer_ = 0;
    TargetCounts counts_;
};

}  // namespace atomic4
