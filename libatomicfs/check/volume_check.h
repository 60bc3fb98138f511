// Checks what atomic4 promises: the gate, the log, and the layout of atomic files. General ext4
// checking is e2fsck's. Reads only; decides nothing.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "check/shared_blocks.h"
#include "ext4/volume.h"
#include "guard/protected_set.h"

namespace atomic4 {

enum class FindingId {
#define A4_FINDING(number, name, severity, handling, meaning, question) name = (number),
#include "check/findings.def"
#undef A4_FINDING
};
enum class Severity { Information, Problem };

// What fsck does about a finding (findings.def).
enum class Handling { Note, Safe, Asked, ByE2fsck };

struct Finding {
    FindingId id;
    std::string where;     // "/db", "superblock"
    std::string detail;    // "unit 3 (block 12): …"
    ext2_ino_t inode = 0;  // whose path where is
};

int number_of(FindingId id);
Severity severity_of(FindingId id);
const char* meaning_of(FindingId id);
Handling handling_of(FindingId id);
const char* question_of(FindingId id);  // "Adopt", without its mark; "" if there is nothing to ask

struct CheckReport {
    uint64_t files = 0;  // atomic files looked at, the log not counted
    uint64_t units = 0;
    std::vector<Finding> findings;
    // Of the whole volume: the atomic files that nothing is wrong with, the log among them, and
    // who shares blocks with them.
    std::vector<ProtectedFile> intact;
    std::vector<SharedBlocks> shared;
    bool clean() const;
    // The intact ones, but those that have to give way to somebody else: nothing of them is left
    // here.
    ProtectedSet take_protected_set(Bytes block_size);
};

// The whole volume: opened for reading.
Result<CheckReport> check_volume(Volume& volume, const OnGroup& progress = {});
// The redo log, and the volume attribute that leads to it.
CheckReport check_log(Volume& volume);
// One file; an ordinary one has nothing to be checked but a unit without the flag.
Result<CheckReport> check_one_file(Volume& volume, const std::string& path);

}  // namespace atomic4
