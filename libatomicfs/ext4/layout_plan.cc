#include "ext4/layout_plan.h"

#include <algorithm>

namespace atomic4 {

namespace {

// Looks at a file's mapping once; a unit is judged when what follows it begins.
class Planner {
  public:
    explicit Planner(uint64_t unit) : unit_(unit) {}

    void add(const Mapping& mapping) {
        uint64_t at = mapping.lblk.value();
        const uint64_t end = mapping.end().value();
        while (at < end) {
            const uint64_t unit = at / unit_ * unit_;
            if (unit != begin_) finish();
            const uint64_t pblk = mapping.pblk.value() + (at - mapping.lblk.value());
            if (at == unit && end - at >= unit_) {
                // Whole units of one mapping in one go.
                const uint64_t n = (end - at) / unit_ * unit_;
                put({Lblk(at), Blocks(n), !is_aligned(pblk, unit_), Pblk(pblk)});
                at += n;
                continue;
            }
            const uint64_t n = std::min(end - at, unit + unit_ - at);
            if (mapped_ == 0) start_ = pblk - (at - unit);
            in_place_ = in_place_ && pblk - (at - unit) == start_;
            begin_ = unit;
            mapped_ += n;
            at += n;
        }
    }

    std::vector<Stretch> done() {
        finish();
        return std::move(plan_);
    }

  private:
    void finish() {
        if (mapped_ > 0) {
            const bool stays = in_place_ && mapped_ == unit_ && is_aligned(start_, unit_);
            put({Lblk(begin_), Blocks(unit_), !stays, Pblk(start_)});
        }
        mapped_ = 0;
        in_place_ = true;
    }

    void put(Stretch next) {
        if (next.moves) next.pblk = Pblk(0);
        if (!plan_.empty()) {
            Stretch& last = plan_.back();
            if (last.end() == next.lblk && last.moves == next.moves &&
                (next.moves || last.pblk + last.length == next.pblk)) {
                last.length += next.length;
                return;
            }
        }
        plan_.push_back(next);
    }

    uint64_t unit_;
    uint64_t begin_ = 0;
    uint64_t mapped_ = 0;  // blocks of the unit at begin_
    uint64_t start_ = 0;   // where that unit would start, seen from its first mapped part
    bool in_place_ = true;
    std::vector<Stretch> plan_;
};

}  // namespace

std::vector<Stretch> plan_layout(std::span<const Mapping> old, Blocks unit) {
    Planner planner(unit.value());
    for (const Mapping& mapping : old) {
        if (mapping.state != MapState::Hole) planner.add(mapping);
    }
    return planner.done();
}

std::vector<Stretch> placed(std::span<const Stretch> plan, std::span<const PblkRun> new_runs) {
    std::vector<Stretch> result;
    auto run = new_runs.begin();
    Blocks used(0);  // of that run
    for (const Stretch& stretch : plan) {
        if (!stretch.moves) {
            result.push_back(stretch);
            continue;
        }
        Lblk at = stretch.lblk;
        while (at < stretch.end() && run != new_runs.end()) {
            const Blocks n = std::min(run->length - used, stretch.end() - at);
            result.push_back({at, n, true, run->start + used});
            at += n;
            used += n;
            if (used < run->length) continue;
            ++run;
            used = Blocks(0);
        }
    }
    return result;
}

std::vector<Mapping> mapping_of(std::span<const Stretch> stretches, Lblk eof) {
    std::vector<Mapping> mappings;
    for (const Stretch& stretch : stretches) {
        const Lblk split = std::clamp(eof, stretch.lblk, stretch.end());
        const Blocks before = split - stretch.lblk;
        mappings.push_back({stretch.lblk, before, stretch.pblk, MapState::Written});
        mappings.push_back(
            {split, stretch.end() - split, stretch.pblk + before, MapState::Unwritten});
    }
    return joined(mappings);
}

std::vector<Mapping> joined(std::span<const Mapping> mappings) {
    std::vector<Mapping> result;
    for (const Mapping& next : mappings) {
        if (next.state == MapState::Hole || next.length == Blocks(0)) continue;
        if (!result.empty()) {
            Mapping& last = result.back();
            if (last.state == next.state && last.end() == next.lblk &&
                last.pblk + last.length == next.pblk) {
                last.length += next.length;
                continue;
            }
        }
        result.push_back(next);
    }
    return result;
}

}  // namespace atomic4
