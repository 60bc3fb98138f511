// Checks what atomic4 promises: the gate, the log, and the layout of atomic files. General ext4
// checking is e2fsck's. Reads only; decides nothing.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "ext4/volume.h"

namespace atomic4 {

enum class FindingId {
#define A4_FINDING(number, name, severity, meaning) name = (number),
#include "check/findings.def"
#undef A4_FINDING
};
enum class Severity { Information, Problem };

struct Finding {
    FindingId id;
    std::string where;   // "/db", "superblock"
    std::string detail;  // "unit 3 (block 12): …"
};

int number_of(FindingId id);
Severity severity_of(FindingId id);
const char* meaning_of(FindingId id);

struct CheckReport {
    uint64_t files = 0;  // atomic files looked at, the log not counted
    uint64_t units = 0;
    std::vector<Finding> findings;
    bool clean() const;
};

// The whole volume: opened for reading.
Result<CheckReport> check_volume(Volume& volume);
// One file; an ordinary one has nothing to be checked but a unit without the flag.
Result<CheckReport> check_one_file(Volume& volume, const std::string& path);

}  // namespace atomic4
