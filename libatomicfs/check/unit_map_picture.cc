#include "check/unit_map_picture.h"

#include <algorithm>
#include <set>
#include <tuple>

#include "base/size_parse.h"
#include "base/svg.h"
#include "base/text.h"

namespace atomic4 {

namespace {

constexpr double kWidth = 1100;
constexpr double kLeft = 120;
constexpr double kRight = 46;
constexpr double kSpan = kWidth - kLeft - kRight;
constexpr uint64_t kMaxCells = 1024;
constexpr uint64_t kMaxDrawn = 2000;  // runs; more are drawn more coarsely
constexpr const char* kSmallGrey = "fill=\"#59636e\" font-size=\"11\" text-anchor=\"middle\"";

// Each state has a colour of its own and, for those who see none, a filling of its own: solid,
// hatched, crossed, split, empty.
struct Look {
    const char* fill;
    const char* stroke;
    const char* legend;
    char mark;  // on a terminal
};
Look look(UnitState state) {
    switch (state) {
        case UnitState::Hole:
            return {"white", "#7d8590", "hole: not mapped", '.'};
        case UnitState::Unwritten:
            return {"url(#unwritten)", "#0b6bcb", "aligned, unwritten", '-'};
        case UnitState::Written:
            return {"#0b6bcb", "#0b4a8f", "aligned", '#'};
        case UnitState::Misaligned:
            return {"#fbbf24", "#1f2328", "misaligned (+ blocks off)", '!'};
        case UnitState::Broken:
            return {"#dc2626", "#1f2328", "in pieces or part hole", '%'};
    }
    return {};
}
constexpr UnitState kAll[] = {UnitState::Written, UnitState::Unwritten, UnitState::Misaligned,
                              UnitState::Broken, UnitState::Hole};

constexpr const char* kPatterns =
    "<defs><pattern id=\"unwritten\" width=\"5\" height=\"5\" patternUnits=\"userSpaceOnUse\" "
    "patternTransform=\"rotate(45)\"><rect width=\"5\" height=\"5\" fill=\"white\"/>"
    "<rect width=\"1.5\" height=\"5\" fill=\"#0b6bcb\"/></pattern>"
    "<pattern id=\"misaligned\" width=\"8\" height=\"8\" patternUnits=\"userSpaceOnUse\">"
    "<rect width=\"8\" height=\"8\" fill=\"#fbbf24\"/>"
    "<path d=\"M0,0 8,8 M8,0 0,8\" stroke=\"#1f2328\" stroke-width=\"0.7\"/></pattern>"
    "<pattern id=\"broken\" width=\"6\" height=\"6\" patternUnits=\"userSpaceOnUse\">"
    "<rect width=\"6\" height=\"6\" fill=\"#dc2626\"/>"
    "<rect width=\"2\" height=\"6\" fill=\"white\"/></pattern></defs>\n";

// Of a long stretch, where the shape of a square can't tell.
const char* strip_fill(UnitState state) {
    switch (state) {
        case UnitState::Misaligned:
            return "url(#misaligned)";
        case UnitState::Broken:
            return "url(#broken)";
        default:
            return look(state).fill;
    }
}

// Three digits are enough for an axis: "134.2M".
std::string rounded_size(uint64_t bytes) {
    std::string exact = format_size(Bytes(bytes));
    if (exact.size() <= 6) return exact;
    int power = 0;
    auto value = static_cast<double>(bytes);
    for (; value >= 1024 && power < 4; ++power) value /= 1024;
    constexpr const char* kLetters[] = {"", "K", "M", "G", "T"};
    return fmt::format("{:.{}f}{}", value, value < 10 ? 2 : 1, kLetters[power]);
}

std::string units_text(uint64_t count) {
    return grouped_digits(count) + (count == 1 ? " unit" : " units");
}

// "all 10 units aligned", "7 of 10 units aligned, 2 misaligned, 1 hole".
std::string verdict(const UnitMap& map) {
    const auto counts = map.counts();
    const auto count = [&](UnitState state) { return counts[static_cast<size_t>(state)]; };
    const uint64_t aligned = count(UnitState::Written) + count(UnitState::Unwritten);
    if (map.units == 0) return "no units: the file is empty";
    std::string text =
        aligned == map.units
            ? fmt::format("all {} aligned", units_text(map.units))
            : fmt::format("{} of {} aligned", grouped_digits(aligned), units_text(map.units));
    const auto add = [&](UnitState state, const char* word) {
        if (count(state) != 0) text += fmt::format(", {} {}", grouped_digits(count(state)), word);
    };
    add(UnitState::Misaligned, "misaligned");
    add(UnitState::Broken, "in pieces");
    add(UnitState::Hole, count(UnitState::Hole) == 1 ? "hole" : "holes");
    if (count(UnitState::Unwritten) != 0)
        text += fmt::format(" ({} of the aligned unwritten)",
                            grouped_digits(count(UnitState::Unwritten)));
    return text;
}

void draw_cell(Svg& svg, double x, double y, double width, double height, const UnitCell& cell) {
    const Look how = look(cell.state);
    const std::string style =
        fmt::format("fill=\"{}\" stroke=\"{}\"{}", how.fill, how.stroke,
                    cell.state == UnitState::Hole ? " stroke-dasharray=\"2 2\"" : "");
    if (cell.part_hole) {
        draw_cell(svg, x, y, width, height, {UnitState::Hole, false, Blocks(0)});
        y += height / 2;
        height /= 2;
    }
    if (cell.state == UnitState::Broken) {
        const double gap = std::max(2.0, width / 8);
        const double half = (width - gap) / 2;
        svg.rect(x, y, half, height, style);
        svg.rect(x + half + gap, y, half, height, style);
        return;
    }
    svg.rect(x, y, width, height, style);
    if (cell.state == UnitState::Misaligned) {
        const char* cross = "stroke=\"#1f2328\" stroke-width=\"1.3\"";
        svg.line(x, y, x + width, y + height, cross);
        svg.line(x, y + height, x + width, y, cross);
    }
}

// A part of a run whose units are all in one state.
struct Segment {
    Lblk lblk;
    Pblk pblk;
    Blocks length;
    UnitState state;
};
std::vector<Segment> segments_of(const UnitMap& map) {
    std::vector<Segment> segments;
    const uint64_t size = map.unit_blocks().value();
    auto stretch = map.stretches.begin();
    for (const Mapping& run : map.runs) {
        if (run.state == MapState::Hole) continue;
        for (Lblk at = run.lblk; at < run.end();) {
            while ((stretch->first + stretch->count) * size <= at.value()) ++stretch;
            const Lblk end = std::min(run.end(), Lblk((stretch->first + stretch->count) * size));
            segments.push_back({at, run.pblk + (at - run.lblk), end - at, stretch->state});
            at = end;
        }
    }
    return segments;
}

// The squares. Returns where they end.
double draw_units(Svg& svg, double y, const UnitMap& map) {
    const UnitCells cells = make_cells(map, kMaxCells);
    const auto count = cells.cells.size();
    const bool large = count <= 14;  // with room for words
    const size_t columns = large ? count : count <= 256 ? 32 : 64;
    const double step = large ? 66 : kSpan / static_cast<double>(columns);
    const double width = step - (large ? 6 : step > 20 ? 4 : 2);
    const double height = large ? 44 : std::min(width, 22.0);
    const double row_step = height + (large ? 30 : 4);
    svg.text(20, y, "The file, unit by unit", "font-size=\"14\" font-weight=\"bold\"");
    svg.text(190, y,
             cells.per_cell == 1
                 ? fmt::format("each square is one unit of {}", format_size(map.unit))
                 : fmt::format("each square is {} units of {}, together {}; it shows the worst",
                               cells.per_cell, format_size(map.unit),
                               format_size(map.unit * cells.per_cell)),
             kGrey);
    y += 28;
    svg.text(kLeft - 12, y, large ? "unit" : "file offset",
             "text-anchor=\"end\" fill=\"#59636e\" font-size=\"12\"");
    if (large) {
        for (size_t i = 0; i < count; ++i)
            svg.text(kLeft + static_cast<double>(i) * step + width / 2, y, fmt::format("{}", i),
                     kSmallGrey);
    }
    y += 10;
    for (size_t i = 0; i < count; ++i) {
        const double x = kLeft + static_cast<double>(i % columns) * step;
        const size_t row = i / columns;
        const double top = y + static_cast<double>(row) * row_step;
        if (!large && i % columns == 0)
            svg.text(kLeft - 12, top + height / 2 + 4,
                     rounded_size(i * cells.per_cell * map.unit.value()),
                     "text-anchor=\"end\" fill=\"#59636e\" font-size=\"11\"");
        const UnitCell& cell = cells.cells[i];
        draw_cell(svg, x, top, width, height, cell);
        if (width >= 24 && cell.state == UnitState::Misaligned && cells.per_cell == 1) {
            const double middle = x + width / 2;
            svg.rect(middle - 11, top + height / 2 - 8, 22, 16, "fill=\"white\"");
            svg.text(middle, top + height / 2 + 4, fmt::format("+{}", cell.shift),
                     "text-anchor=\"middle\" font-size=\"11\" font-weight=\"bold\"");
        }
    }
    const size_t rows = columns == 0 ? 0 : (count + columns - 1) / columns;
    y += static_cast<double>(rows) * row_step;
    if (!large) return y;
    // What the device block of each unit's beginning is.
    const double words = y - 14;
    svg.text(kLeft - 12, words, "device block",
             "text-anchor=\"end\" fill=\"#59636e\" font-size=\"12\"");
    uint64_t last = ~uint64_t{0};
    for (const Segment& segment : segments_of(map)) {
        const uint64_t size = map.unit_blocks().value();
        for (uint64_t unit = segment.lblk.value() / size;
             unit * size < (segment.lblk + segment.length).value(); ++unit) {
            if (unit == last) continue;
            last = unit;
            const Lblk at = std::max(segment.lblk, Lblk(unit * size));
            svg.text(kLeft + static_cast<double>(unit) * step + width / 2, words,
                     fmt::format("{}", segment.pblk + (at - segment.lblk)), kSmallGrey);
        }
    }
    return y;
}

// A stretch of bytes across the picture, with a label at every so many units.
struct Axis {
    uint64_t begin;
    uint64_t end;
    uint64_t unit;
    double x(uint64_t byte) const {
        return kLeft + static_cast<double>(byte - begin) / static_cast<double>(end - begin) * kSpan;
    }
    // Ticks from y towards the words.
    void draw(Svg& svg, double y, double words, std::string_view name) const {
        uint64_t step = unit;
        while ((end - begin) / step > 8) step *= 2;
        for (uint64_t byte = begin; byte <= end; byte += step) {
            svg.line(x(byte), y, x(byte), y + (words > y ? 12 : -6),
                     "stroke=\"#1f2328\" stroke-width=\"1\"");
            svg.text(x(byte), words, format_size(Bytes(byte)), kSmallGrey);
        }
        svg.text(kLeft - 32, words, name, "text-anchor=\"end\" fill=\"#59636e\" font-size=\"12\"");
    }
};

// The segments to draw: all, or so many that one can see them, and every kind of trouble.
std::vector<Segment> drawable(const std::vector<Segment>& all, const Axis& file, const Axis& device,
                              uint64_t block) {
    if (all.size() <= kMaxDrawn) return all;
    for (double pixels = 1;; pixels *= 2) {
        std::vector<Segment> drawn;
        std::set<std::tuple<int, int, UnitState>> seen;
        for (const Segment& segment : all) {
            const auto at = [&](double x) { return static_cast<int>(x / pixels); };
            const std::tuple key{at(file.x(segment.lblk.value() * block)),
                                 at(device.x(segment.pblk.value() * block)), segment.state};
            if (seen.insert(key).second) drawn.push_back(segment);
            if (drawn.size() > kMaxDrawn) break;
        }
        if (drawn.size() <= kMaxDrawn || pixels > kSpan) return drawn;
    }
}

// The file above, the device below, and where each run goes. Returns where it ends.
double draw_runs(Svg& svg, double y, const UnitMap& map) {
    constexpr double kStrip = 20;
    constexpr double kBetween = 120;
    const uint64_t block = map.block_size.value();
    const auto segments = segments_of(map);
    svg.text(20, y, "Where its runs lie on the device", "font-size=\"14\" font-weight=\"bold\"");
    if (segments.empty()) {
        svg.text(kLeft, y + 28, "nowhere: nothing of it is mapped", kGrey);
        return y + 44;
    }
    uint64_t low = ~uint64_t{0};
    uint64_t high = 0;
    for (const Segment& segment : segments) {
        low = std::min(low, segment.pblk.value() * block);
        high = std::max(high, (segment.pblk + segment.length).value() * block);
    }
    low = round_down(low, map.unit.value());
    high = round_up(high, map.unit.value());
    const Axis file{0, map.units * map.unit.value(), map.unit.value()};
    const Axis device{low, high, map.unit.value()};
    const auto drawn = drawable(segments, file, device, block);
    const uint64_t boundaries = (high - low) / map.unit.value();
    const bool grid = boundaries <= 160;
    svg.text(
        310, y,
        fmt::format("{}{}",
                    grouped_digits(map.mapped_runs()) + (map.mapped_runs() == 1 ? " run" : " runs"),
                    drawn.size() < segments.size() ? ", not all of them drawn" : "") +
            (grid ? fmt::format("; the marks below are {} apart: there aligned units begin",
                                format_size(map.unit))
                  : std::string()),
        kGrey);
    const double top = y + 44;
    const double bottom = top + kStrip + kBetween;
    file.draw(svg, top, top - 10, "file offset");
    const auto right = [](double left, double x) { return std::max(x, left + 1); };
    for (const Segment& segment : drawn) {
        const double f1 = file.x(segment.lblk.value() * block);
        const double f2 = right(f1, file.x((segment.lblk + segment.length).value() * block));
        const double d1 = device.x(segment.pblk.value() * block);
        const double d2 = right(d1, device.x((segment.pblk + segment.length).value() * block));
        const Look how = look(segment.state);
        const bool thin = f2 - f1 < 4 || d2 - d1 < 4;  // borders would be all that one sees
        svg.polygon(
            {{f1, top + kStrip}, {f2, top + kStrip}, {d2, bottom}, {d1, bottom}},
            fmt::format(
                "fill=\"{0}\" fill-opacity=\"{1}\" stroke=\"{2}\" "
                "stroke-width=\"0.6\" stroke-opacity=\"{3}\"{4}",
                how.fill, segment.state == UnitState::Unwritten ? 0.5 : 0.25,
                thin ? how.fill : how.stroke, thin ? 0.4 : 1.0,
                is_aligned_state(segment.state) || thin ? "" : " stroke-dasharray=\"4 2\""));
        for (const auto& [x1, x2, at] : {std::tuple{f1, f2, top}, std::tuple{d1, d2, bottom}}) {
            const bool wide = x2 - x1 > 3;
            svg.rect(x1, at, x2 - x1, kStrip,
                     fmt::format("fill=\"{}\"{}", wide ? strip_fill(segment.state) : how.fill,
                                 wide ? fmt::format(" stroke=\"{}\"", how.stroke) : ""));
        }
    }
    for (const double at : {top, bottom})
        svg.rect(kLeft, at, kSpan, kStrip, "fill=\"none\" stroke=\"#59636e\"");
    if (grid) {
        for (uint64_t i = 0; i <= boundaries; ++i) {
            const double x = device.x(low + i * map.unit.value());
            svg.line(x, bottom + kStrip, x, bottom + kStrip + 7,
                     "stroke=\"#1f2328\" stroke-width=\"1\"");
        }
    }
    device.draw(svg, bottom + kStrip, bottom + kStrip + 26, "device offset");
    return bottom + kStrip + 36;
}

double draw_legend(Svg& svg, double y, const UnitMap& map) {
    const auto counts = map.counts();
    double x = kLeft;
    for (const UnitState state : kAll) {
        const uint64_t count = counts[static_cast<size_t>(state)];
        if (count == 0 && state != UnitState::Written) continue;
        draw_cell(svg, x, y - 12, 14, 14, {state, false, Blocks(0)});
        svg.text(x + 21, y, look(state).legend, "font-size=\"12\"");
        svg.text(x + 21, y + 16, units_text(count), kGrey);
        x += 195;
    }
    svg.text(kLeft, y + 40,
             "An aligned unit is one run that starts at a multiple of the unit on the device: one "
             "hardware atomic write can replace it. Sizes in bytes: K is 1024, M 1024 K.",
             kGrey);
    return y + 40;
}

}  // namespace

std::string unit_map_svg(const UnitMap& map, std::string_view path, bool has_unit) {
    Svg svg(kWidth);
    svg.raw(kPatterns);
    svg.text(20, 34, path, "font-size=\"19\" font-weight=\"bold\"");
    svg.text(20, 58,
             fmt::format("{}{}; {} in {} of {}, blocks of {}",
                         has_unit ? "" : "an ordinary file, looked at in units: ", verdict(map),
                         rounded_size(map.file_size.value()), units_text(map.units),
                         format_size(map.unit), format_size(map.block_size)),
             kGrey);
    double y = 96;
    if (map.units != 0) {
        y = draw_units(svg, y, map) + 34;
        y = draw_runs(svg, y, map) + 36;
    }
    y = draw_legend(svg, y, map);
    return svg.finish(y + 20, fmt::format("Map of {}: {}", path, verdict(map)));
}

std::string unit_map_text(const UnitMap& map) {
    constexpr uint64_t kMarks = 64;
    const UnitCells cells = make_cells(map, kMarks);
    if (cells.cells.empty()) return {};
    std::string marks;
    for (const UnitCell& cell : cells.cells) marks += look(cell.state).mark;
    std::string text =
        fmt::format("  |{}|\n  one mark is {}: # aligned, - unwritten, ! misaligned, . hole{}\n",
                    marks, counted(cells.per_cell, "unit"),
                    marks.find('%') == std::string::npos ? "" : ", % in pieces");
    return text + fmt::format("  {}\n", verdict(map));
}

}  // namespace atomic4
