#include "check/decide.h"

namespace atomic4 {

Verdict decide(FindingId id, FsckMode mode, const std::function<bool()>& ask) {
    const Handling handling = handling_of(id);
    if (handling == Handling::Note) return Verdict::Note;
    if (mode == FsckMode::No) return Verdict::Leave;
    if (handling == Handling::ByE2fsck) return Verdict::Later;
    if (mode == FsckMode::Ask) return ask() ? Verdict::Fix : Verdict::Leave;
    if (mode == FsckMode::Preen && handling == Handling::Asked) return Verdict::Stop;
    return Verdict::Fix;
}

}  // namespace atomic4
