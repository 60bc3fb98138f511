#include "base/svg.h"

#include <fmt/format.h>

#include <cstdint>
#include <optional>

namespace atomic4 {

namespace {

struct Character {
    size_t bytes;
    uint32_t code;
};

// The UTF-8 character that text begins with; none: it is damaged there.
std::optional<Character> first_character(std::string_view text) {
    const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
    const unsigned char lead = byte(0);
    if (lead < 0x80) return Character{1, lead};
    const size_t bytes = lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : 2;
    if (lead < 0xc2 || lead > 0xf4 || text.size() < bytes) return std::nullopt;
    uint32_t code = lead & (0x7fu >> bytes);
    for (size_t i = 1; i < bytes; ++i) {
        if ((byte(i) & 0xc0) != 0x80) return std::nullopt;
        code = code << 6 | (byte(i) & 0x3fu);
    }
    constexpr uint32_t kSmallest[] = {0, 0, 0x80, 0x800, 0x10000};
    if (code < kSmallest[bytes] || code > 0x10ffff || (code >= 0xd800 && code < 0xe000))
        return std::nullopt;
    return Character{bytes, code};
}

// XML 1.0, production [2]: no control characters but tab and line ends. Those would be folded to
// spaces, and a name with a line end would look like another one.
bool allowed_in_xml(uint32_t code) {
    return code >= 0x20 && code != 0x7f && code != 0xfffe && code != 0xffff;
}

}  // namespace

std::string xml_escaped(std::string_view text) {
    std::string out;
    while (!text.empty()) {
        const auto character = first_character(text);
        if (!character || !allowed_in_xml(character->code)) {
            out += "\xef\xbf\xbd";
            text.remove_prefix(character ? character->bytes : 1);
            continue;
        }
        switch (character->code) {
            case '&':
                out += "&amp;";
                break;
            case '<':
                out += "&lt;";
                break;
            case '>':
                out += "&gt;";
                break;
            case '"':
                out += "&quot;";
                break;
            case '\'':
                out += "&#39;";
                break;
            default:
                out += text.substr(0, character->bytes);
        }
        text.remove_prefix(character->bytes);
    }
    return out;
}

std::string grouped_digits(unsigned long long value) {
    std::string digits = fmt::format("{}", value);
    for (auto at = static_cast<std::ptrdiff_t>(digits.size()) - 3; at > 0; at -= 3)
        digits.insert(static_cast<size_t>(at), 1, ',');
    return digits;
}

void Svg::rect(double x, double y, double width, double height, std::string_view more) {
    body_ +=
        fmt::format("<rect x=\"{:.1f}\" y=\"{:.1f}\" width=\"{:.1f}\" height=\"{:.1f}\" {}/>\n", x,
                    y, width, height, more);
}

void Svg::line(double x1, double y1, double x2, double y2, std::string_view more) {
    body_ += fmt::format("<line x1=\"{:.1f}\" y1=\"{:.1f}\" x2=\"{:.1f}\" y2=\"{:.1f}\" {}/>\n", x1,
                         y1, x2, y2, more);
}

void Svg::polygon(const std::vector<std::pair<double, double>>& points, std::string_view more) {
    body_ += "<polygon points=\"";
    for (const auto& [x, y] : points) body_ += fmt::format("{:.1f},{:.1f} ", x, y);
    body_.back() = '"';
    body_ += fmt::format(" {}/>\n", more);
}

void Svg::text(double x, double y, std::string_view words, std::string_view more) {
    body_ += fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" {}>{}</text>\n", x, y, more,
                         xml_escaped(words));
}

void Svg::begin_group(std::string_view title) {
    body_ += fmt::format("<g><title>{}</title>\n", xml_escaped(title));
}

std::string Svg::finish(double height, std::string_view title) const {
    return fmt::format(
               "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {0:.0f} {1:.0f}\" "
               "width=\"{0:.0f}\" height=\"{1:.0f}\" font-family=\"sans-serif\" font-size=\"13\" "
               "fill=\"#1f2328\">\n<title>{2}</title>\n"
               "<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n",
               width_, height, xml_escaped(title)) +
           body_ + "</svg>\n";
}

}  // namespace atomic4
