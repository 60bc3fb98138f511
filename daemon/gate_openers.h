// Openers (writer/openers.h) that the keeper holds and tells of.
#pragma once

#include <memory>

#include "daemon/open_gate.h"
#include "writer/openers.h"

namespace atomic4 {

class GateOpeners final : public Openers {
  public:
    explicit GateOpeners(std::shared_ptr<GateClient> gate) : gate_(std::move(gate)) {}
    int fd() const override { return gate_->fd(); }
    Result<> watch(int file) override { return gate_->watch(file); }
    Result<> unwatch(int file) override { return gate_->unwatch(file); }
    Result<> drain(const OpenWatch::Handler& handler) override { return gate_->drain(handler); }
    Result<> allow(uint64_t token) override { return gate_->allow(token); }

  private:
    std::shared_ptr<GateClient> gate_;
};

}  // namespace atomic4
