// A picture as SVG 1.1 text: rectangles, lines, polygons and words, in pixels from the top left.
//
// Words are escaped: a path may hold any bytes, and what is no UTF-8 or no character of XML becomes
// U+FFFD. Attributes are the caller's own and go in as they are.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace atomic4 {

// Words that explain, in each picture alike.
inline constexpr const char* kGrey = "fill=\"#59636e\" font-size=\"12\"";

class Svg {
  public:
    // Height: of finish(), when it is known.
    explicit Svg(double width) : width_(width) {}

    // more: further attributes, such as "fill=\"#fff\" stroke=\"black\"".
    void rect(double x, double y, double width, double height, std::string_view more);
    void line(double x1, double y1, double x2, double y2, std::string_view more);
    void polygon(const std::vector<std::pair<double, double>>& points, std::string_view more);
    void text(double x, double y, std::string_view words, std::string_view more = {});
    // Named patterns and the like, before what uses them.
    void raw(std::string_view svg) { body_ += svg; }
    // What reads the picture aloud says this, and a browser shows it for the last shape's group.
    void begin_group(std::string_view title);
    void end_group() { body_ += "</g>\n"; }

    std::string finish(double height, std::string_view title) const;

  private:
    double width_;
    std::string body_;
};

// For between tags and in attributes.
std::string xml_escaped(std::string_view text);

// 1234567 → "1,234,567".
std::string grouped_digits(unsigned long long value);

}  // namespace atomic4
