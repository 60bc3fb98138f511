#include "check/unit_map.h"

#include <algorithm>

namespace atomic4 {

namespace {

// Takes a file's blocks in order and finishes a unit at a time, or many at once where one mapping
// covers them.
class Builder {
  public:
    explicit Builder(UnitMap& map) : map_(map), size_(map.unit_blocks().value()) {}

    void add(Mapping mapping) {
        while (mapping.length.value() != 0) {
            const uint64_t in_unit = mapping.lblk.value() % size_;
            if (in_unit == 0 && mapping.length.value() >= size_) {
                const uint64_t count = mapping.length.value() / size_;
                begin(mapping);
                finish(mapping.lblk.value() / size_, count);
                advance(mapping, Blocks(count * size_));
                continue;
            }
            if (in_unit == 0)
                begin(mapping);
            else
                go_on(mapping);
            const Blocks part(std::min(mapping.length.value(), size_ - in_unit));
            if (in_unit + part.value() == size_) finish(mapping.lblk.value() / size_, 1);
            next_ = mapping.pblk + part;
            advance(mapping, part);
        }
    }

  private:
    static void advance(Mapping& mapping, Blocks by) {
        mapping.lblk += by;
        mapping.length -= by;
        if (mapping.state != MapState::Hole) mapping.pblk += by;
    }

    void begin(const Mapping& mapping) {
        shift_ = Blocks(0);
        if (mapping.state == MapState::Hole) {
            state_ = UnitState::Hole;
            return;
        }
        shift_ = Blocks(mapping.pblk.value() % size_);
        if (shift_.value() != 0)
            state_ = UnitState::Misaligned;
        else
            state_ = mapping.state == MapState::Written ? UnitState::Written : UnitState::Unwritten;
    }

    void go_on(const Mapping& mapping) {
        const bool hole = mapping.state == MapState::Hole;
        if (hole && state_ == UnitState::Hole) return;
        if (hole || state_ == UnitState::Hole || mapping.pblk != next_) {
            state_ = UnitState::Broken;
            shift_ = Blocks(0);
            return;
        }
        // Beyond the end of the file it is unwritten as it should be.
        const bool in_file =
            mapping.lblk.value() * map_.block_size.value() < map_.file_size.value();
        if (state_ == UnitState::Written && mapping.state == MapState::Unwritten && in_file)
            state_ = UnitState::Unwritten;
    }

    void finish(uint64_t first, uint64_t count) {
        auto& stretches = map_.stretches;
        if (!stretches.empty() && stretches.back().state == state_ &&
            stretches.back().shift == shift_) {
            stretches.back().count += count;
            return;
        }
        stretches.push_back({first, count, state_, shift_});
    }

    UnitMap& map_;
    uint64_t size_;
    UnitState state_ = UnitState::Hole;
    Blocks shift_;
    Pblk next_;
};

}  // namespace

const char* to_text(UnitState state) {
    switch (state) {
        case UnitState::Hole:
            return "hole";
        case UnitState::Unwritten:
            return "aligned, unwritten";
        case UnitState::Written:
            return "aligned";
        case UnitState::Misaligned:
            return "misaligned";
        case UnitState::Broken:
            return "in pieces";
    }
    return "?";
}

std::array<uint64_t, kUnitStates> UnitMap::counts() const {
    std::array<uint64_t, kUnitStates> counts{};
    for (const UnitStretch& stretch : stretches)
        counts[static_cast<size_t>(stretch.state)] += stretch.count;
    return counts;
}

uint64_t UnitMap::mapped_runs() const {
    return static_cast<uint64_t>(std::ranges::count_if(
        runs, [](const Mapping& run) { return run.state != MapState::Hole; }));
}

UnitMap make_unit_map(std::vector<Mapping> mappings, Bytes file_size, Bytes unit,
                      Bytes block_size) {
    UnitMap map;
    map.unit = unit;
    map.block_size = block_size;
    map.file_size = file_size;
    const uint64_t last = mappings.empty() ? 0 : mappings.back().end().value() * block_size.value();
    map.units = round_up(std::max(file_size.value(), last), unit.value()) / unit.value();
    Builder builder(map);
    for (const Mapping& mapping : mappings) builder.add(mapping);
    map.runs = std::move(mappings);
    return map;
}

UnitCells make_cells(const UnitMap& map, uint64_t limit) {
    UnitCells cells;
    while ((map.units + cells.per_cell - 1) / cells.per_cell > limit) cells.per_cell *= 2;
    cells.cells.resize((map.units + cells.per_cell - 1) / cells.per_cell);
    std::vector<bool> begun(cells.cells.size());
    for (const UnitStretch& stretch : map.stretches) {
        const uint64_t last = (stretch.first + stretch.count - 1) / cells.per_cell;
        for (uint64_t i = stretch.first / cells.per_cell; i <= last; ++i) {
            UnitCell& cell = cells.cells[i];
            const bool hole = stretch.state == UnitState::Hole;
            if (begun[i] && hole != (cell.state == UnitState::Hole)) cell.part_hole = true;
            const auto badness = [](UnitState state) {
                constexpr int kOrder[] = {0, 2, 1, 3, 4};  // as the states are declared
                return kOrder[static_cast<size_t>(state)];
            };
            if (badness(stretch.state) > badness(cell.state)) {
                cell.state = stretch.state;
                cell.shift = stretch.shift;
            }
            begun[i] = true;
        }
    }
    return cells;
}

}  // namespace atomic4
