// One run of fsck.atomic4: its volume, whom it talks to, and what comes of it. Its steps share it.
#pragma once

#include <optional>

#include "base/held_signals.h"
#include "check/repair.h"
#include "device/read_only_device.h"
#include "ext4/volume.h"
#include "fsck/fsck.h"

namespace atomic4::tools {

class FsckSession {
  public:
    // All must outlive this object.
    FsckSession(const Context& with, const FsckCommand& said, Device& on, const HeldSignals& held,
                FsckTalk& to)
        : context(with), command(said), device(on), signals(held), talk(to), looking_(on) {}

    const Context& context;
    const FsckCommand& command;
    Device& device;
    const HeldSignals& signals;
    FsckTalk& talk;
    bool corrected = false;  // something was put right

    bool writing() const { return command.mode != FsckMode::No; }
    // The device for those who only look.
    Device& looking() { return looking_; }

    // With -n also for writing: to inspect.
    Result<std::unique_ptr<Volume>> open(OpenFor purpose);
    // As a copy of the superblock and its descriptors show it, and where that lies; null if there
    // is none that does.
    Result<std::unique_ptr<Volume>> open_by_copy(SuperblockPlace& place);

    // Nothing more is to be done. status: added to that of the run.
    void end(int status);
    bool ended() const { return ended_status_.has_value(); }
    int ended_status() const { return ended_status_.value_or(0); }
    // Between steps: whether it has ended, or is ended now by a signal.
    bool stop_if_told();
    void say_interrupted();
    // -p ends here.
    void stop_for_somebody();

  private:
    ReadOnlyDevice looking_;
    std::optional<int> ended_status_;
};

}  // namespace atomic4::tools
