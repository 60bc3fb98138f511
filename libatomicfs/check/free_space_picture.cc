#include "check/free_space_picture.h"

#include <algorithm>
#include <cmath>

#include "base/size_parse.h"
#include "base/svg.h"
#include "base/text.h"

namespace atomic4 {

namespace {

constexpr double kNames = 90;     // the names of the rows
constexpr double kBar = 300;      // 100 per cent
constexpr double kFigures = 210;  // beside the bars
constexpr double kTop = 128;
constexpr double kRow = 26;
constexpr double kThick = 18;

// Solid and hatched, so that it reads without colours too.
constexpr const char* kUsable = "fill=\"#0b6bcb\" stroke=\"#1f2328\"";
constexpr const char* kUnusable = "fill=\"url(#unusable)\" stroke=\"#1f2328\"";
constexpr const char* kPiece = "fill=\"#7d8590\" stroke=\"#1f2328\"";
constexpr const char* kHatching =
    "<defs><pattern id=\"unusable\" width=\"6\" height=\"6\" patternUnits=\"userSpaceOnUse\" "
    "patternTransform=\"rotate(45)\"><rect width=\"6\" height=\"6\" fill=\"#fdeee3\"/>"
    "<rect width=\"1.6\" height=\"6\" fill=\"#c2410c\"/></pattern></defs>\n";

std::string percent(double value) {
    // What isn't all or nothing doesn't look so.
    if (value > 0 && value < 0.1) return "< 0.1 %";
    if (value > 99.9 && value < 100) return "> 99.9 %";
    return fmt::format("{:.1f} %", value);
}

std::string row_of_marks(double share) {
    constexpr size_t kMarks = 32;
    auto marks = static_cast<size_t>(std::lround(share / 100 * kMarks));
    if (share > 0) marks = std::max<size_t>(marks, 1);
    if (share < 100) marks = std::min(marks, kMarks - 1);
    return std::string(marks, '#') + std::string(kMarks - marks, '.');
}

std::string range_text(const FreeSpace::Piece& piece) {
    return fmt::format("{} - {}", format_size(piece.length), format_size(piece.length * 2));
}

std::string headline(const FreeSpace& space) {
    const double part = space.blocks.value() == 0
                            ? 0
                            : 100.0 * static_cast<double>(space.free.value()) /
                                  static_cast<double>(space.blocks.value());
    return fmt::format(
        "{} of {} blocks of {} free ({}), in {}", grouped_digits(space.free.value()),
        grouped_digits(space.blocks.value()), format_size(space.block_size), percent(part),
        space.piece_count() == 1 ? "1 piece" : grouped_digits(space.piece_count()) + " pieces");
}

std::string longest_text(const FreeSpace& space) {
    if (space.longest.length.value() == 0) return "nothing is free";
    return fmt::format("longest piece: {} from block {}; largest aligned run: {} at block {}",
                       format_size(space.block_size * space.longest.length.value()),
                       space.longest.start,
                       format_size(space.block_size * space.largest_aligned.length.value()),
                       space.largest_aligned.start);
}

std::string damaged_text(const FreeSpace& space) {
    return fmt::format("{} left out: damaged (run e2fsck)", counted(space.damaged.size(), "group"));
}

// The frame of a panel: a scale of 0 to 100 per cent over its rows.
void draw_scale(Svg& svg, double left, size_t rows, std::string_view heading,
                std::string_view unit) {
    const double bottom = kTop + static_cast<double>(rows) * kRow;
    svg.text(left, kTop - 34, heading, "font-size=\"14\" font-weight=\"bold\"");
    svg.text(left - 10, kTop - 10, unit, "text-anchor=\"end\" fill=\"#59636e\" font-size=\"12\"");
    for (int tick = 0; tick <= 100; tick += 25) {
        const double x = left + kBar * tick / 100;
        svg.line(x, kTop - 4, x, bottom + 4,
                 tick == 0 ? "stroke=\"#59636e\"" : "stroke=\"#d8dee4\"");
        svg.text(x, bottom + 19, fmt::format("{} %", tick),
                 "text-anchor=\"middle\" fill=\"#59636e\" font-size=\"11\"");
    }
    svg.text(left + kBar / 2, bottom + 38, "of the free space",
             "text-anchor=\"middle\" fill=\"#59636e\" font-size=\"12\"");
}

void draw_row(Svg& svg, double left, size_t row, const std::string& name,
              const std::string& figures) {
    const double y = kTop + static_cast<double>(row) * kRow + kThick - 1;
    svg.text(left - 10, y, name, "text-anchor=\"end\"");
    svg.text(left + kBar + 10, y, figures, "font-size=\"12\"");
}

}  // namespace

std::string free_space_svg(const FreeSpace& space, std::string_view volume) {
    const double second = kNames + kBar + kFigures + 110;
    Svg svg(second + kBar + kFigures);
    svg.raw(kHatching);
    const std::string title = fmt::format("Free space of {}", volume);
    svg.text(20, 34, title, "font-size=\"19\" font-weight=\"bold\"");
    svg.text(20, 58, headline(space) + "; " + longest_text(space), kGrey);

    draw_scale(svg, kNames, space.units.size(), "How much of it atomic units can use", "unit");
    for (size_t row = 0; row < space.units.size(); ++row) {
        const FreeSpace::Unit& unit = space.units[row];
        const double usable = space.usable_percent(unit);
        const double y = kTop + static_cast<double>(row) * kRow + (kRow - kThick) / 2;
        if (space.free.value() != 0) {
            svg.rect(kNames, y, kBar, kThick, kUnusable);
            if (unit.runs != 0) svg.rect(kNames, y, kBar * usable / 100, kThick, kUsable);
        }
        draw_row(svg, kNames, row, format_size(unit.unit),
                 fmt::format("{}: {} aligned run{}", percent(usable), grouped_digits(unit.runs),
                             unit.runs == 1 ? "" : "s"));
    }
    draw_scale(svg, second, space.pieces.size(), "How long its pieces are", "length");
    for (size_t row = 0; row < space.pieces.size(); ++row) {
        const FreeSpace::Piece& piece = space.pieces[row];
        const double share = space.share_percent(piece.blocks);
        const double y = kTop + static_cast<double>(row) * kRow + (kRow - kThick) / 2;
        if (piece.count != 0) svg.rect(second, y, kBar * share / 100, kThick, kPiece);
        draw_row(svg, second, row, range_text(piece),
                 piece.count == 0
                     ? "none"
                     : fmt::format("{}: {} piece{}", percent(share), grouped_digits(piece.count),
                                   piece.count == 1 ? "" : "s"));
    }
    const size_t rows = std::max(space.units.size(), space.pieces.size());
    double y = kTop + static_cast<double>(rows) * kRow + 66;
    svg.rect(kNames, y - 12, 14, 14, kUsable);
    svg.text(kNames + 22, y, "in free runs of the unit's size, aligned to it", "font-size=\"12\"");
    svg.rect(kNames + 300, y - 12, 14, 14, kUnusable);
    svg.text(kNames + 322, y, "free, but in pieces too short or not aligned", "font-size=\"12\"");
    svg.text(second, y, "sizes in bytes: K is 1024, M 1024 K", kGrey);
    if (!space.damaged.empty()) {
        y += 24;
        svg.text(kNames, y, damaged_text(space), "font-size=\"12\" font-weight=\"bold\"");
    }
    return svg.finish(y + 20, title);
}

std::string free_space_text(const FreeSpace& space, std::string_view volume) {
    std::string text = fmt::format("{}: {}\n  {}\n", volume, headline(space), longest_text(space));
    if (!space.damaged.empty()) text += "  " + damaged_text(space) + "\n";
    text += fmt::format("\n  {:>13}  {:>14}  {:>9}\n", "unit", "aligned runs", "usable");
    for (const FreeSpace::Unit& unit : space.units) {
        const double usable = space.usable_percent(unit);
        text += fmt::format("  {:>13}  {:>14}  {:>9}  {}\n", format_size(unit.unit),
                            grouped_digits(unit.runs), percent(usable), row_of_marks(usable));
    }
    if (space.pieces.empty()) return text;
    text += fmt::format("\n  {:>13}  {:>14}  {:>9}\n", "piece length", "pieces", "share");
    for (const FreeSpace::Piece& piece : space.pieces) {
        const double share = space.share_percent(piece.blocks);
        text += fmt::format("  {:>13}  {:>14}  {:>9}  {}\n", range_text(piece),
                            grouped_digits(piece.count), percent(share), row_of_marks(share));
    }
    return text;
}

}  // namespace atomic4
