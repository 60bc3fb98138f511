// A bar chart as SVG: a row of bars for each peer, a panel for each number of writers, each panel
// with a scale of its own.
#pragma once

#include <optional>
#include <string>
#include <vector>

namespace atomic4::bench {

struct Plot {
    enum class Kind { Ours, Peer, Line };  // Line: not a peer, but a limit or what isn't atomic
    struct Bar {
        std::string name;
        Kind kind;
        std::vector<std::optional<double>> values;  // one a panel; none: it can't do that
    };
    std::string title;
    std::string subtitle;
    std::string axis;  // "durable writes per second"
    std::vector<std::string> panels;
    std::vector<Bar> bars;
    std::string footnote;

    std::string svg() const;
};

}  // namespace atomic4::bench
