// All peers side by side: durable writes at random places of one file, on one loop device with
// direct I/O, with 1, 16 and 64 writers.
//
// In each round every peer has its turn on a file system made afresh, the next round in the other
// order: the machine's moods meet all. Figures are medians of the rounds, and ratios medians of the
// rounds' ratios.

#include <algorithm>
#include <fstream>
#include <map>
#include <set>
#include <stdexcept>

#include "base/text.h"
#include "bench/peers/peer.h"
#include "bench/peers/plot.h"
#include "support/command.h"

namespace atomic4::bench {
namespace {

constexpr uint64_t kUnit = 16 * kKiB;

enum class Id {
    Xfs,
    DataJournal,
    Doublewrite1,
    Doublewrite128,
    Btrfs,
    Plain,
    Bare,
    BareHalves,
    BareOverlapped,
    Exclusive,
    Strict,
};

std::unique_ptr<Peer> make(Id id) {
    switch (id) {
        case Id::Xfs:
            return make_xfs_atomic();
        case Id::DataJournal:
            return make_ext4_data_journal();
        case Id::Doublewrite1:
            return make_doublewrite(1);
        case Id::Doublewrite128:
            return make_doublewrite(128);
        case Id::Btrfs:
            return make_btrfs();
        case Id::Plain:
            return make_ext4_plain();
        case Id::Bare:
            return make_bare_loop(Pipelining::Lockstep);
        case Id::BareHalves:
            return make_bare_loop(Pipelining::Halves);
        case Id::BareOverlapped:
            return make_bare_loop(Pipelining::Overlapped);
        case Id::Exclusive:
            return make_atomic4d(Others::None);
        case Id::Strict:
            return make_atomic4d(Others::HoldFileOpen);
    }
    return nullptr;
}

Plot::Kind kind_of(Id id) {
    switch (id) {
        case Id::Exclusive:
        case Id::Strict:
            return Plot::Kind::Ours;
        case Id::Plain:
        case Id::Bare:
        case Id::BareHalves:
        case Id::BareOverlapped:
            return Plot::Kind::Line;
        default:
            return Plot::Kind::Peer;
    }
}

struct Plan {
    uint64_t device_size = 0;
    uint64_t file_size = 0;
    int rounds = 0;
    double seconds = 0;        // of a measurement
    double other_seconds = 0;  // of one with another unit; one round only
    std::vector<unsigned> writers;
    std::vector<unsigned> other_writers;
    std::vector<uint64_t> other_units;
    std::vector<Id> peers;
};

using Case = std::pair<unsigned, uint64_t>;  // writers, unit

struct Measured {
    std::string name;
    std::optional<std::string> skipped;
    std::map<Case, std::vector<Figures>> figures;  // one a round
    double peak_mib = 0;
    std::set<std::string> notes;

    std::optional<double> median_of(const Case& which, double Figures::* field) const {
        const auto found = figures.find(which);
        if (found == figures.end()) return std::nullopt;
        std::vector<double> values;
        for (const Figures& one : found->second) values.push_back(one.*field);
        return median(values);
    }
};

class Contest {
  public:
    Contest(const Plan& plan, const std::string& directory)
        : plan_(plan), site_(directory, plan.device_size, plan.file_size) {
        for (const Id id : plan_.peers) results_[id].name = make(id)->name();
    }

    void run() {
        std::vector<Id> order = plan_.peers;
        for (int round = 0; round < plan_.rounds; ++round) {
            for (const Id id : order) take_turn(id, round);
            std::ranges::reverse(order);
        }
    }

    void print_table() const {
        fmt::print(
            "Durable random writes of 16K by x writers with one outstanding each, on {} of {}.\n"
            "/s: writes per second; XFS, plain: the ratio to that peer; CPUus: processor time of "
            "the whole\nmachine for each write. Medians of {}.\n\n{:<36}",
            as_size(plan_.file_size), as_size(plan_.device_size),
            counted(static_cast<size_t>(plan_.rounds), "round"), "");
        const auto heads = [&](const char* what, int width) {
            for (const unsigned writers : plan_.writers)
                fmt::print(" {:>{}}", fmt::format("{}{}", what, writers), width);
            fmt::print(" ");
        };
        heads("/s x", 8);
        heads("XFS x", 7);
        heads("plain x", 9);
        heads("CPUus x", 9);
        fmt::print(" {:>8}\n", "peak MiB");
        for (const Id id : plan_.peers) {
            const Measured& one = results_.at(id);
            fmt::print("{:<36}", one.name);
            if (one.skipped) {
                fmt::print(" skipped: {}\n", *one.skipped);
                continue;
            }
            cells(8, [&](const Case& which) {
                return number(one.median_of(which, &Figures::writes_per_second), "{:.0f}");
            });
            cells(7,
                  [&](const Case& which) { return number(ratio(id, Id::Xfs, which), "{:.2f}"); });
            cells(9,
                  [&](const Case& which) { return number(ratio(id, Id::Plain, which), "{:.2f}"); });
            cells(9, [&](const Case& which) {
                return number(one.median_of(which, &Figures::cpu_us_per_write), "{:.0f}");
            });
            fmt::print(" {:>8}\n", one.peak_mib > 0 ? fmt::format("{:.1f}", one.peak_mib) : "-");
            for (const std::string& note : one.notes) fmt::print("    {}\n", note);
        }
        print_other_units();
    }

    void print_verdicts() const {
        fmt::print("\n{:<44} {:>12} {:>12} {:>7}  {:<14} {:<6} {}\n", "target", "ours", "peer",
                   "ratio", "target", "result", "note");
        struct Target {
            Id ours;
            unsigned writers;
            Id peer;
            double least;
        };
        constexpr Target kTargets[] = {
            {Id::Exclusive, 1, Id::Xfs, 1.8},         {Id::Exclusive, 1, Id::Plain, 0.45},
            {Id::Strict, 1, Id::Xfs, 0.75},           {Id::Exclusive, 16, Id::Xfs, 3},
            {Id::Exclusive, 16, Id::DataJournal, 3},  {Id::Strict, 16, Id::Xfs, 1.8},
            {Id::Exclusive, 1, Id::Bare, 0.8},        {Id::Exclusive, 16, Id::Bare, 0.8},
            {Id::Exclusive, 16, Id::BareHalves, 0.8},
        };
        for (const Target& target : kTargets) {
            if (!results_.contains(target.ours) || !results_.contains(target.peer)) continue;
            const Measured& ours = results_.at(target.ours);
            const Measured& peer = results_.at(target.peer);
            const std::string name = fmt::format("{} x {}", target.writers, ours.name);
            if (ours.skipped || peer.skipped) {
                print_skipped(name, ours.skipped ? *ours.skipped : *peer.skipped);
                continue;
            }
            const Case which{target.writers, kUnit};
            const auto measured = ratio(target.ours, target.peer, which);
            if (!measured) continue;
            print_row({name, as_rate(*ours.median_of(which, &Figures::writes_per_second)),
                       as_rate(*peer.median_of(which, &Figures::writes_per_second)),
                       as_ratio(*measured), fmt::format(">= {}", target.least),
                       *measured >= target.least, "peer: " + peer.name});
        }
    }

    Plot plot() const {
        Plot plot;
        plot.title = "Durable random writes of 16 KiB";
        plot.subtitle = fmt::format(
            "{} file, one loop device with direct I/O, median of {}; longer is better",
            as_size(plan_.file_size), counted(static_cast<size_t>(plan_.rounds), "round"));
        plot.axis = "writes per second";
        for (const unsigned writers : plan_.writers)
            plot.panels.push_back(writers == 1 ? "1 writer" : fmt::format("{} writers", writers));
        for (const Id id : plan_.peers) {
            const Measured& one = results_.at(id);
            if (one.skipped) continue;
            if (id == Id::Doublewrite128) {
                plot.footnote = one.name + ", not shown:";
                for (const unsigned writers : plan_.writers)
                    plot.footnote += fmt::format(
                        " {:.0f}/s with {},",
                        one.median_of({writers, kUnit}, &Figures::writes_per_second).value_or(0),
                        writers);
                plot.footnote += " each with 128 writes outstanding";
                continue;
            }
            Plot::Bar bar{one.name, kind_of(id), {}};
            for (const unsigned writers : plan_.writers)
                bar.values.push_back(one.median_of({writers, kUnit}, &Figures::writes_per_second));
            plot.bars.push_back(std::move(bar));
        }
        return plot;
    }

  private:
    void take_turn(Id id, int round) {
        Measured& result = results_[id];
        if (result.skipped) return;
        const auto peer = make(id);
        result.skipped = peer->prepare(site_);
        if (!result.skipped) {
            for (const unsigned writers : plan_.writers)
                measure(*peer, result, {writers, kUnit, plan_.seconds});
            if (round == 0)
                for (const uint64_t unit : plan_.other_units)
                    for (const unsigned writers : plan_.other_writers)
                        measure(*peer, result, {writers, unit, plan_.other_seconds});
            result.peak_mib = std::max(result.peak_mib, peer->peak_mib());
        }
        peer->finish();
    }

    static void measure(Peer& peer, Measured& result, const Load& load) {
        if (peer.refuses(load)) return;
        const Figures figures = peer.run(load);
        result.figures[{load.writers, load.unit}].push_back(figures);
        if (!figures.note.empty()) {
            result.notes.insert(
                fmt::format("{} x {}: {}", load.writers, as_size(load.unit), figures.note));
        }
    }

    // The median of the rounds' ratios.
    std::optional<double> ratio(Id ours, Id peer, const Case& which) const {
        const auto a = results_.find(ours);
        const auto b = results_.find(peer);
        if (a == results_.end() || b == results_.end()) return std::nullopt;
        const auto mine = a->second.figures.find(which);
        const auto theirs = b->second.figures.find(which);
        if (mine == a->second.figures.end() || theirs == b->second.figures.end())
            return std::nullopt;
        std::vector<double> ratios;
        for (size_t round = 0; round < mine->second.size(); ++round)
            ratios.push_back(mine->second[round].writes_per_second /
                             theirs->second[round].writes_per_second);
        return median(ratios);
    }

    static std::string number(std::optional<double> value, const char* form) {
        return value ? fmt::format(fmt::runtime(form), *value) : "-";
    }

    template <class Cell>
    void cells(int width, const Cell& cell) const {
        for (const unsigned writers : plan_.writers)
            fmt::print(" {:>{}}", cell(Case{writers, kUnit}), width);
        fmt::print(" ");
    }

    void print_other_units() const {
        if (plan_.other_units.empty()) return;
        fmt::print("\n{:<36}", "other sizes, writes/s (one round)");
        for (const uint64_t unit : plan_.other_units)
            for (const unsigned writers : plan_.other_writers)
                fmt::print(" {:>9}", fmt::format("{} x{}", as_size(unit), writers));
        fmt::print("\n");
        for (const Id id : plan_.peers) {
            const Measured& one = results_.at(id);
            if (one.skipped) continue;
            fmt::print("{:<36}", one.name);
            for (const uint64_t unit : plan_.other_units)
                for (const unsigned writers : plan_.other_writers)
                    fmt::print(" {:>9}",
                               number(one.median_of({writers, unit}, &Figures::writes_per_second),
                                      "{:.0f}"));
            fmt::print("\n");
        }
    }

    Plan plan_;
    Site site_;
    std::map<Id, Measured> results_;
};

const std::vector<Id> kAll{Id::Xfs,   Id::DataJournal, Id::Doublewrite1,  Id::Doublewrite128,
                           Id::Btrfs, Id::Exclusive,   Id::Strict,        Id::Plain,
                           Id::Bare,  Id::BareHalves,  Id::BareOverlapped};

Plan plan_for(std::string_view form) {
    const std::vector<uint64_t> sizes{4 * kKiB, 64 * kKiB, 256 * kKiB};
    // XFS wants 300 MiB, and much free space: its copies are scattered until it finds no room for
    // a whole one. The doublewrite area has 128 MiB.
    if (form == "--smoke")
        return {320 * kMiB, 16 * kMiB, 1, 0.03, 0.02, {1, 16}, {2}, {4 * kKiB, 256 * kKiB}, kAll};
    if (form == "--short")
        return {kGiB, 128 * kMiB, 2,
                0.8,  0,          {1, 16},
                {},   {},         {Id::Xfs, Id::DataJournal, Id::Exclusive, Id::Strict, Id::Plain}};
    if (form == "--long")
        return {4 * kGiB, 512 * kMiB, 9, 4, 2, {1, 16, 64}, {1, 16, 64}, sizes, kAll};
    return {4 * kGiB, 512 * kMiB, 3, 0.9, 0.3, {1, 16, 64}, {1, 16}, sizes, kAll};
}

int usage(const char* program) {
    fmt::print(stderr, "usage: {} [--smoke|--short|--long] [--svg FILE] [--only PART-OF-NAME]\n",
               program);
    return 2;
}

void contest(std::string_view form, const std::string& svg, const std::string& only) {
    if (const auto reason = why_no_mounts()) return print_skipped("peers", *reason);
    Plan plan = plan_for(form);
    std::erase_if(plan.peers,
                  [&](Id id) { return make(id)->name().find(only) == std::string::npos; });
    const test::TempDir directory;
    Contest contest(plan, directory.path());
    contest.run();
    contest.print_table();
    contest.print_verdicts();
    if (svg.empty()) return;
    std::ofstream file(svg);
    file << contest.plot().svg();
    must(file.flush().good(), svg);
}

}  // namespace
}  // namespace atomic4::bench

int main(int argc, char** argv) {
    using namespace atomic4::bench;
    std::string_view form;
    std::string svg;
    std::string only;
    for (int i = 1; i < argc; ++i) {
        const std::string_view word = argv[i];
        if (word == "--smoke" || word == "--short" || word == "--long") {
            form = word;
        } else if (word == "--svg" && i + 1 < argc) {
            svg = argv[++i];
        } else if (word == "--only" && i + 1 < argc) {
            only = argv[++i];
        } else {
            return usage(argv[0]);
        }
    }
    try {
        contest(form, svg, only);
    } catch (const std::exception& error) {
        std::fflush(stdout);
        fmt::print(stderr, "{}: {}\n", argv[0], error.what());
        return 1;
    }
    return 0;
}
