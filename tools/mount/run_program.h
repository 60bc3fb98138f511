// Runs a program and waits, with our standard streams and the signal mask that we were started
// with.
#pragma once

#include <string>
#include <vector>

#include "base/result.h"

namespace atomic4::tools {

// Keeps interrupts away from this process while it lives: what is half mounted must be undone. The
// programs that it runs hear of them, and end.
class HeldSignals {
  public:
    HeldSignals();
    ~HeldSignals();
    HeldSignals(const HeldSignals&) = delete;
    HeldSignals& operator=(const HeldSignals&) = delete;
};

// Searched in PATH and the system's directories. Its exit status, 128 + signal if one ended it.
// ENOENT: there is no such program.
Result<int> run_program(const std::vector<std::string>& arguments);

// Where a program of atomic4 is: beside this one, or in PATH. ENOENT.
Result<std::string> find_own_program(const std::string& name);

}  // namespace atomic4::tools
