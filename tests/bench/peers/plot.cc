#include "bench/peers/plot.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "base/svg.h"

namespace atomic4::bench {
namespace {

constexpr double kNames = 270;  // width of the names' column
constexpr double kPanel = 250;
constexpr double kGap = 70;  // beside a panel: a full bar's figure stands there
constexpr double kTop = 110;
constexpr double kRow = 30;
constexpr double kBar = 20;
constexpr double kBottom = 122;

struct Style {
    const char* colour;
    const char* meaning;
};
Style style(Plot::Kind kind) {
    switch (kind) {
        case Plot::Kind::Ours:
            return {"#0b6bcb", "atomic4d"};
        case Plot::Kind::Peer:
            return {"#7d8590", "what exists today"};
        case Plot::Kind::Line:
            return {"#d4b483", "limits: not atomic, or without socket"};
    }
    return {};
}

std::string text(double x, double y, const std::string& words, const char* more) {
    return fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" {}>{}</text>\n", x, y, more,
                       xml_escaped(words));
}

// 12,345
std::string grouped(double value) {
    std::string digits = fmt::format("{:.0f}", value);
    for (auto at = static_cast<std::ptrdiff_t>(digits.size()) - 3; at > 0; at -= 3)
        digits.insert(static_cast<size_t>(at), 1, ',');
    return digits;
}

// 1, 2 or 5 times a power of ten, so that about four of it make the maximum.
double tick_for(double maximum) {
    const double rough = std::max(maximum, 1.0) / 4;
    const double power = std::pow(10, std::floor(std::log10(rough)));
    for (const double step : {1.0, 2.0, 5.0})
        if (step * power >= rough) return step * power;
    return 10 * power;
}

}  // namespace

std::string Plot::svg() const {
    const auto rows = static_cast<double>(bars.size());
    const double bottom = kTop + rows * kRow;
    const double width = kNames + static_cast<double>(panels.size()) * (kPanel + kGap) + 10;
    const double height = bottom + kBottom;
    std::string out = fmt::format(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {0:.0f} {1:.0f}\" "
        "width=\"{0:.0f}\" height=\"{1:.0f}\" font-family=\"sans-serif\" font-size=\"13\" "
        "fill=\"#1f2328\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n",
        width, height);
    out += text(20, 32, title, "font-size=\"19\" font-weight=\"bold\"");
    out += text(20, 56, subtitle, "fill=\"#59636e\"");

    for (size_t row = 0; row < bars.size(); ++row) {
        const bool ours = bars[row].kind == Kind::Ours;
        out += text(kNames - 12, kTop + static_cast<double>(row) * kRow + kRow / 2 + 4.5,
                    bars[row].name,
                    ours ? "text-anchor=\"end\" font-weight=\"bold\"" : "text-anchor=\"end\"");
    }
    for (size_t panel = 0; panel < panels.size(); ++panel) {
        const double left = kNames + static_cast<double>(panel) * (kPanel + kGap);
        double maximum = 0;
        for (const Bar& bar : bars) maximum = std::max(maximum, bar.values[panel].value_or(0));
        const double tick = tick_for(maximum);
        const double full = std::max(maximum, tick);
        out += text(left, kTop - 14, panels[panel], "font-size=\"14\" font-weight=\"bold\"");
        for (int step = 0; step * tick <= full * 1.001; ++step) {
            const double at = step * tick;
            const double x = left + at / full * kPanel;
            out += fmt::format(
                "<line x1=\"{0:.1f}\" y1=\"{1:.1f}\" x2=\"{0:.1f}\" y2=\"{2:.1f}\" "
                "stroke=\"{3}\"/>\n",
                x, kTop, bottom + 5, at == 0 ? "#59636e" : "#d8dee4");
            out += text(x, bottom + 20, grouped(at),
                        "text-anchor=\"middle\" font-size=\"11\" fill=\"#59636e\"");
        }
        out += text(left + kPanel / 2, bottom + 40, axis,
                    "text-anchor=\"middle\" font-size=\"12\" fill=\"#59636e\"");
        for (size_t row = 0; row < bars.size(); ++row) {
            const double y = kTop + static_cast<double>(row) * kRow + (kRow - kBar) / 2;
            const auto& value = bars[row].values[panel];
            if (!value) {
                out += text(left + 6, y + kBar - 5.5, "–", "fill=\"#59636e\"");
                continue;
            }
            const double length = *value / full * kPanel;
            out += fmt::format(
                "<rect x=\"{:.1f}\" y=\"{:.1f}\" width=\"{:.1f}\" height=\"{:.0f}\" "
                "fill=\"{}\"/>\n",
                left, y, length, kBar, style(bars[row].kind).colour);
            out += text(left + length + 6, y + kBar - 5.5, grouped(*value), "font-size=\"12\"");
        }
    }
    double x = 20;
    for (const Kind kind : {Kind::Ours, Kind::Peer, Kind::Line}) {
        const Style one = style(kind);
        out += fmt::format(
            "<rect x=\"{:.1f}\" y=\"{:.1f}\" width=\"13\" height=\"13\" fill=\"{}\"/>\n", x,
            bottom + 64, one.colour);
        out += text(x + 20, bottom + 75, one.meaning, "");
        x += 170;
    }
    out += text(20, bottom + 104, footnote, "font-size=\"12\" fill=\"#59636e\"");
    return out + "</svg>\n";
}

}  // namespace atomic4::bench
