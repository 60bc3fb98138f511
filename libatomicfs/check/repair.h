// The passes of fsck.atomic4 around e2fsck: what is wrong with the gate and with atomic files, put
// right as far as it may be, and what has to be protected while e2fsck runs.
//
// Who claims blocks of another's is dealt with first, and nothing is freed of what he gives up;
// only then, and only while no records wait for replay, are broken layouts repaired.
//
// The protected set are the files that are intact in the end. One that isn't is repaired (adopt.h:
// a new aligned layout, the same bytes) or released: it keeps its bytes and loses the promise.
// Whoever claims blocks of an intact one gets copies of his own (writer/move_blocks.h). Blocks for
// all that come from bitmaps that were proved against every inode (ext4/bitmap_rebuild.h), never
// from those that stand there.
//
// Each repair is an operation of its own (ext4/transaction.h); a crash leaves some of them done.
#pragma once

#include <map>
#include <string>

#include "check/decide.h"
#include "guard/protected_set.h"

namespace atomic4 {

// How fsck talks to people.
class FsckTalk {
  public:
    virtual ~FsckTalk() = default;
    // A line of its own, without its end.
    virtual void say(const std::string& line) = 0;
    // Ends the line with the question and the answer.
    virtual bool ask(const std::string& line, const std::string& question) = 0;
    // Of a look at the whole volume. False: to be stopped.
    virtual bool progress(uint64_t done, uint64_t all) = 0;
};

struct RepairOutcome {
    bool changed = false;
    bool left = false;           // a problem stays as it is
    bool stopped = false;        // -p met one that somebody has to decide about
    bool later = false;          // e2fsck has to put something right
    bool log_is_broken = false;  // its file's layout: it needs a successor
    // Released for e2fsck, to be adopted again with their units.
    std::map<ext2_ino_t, Bytes> released;
    ProtectedSet set;
};

enum class RepairRound {
    First,  // e2fsck comes afterwards
    Last,   // it has run: what it left is for us to decide
};

// The volume was opened for writing with VolumeOptions::damaged_too, its log replayed; for -n it is
// opened to inspect. An I/O error is an error; ECANCELED: stopped, by talk, while it looked.
Result<RepairOutcome> repair(Volume& volume, FsckMode mode, RepairRound round, FsckTalk& talk);

// "#11 /db: a block of an atomic file is free in the bitmap: 4 blocks, the first is 1234"
std::string text_of(const Finding& finding);

// One finding: says it, decides, and answers whether to put it right now.
Verdict judge(const Finding& finding, FsckMode mode, FsckTalk& talk);

}  // namespace atomic4
