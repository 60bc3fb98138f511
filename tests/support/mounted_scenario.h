// Clients that write atomically to a mounted volume on a fault disk, and others who write to one of
// the same files; with the history of what was acknowledged when.
//
// Files: "data" (atomic), "grow" (empty at first, made longer by writes), "sparse" (a hole at
// first), "shared" (others have it open for writing: strict). Others write to the second half of
// "shared", buffered with fsync, direct with O_DSYNC, and through a mapping with msync, in turn;
// now and then they rename it and back. Everything else is the clients'. A write to others' blocks,
// or one that fails, is the test's own business.
//
// Setting up throws std::runtime_error.
#pragma once

#include <random>

#include "support/command.h"
#include "support/fault_disk.h"
#include "support/loop.h"
#include "support/mounted_session.h"
#include "support/write_history.h"

namespace atomic4::test {

class MountedScenario {
  public:
    static constexpr uint64_t kFileBlocks = 256;
    static constexpr uint64_t kLargestUnit = 64;  // blocks

    enum File : size_t { kData, kGrow, kSparse, kShared };

    // Mounted and served, with its files made and flushed.
    enum class Journal { With, Without };
    explicit MountedScenario(uint64_t seed, Journal journal = Journal::With);
    ~MountedScenario();

    // --- clients ---
    std::vector<WriteHistory::Part> random_write();
    void submit(const std::vector<WriteHistory::Part>& parts);
    // Waits for that one.
    Result<> write(const std::vector<WriteHistory::Part>& parts);
    // Random writes, some at once, with others' in between; until all are answered.
    void run(unsigned writes);
    void settle();

    // --- others ---
    // Unless they are writing just now.
    void others_write();
    // These blocks, by that descriptor, and synced. Waits. 0 or an errno.
    int others_write_now(int fd, WriteHistory::Part part);

    // Serving ends, without a last word to the log; nothing is under way.
    void crash();
    void unmount();
    // Serves again what is mounted. The error is recovery's.
    Result<> serve(const MountHistory& history);
    void mount();

    uint64_t below(uint64_t n) { return random_() % n; }
    std::mt19937_64& random() { return random_; }
    const std::string& dir() const { return dir_; }
    FaultDisk& disk() { return *disk_; }
    MountedSession& session() { return *session_; }
    WriteHistory& history() { return history_; }
    const FileRef& file(File which) const { return files_[which]; }
    // Of failed writes, in the order in which they were told.
    std::vector<Error> errors;
    std::vector<int> others_errors;

  private:
    WriteHistory::Part random_part(size_t file, uint64_t largest);

    TempDir temp_;
    std::string dir_ = temp_.file("mnt");
    std::mt19937_64 random_;
    WriteHistory history_;
    std::optional<FaultDisk> disk_;
    std::optional<Mount> mount_;
    UniqueFd others_;         // of "shared"
    UniqueFd others_direct_;  // the same, O_DIRECT
    uint64_t others_writes_ = 0;
    std::unique_ptr<MountedSession> session_;
    std::vector<FileRef> files_;
    size_t under_way_ = 0;
    bool others_busy_ = false;
    uint64_t grown_ = 0;
};

}  // namespace atomic4::test
