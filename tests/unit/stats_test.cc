#include "daemon/stats.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <random>
#include <regex>
#include <sstream>

#include "client/wire_format.h"
#include "daemon/prometheus.h"
#include "support/command.h"

namespace atomic4::test {
namespace {

using std::chrono::microseconds;
using std::chrono::nanoseconds;
using testing::HasSubstr;

nanoseconds exact_quantile(const std::vector<int64_t>& sorted, double share) {
    const auto rank = static_cast<size_t>(std::ceil(share * static_cast<double>(sorted.size())));
    return nanoseconds(sorted[std::max<size_t>(rank, 1) - 1]);
}

TEST(LatencyHistogram, QuantilesOfSortedSamples) {
    std::mt19937_64 random(7);
    std::lognormal_distribution<double> disk(std::log(150e3), 1.5);  // ns
    std::uniform_int_distribution<int64_t> flat(0, 3000);
    std::uniform_real_distribution<double> power(3, 11);
    const std::vector<std::pair<const char*, std::function<int64_t()>>> shapes = {
        {"disk", [&] { return static_cast<int64_t>(disk(random)); }},
        {"short", [&] { return flat(random); }},
        {"1 us to 100 s", [&] { return static_cast<int64_t>(std::pow(10, power(random))); }},
        {"two peaks", [&] { return random() % 100 == 0 ? int64_t{30'000'000} : int64_t{9'000}; }},
    };
    for (const auto& [name, next] : shapes) {
        for (const int n : {1, 2, 10, 1000, 200'000}) {
            LatencyHistogram histogram;
            std::vector<int64_t> samples;
            int64_t sum = 0;
            for (int i = 0; i < n; ++i) {
                samples.push_back(next());
                sum += samples.back();
                histogram.record(nanoseconds(samples.back()));
            }
            std::sort(samples.begin(), samples.end());
            for (const double share : {0.0, 0.5, 0.9, 0.99, 0.999, 1.0}) {
                const auto exact = exact_quantile(samples, share).count();
                const auto got = histogram.quantile(share).count();
                // Never less, and at most a bucket more.
                EXPECT_GE(got, exact) << name << " " << n << " " << share;
                EXPECT_LE(got, exact + std::max<int64_t>(32, exact / 32))
                    << name << " " << n << " " << share;
            }
            EXPECT_EQ(histogram.count(), static_cast<uint64_t>(n));
            EXPECT_EQ(histogram.sum().count(), sum);
            EXPECT_EQ(histogram.mean().count(), sum / n);
            EXPECT_EQ(histogram.min().count(), samples.front());
            EXPECT_EQ(histogram.max().count(), samples.back());
            for (unsigned p = LatencyHistogram::kLowestPower; p < LatencyHistogram::kHighestPower;
                 ++p) {
                const auto exact =
                    std::upper_bound(samples.begin(), samples.end(), int64_t{1} << p) -
                    samples.begin();
                EXPECT_EQ(histogram.count_up_to(p), static_cast<uint64_t>(exact)) << name << p;
            }
        }
    }
}

TEST(LatencyHistogram, Limits) {
    LatencyHistogram histogram;
    EXPECT_EQ(histogram.quantile(0.5).count(), 0);
    EXPECT_EQ(histogram.mean().count(), 0);
    EXPECT_EQ(histogram.min().count(), 0);
    histogram.record(nanoseconds(-5));
    EXPECT_EQ(histogram.quantile(0.5).count(), 0);
    histogram.record(std::chrono::hours(2));
    EXPECT_EQ(histogram.max(), std::chrono::hours(2));
    EXPECT_EQ(histogram.count_up_to(LatencyHistogram::kHighestPower), 2u);
    EXPECT_EQ(histogram.count_up_to(LatencyHistogram::kHighestPower - 1), 1u);

    LatencyHistogram sum;
    sum.add(LatencyHistogram());
    EXPECT_EQ(sum.min().count(), 0);
    LatencyHistogram one;
    one.record(nanoseconds(700));
    sum.add(one);
    EXPECT_EQ(sum.min().count(), 700);
    sum.add(histogram);
    EXPECT_EQ(sum.count(), 3u);
    EXPECT_EQ(sum.min().count(), 0);
    EXPECT_EQ(sum.max(), std::chrono::hours(2));
}

// Everything counted at least once.
Stats busy() {
    Stats stats;
    for (int i = 0; i < 3; ++i) stats.write(WriteKind::Logged, Bytes(16384), microseconds(100));
    stats.write(WriteKind::Native, Bytes(4096), microseconds(20));
    stats.write(WriteKind::Plain, Bytes(512), microseconds(10));
    stats.batch(5);
    stats.read(Bytes(100), microseconds(3));
    for (const uint64_t size : {0, 1, 2, 3, 4, 5, 8, 9, 65536, 65537, 1 << 30})
        stats.group(size, Bytes(4096));
    stats.ack_strict();
    stats.ack_exclusive();
    stats.ack_exclusive();
    stats.retired(4);
    stats.flush(microseconds(400));
    for (const int code : {EIO, EINVAL, EINVAL, 0, -1, 140, 5000, 41}) stats.error(code);
    stats.refused();
    stats.rwf_atomic(6);
    return stats;
}

Snapshot snapshot() {
    Snapshot now;
    now.target = "/mnt/a \"b\"\\c\nd";
    now.uuid = "0ee4";
    now.engine = "auto";
    now.clients = 2;
    now.open_handles = 3;
    now.files_strict = 1;
    now.files_exclusive = 2;
    now.log_used = Bytes(8192);
    now.log_capacity = Bytes(1 << 20);
    now.live_records = 7;
    now.late = 5;
    return now;
}

TEST(Stats, Json) {
    // As json, for which the order of members is no difference.
    const nlohmann::json json = busy().to_json(snapshot());
    EXPECT_EQ(json["target"], snapshot().target);
    EXPECT_EQ(json["poisoned"], false);
    EXPECT_EQ(json["writes"]["logged"]["count"], 3);
    EXPECT_EQ(json["writes"]["logged"]["bytes"], 49152);
    EXPECT_EQ(json["writes"]["logged"]["latency_us"]["p50"], 100.0);
    EXPECT_EQ(json["writes"]["native"]["latency_us"]["p999"], 20.0);
    EXPECT_EQ(json["writes"]["all"]["count"], 5);
    EXPECT_EQ(json["writes"]["all"]["bytes"], 49152 + 4096 + 512);
    EXPECT_EQ(json["writes"]["all"]["latency_us"]["max"], 100.0);
    EXPECT_EQ(json["writes"]["all"]["latency_us"]["mean"], 66.0);
    EXPECT_EQ(json["acks"], nlohmann::json({{"strict", 1}, {"exclusive", 2}}));
    EXPECT_EQ(json["batches"], nlohmann::json({{"count", 1}, {"ranges", 5}}));
    EXPECT_EQ(json["reads"]["bytes"], 100);
    EXPECT_EQ(json["groups"]["count"], 11);
    EXPECT_EQ(json["groups"]["sizes"],
              nlohmann::json({{"1", 2}, {"2", 1}, {"4", 2}, {"8", 2}, {"16", 1}, {"65536", 3}}));
    EXPECT_EQ(json["log"], nlohmann::json({{"used", 8192},
                                           {"capacity", 1 << 20},
                                           {"live_records", 7},
                                           {"late_writes", 5},
                                           {"retired_records", 4}}));
    EXPECT_EQ(json["errors"], nlohmann::json({{"EIO", 1}, {"EINVAL", 2}, {"other", 5}}));
    EXPECT_EQ(json["flushes"]["count"], 1);
    EXPECT_EQ(json["refused"], 1);
    EXPECT_EQ(json["rwf_atomic_submissions"], 6);
    EXPECT_EQ(json["files"], nlohmann::json({{"strict", 1}, {"exclusive", 2}}));
    EXPECT_EQ(Stats().to_json({})["errors"], nlohmann::json::object());
}

// A reader of the text format that accepts nothing else: what the format's description asks for.
struct Metrics {
    std::map<std::string, std::string> types;
    std::map<std::string, double> samples;  // by name and labels
    std::string error;
};
// The line with every label value left out; nothing if one is not escaped as it must be. By hand:
// std::regex recurses for each character.
std::optional<std::string> without_label_values(const std::string& line) {
    std::string rest;
    bool inside = false;
    for (size_t at = 0; at < line.size(); ++at) {
        if (line[at] == '"') inside = !inside;
        if (!inside || line[at] == '"') {
            rest += line[at];
        } else if (line[at] == '\\') {
            if (++at == line.size() || !strchr("\"\\n", line[at])) return std::nullopt;
        }
    }
    if (inside) return std::nullopt;
    return rest;
}
Metrics parse(const std::string& text) {
    static const std::regex help("# HELP ([a-zA-Z_:][a-zA-Z0-9_:]*) (.+)");
    static const std::regex type("# TYPE ([a-zA-Z_:][a-zA-Z0-9_:]*) (counter|gauge|histogram)");
    static const std::string label = R"re([a-zA-Z_][a-zA-Z0-9_]*="")re";
    static const std::regex sample("([a-zA-Z_:][a-zA-Z0-9_:]*)((\\{" + label + "(," + label +
                                   ")*\\})?) ([-+0-9.e]+|NaN|[+-]Inf)");
    Metrics metrics;
    if (!text.ends_with('\n')) metrics.error = "no newline at the end";
    std::istringstream lines(text);
    std::string line;
    std::string family;
    std::string helped;
    while (std::getline(lines, line) && metrics.error.empty()) {
        std::smatch match;
        if (std::regex_match(line, match, help)) {
            helped = match[1];
            if (metrics.types.contains(helped)) metrics.error = "a family twice: " + line;
        } else if (std::regex_match(line, match, type)) {
            family = match[1];
            if (family != helped) metrics.error = "TYPE without HELP: " + line;
            metrics.types[family] = match[2];
        } else if (const auto bare = without_label_values(line);
                   bare && std::regex_match(*bare, match, sample)) {
            const std::string name = match[1];
            const std::string labels = line.substr(name.size(), line.rfind(' ') - name.size());
            const bool part = metrics.types[family] == "histogram" &&
                              (name == family + "_bucket" || name == family + "_sum" ||
                               name == family + "_count");
            if (!part && (name != family || metrics.types[family] == "histogram"))
                metrics.error = "a sample of no family: " + line;
            if (!name.starts_with("atomic4_")) metrics.error = "a foreign name: " + line;
            if ((metrics.types[family] == "counter") != name.ends_with("_total"))
                metrics.error = "_total is for counters: " + line;
            const std::string value = match[match.size() - 1];
            if (!metrics.samples.emplace(name + labels, std::stod(value)).second)
                metrics.error = "a sample twice: " + line;
        } else {
            metrics.error = "not understood: " + line;
        }
    }
    return metrics;
}

TEST(Stats, Prometheus) {
    const std::string text = busy().to_prometheus(snapshot());
    const Metrics metrics = parse(text);
    ASSERT_EQ(metrics.error, "") << text;
    const auto value = [&](const std::string& name) {
        const auto found = metrics.samples.find(name);
        return found == metrics.samples.end() ? std::nan("") : found->second;
    };
    EXPECT_EQ(value("atomic4_writes_total{engine=\"logged\"}"), 3);
    EXPECT_EQ(value("atomic4_written_bytes_total{engine=\"native\"}"), 4096);
    EXPECT_EQ(value("atomic4_write_latency_seconds_bucket{engine=\"logged\",le=\"6.5536e-05\"}"),
              0);
    EXPECT_EQ(value("atomic4_write_latency_seconds_bucket{engine=\"logged\",le=\"0.000131072\"}"),
              3);
    EXPECT_EQ(value("atomic4_write_latency_seconds_bucket{engine=\"logged\",le=\"+Inf\"}"), 3);
    EXPECT_EQ(value("atomic4_write_latency_seconds_count{engine=\"logged\"}"), 3);
    EXPECT_DOUBLE_EQ(value("atomic4_write_latency_seconds_sum{engine=\"logged\"}"), 300e-6);
    EXPECT_EQ(value("atomic4_write_latency_quantile_seconds{quantile=\"0.99\"}"), 100e-6);
    EXPECT_EQ(value("atomic4_group_requests_bucket{le=\"4\"}"), 5);
    EXPECT_EQ(value("atomic4_group_requests_bucket{le=\"32768\"}"), 8);
    EXPECT_EQ(value("atomic4_group_requests_bucket{le=\"+Inf\"}"), 11);
    EXPECT_EQ(value("atomic4_errors_total{errno=\"EINVAL\"}"), 2);
    EXPECT_EQ(value("atomic4_errors_total{errno=\"other\"}"), 5);
    EXPECT_EQ(value("atomic4_files{mode=\"exclusive\"}"), 2);
    EXPECT_EQ(value("atomic4_log_used_bytes"), 8192);
    EXPECT_EQ(value("atomic4_poisoned"), 0);
    EXPECT_THAT(text, HasSubstr("{target=\"/mnt/a \\\"b\\\"\\\\c\\nd\",uuid=\"0ee4\""));
    EXPECT_EQ(parse(Stats().to_prometheus({})).error, "");
}

// Buckets never decrease, end with the count, and the text fits into a STATS reply whatever is
// counted.
TEST(Stats, PrometheusAtItsLargest) {
    Stats stats;
    std::mt19937_64 random(3);
    for (int i = 0; i < 10'000; ++i) {
        const auto kind = static_cast<WriteKind>(random() % 3);
        stats.write(kind, Bytes(uint64_t{1} << 45),
                    nanoseconds(static_cast<int64_t>(random() >> (27 + random() % 37))));
    }
    for (int code = 0; code < 200; ++code) stats.error(code);
    Snapshot now = snapshot();
    now.target = std::string(4095, '"');
    now.poisoned = now.frozen = true;
    const std::string text = stats.to_prometheus(now);
    EXPECT_LE(text.size(), wire::kTextMax);
    EXPECT_LE(stats.to_json(now).dump(2).size(), wire::kTextMax);
    EXPECT_EQ(parse(text).error, "");
    std::istringstream lines(text);
    double last = 0;
    std::string engine;
    for (std::string line; std::getline(lines, line);) {
        static const std::string bucket = "atomic4_write_latency_seconds_bucket{engine=";
        if (!line.starts_with(bucket)) continue;
        const std::string of = line.substr(bucket.size(), 8);
        const double value = std::stod(line.substr(line.rfind(' ')));
        EXPECT_GE(value, of == engine ? last : 0) << line;
        engine = of;
        last = value;
    }
    EXPECT_FALSE(engine.empty());
}

TEST(WriteTextFile, ReplacesAsAWhole) {
    const TempDir dir;
    const std::string path = dir.file("atomic4.prom");
    const auto contents = [](const std::string& name) {
        std::ifstream file(name);
        return std::string(std::istreambuf_iterator<char>(file), {});
    };
    ASSERT_TRUE(write_text_file(path, "one\n"));
    std::ifstream reader(path);  // of the old one, to its end
    // What a killed daemon, or an enemy, left.
    std::ofstream(dir.file("victim")) << "victim";
    std::filesystem::create_symlink("victim", path + ".new");
    ASSERT_TRUE(write_text_file(path, "two\n"));
    EXPECT_EQ(std::string(std::istreambuf_iterator<char>(reader), {}), "one\n");
    EXPECT_EQ(contents(path), "two\n");
    EXPECT_EQ(contents(dir.file("victim")), "victim");
    EXPECT_FALSE(std::filesystem::exists(path + ".new"));
    ASSERT_TRUE(write_text_file(path, ""));
    EXPECT_EQ(contents(path), "");

    const auto failed = write_text_file(dir.file("nowhere/x"), "text");
    ASSERT_FALSE(failed);
    EXPECT_EQ(failed.error().code, ENOENT);
    EXPECT_THAT(failed.error().message, HasSubstr("nowhere/x"));
    std::filesystem::create_directory(dir.file("directory"));
    EXPECT_EQ(write_text_file(dir.file("directory"), "text").error().code, EISDIR);
    EXPECT_FALSE(std::filesystem::exists(dir.file("directory.new")));
}

}  // namespace
}  // namespace atomic4::test
