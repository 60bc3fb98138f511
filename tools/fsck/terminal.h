// fsck.atomic4 on a terminal, or in a log: lines, questions, progress.
//
// Progress is e2fsck's: lines of "pass done all device" on a descriptor, of which ours have pass 0
// (systemd-fsck and other readers take that for the beginning), or a line on the terminal that is
// written over.
#pragma once

#include "base/held_signals.h"
#include "check/repair.h"
#include "fsck/fsck.h"

namespace atomic4::tools {

class Terminal final : public FsckTalk {
  public:
    // All must outlive this object. A signal that is held back ends questions and progress.
    Terminal(const Context& context, const FsckCommand& command, const HeldSignals& signals)
        : context_(context),
          command_(command),
          signals_(signals),
          prefix_(command.mode == FsckMode::Preen ? command.device + ": " : "") {}
    void say(const std::string& line) override;
    bool ask(const std::string& line, const std::string& question) override;
    bool progress(uint64_t done, uint64_t all) override;

  private:
    void show_progress(uint64_t done, uint64_t all);
    // A line, unless a signal comes first.
    bool answers(std::string& line);
    void clear_bar();

    const Context& context_;
    const FsckCommand& command_;
    const HeldSignals& signals_;
    std::string prefix_;
    int said_ = -1;  // per mille
    bool bar_ = false;
};

}  // namespace atomic4::tools
