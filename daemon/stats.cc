#include "daemon/stats.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <nlohmann/json.hpp>

#include "daemon/prometheus.h"

namespace atomic4 {

namespace {

constexpr std::array kKindNames = {"native", "logged", "plain"};

struct Quantile {
    const char* json;
    const char* label;
    double share;
};
constexpr std::array kQuantiles = {Quantile{"p50", "0.5", 0.5}, Quantile{"p99", "0.99", 0.99},
                                   Quantile{"p999", "0.999", 0.999}};

double seconds(LatencyHistogram::Time time) {
    return std::chrono::duration<double>(time).count();
}

nlohmann::ordered_json latency_json(const LatencyHistogram& latency) {
    const auto microseconds = [](LatencyHistogram::Time time) {
        return static_cast<double>(time.count()) / 1000;
    };
    nlohmann::ordered_json json;
    for (const Quantile& quantile : kQuantiles)
        json[quantile.json] = microseconds(latency.quantile(quantile.share));
    json["mean"] = microseconds(latency.mean());
    json["max"] = microseconds(latency.max());
    return json;
}

void latency_samples(PrometheusText& out, const LatencyHistogram& latency, const char* engine) {
    for (unsigned power = LatencyHistogram::kLowestPower; power < LatencyHistogram::kHighestPower;
         ++power) {
        const double limit = static_cast<double>(uint64_t{1} << power) / 1e9;
        out.sample(latency.count_up_to(power),
                   {{"engine", engine}, {"le", fmt::format("{}", limit)}}, "_bucket");
    }
    out.sample(latency.count(), {{"engine", engine}, {"le", "+Inf"}}, "_bucket");
    out.sample(seconds(latency.sum()), {{"engine", engine}}, "_sum");
    out.sample(latency.count(), {{"engine", engine}}, "_count");
}

std::string error_name(size_t code) {
    const char* name = code == 0 ? nullptr : ::strerrorname_np(static_cast<int>(code));
    return name != nullptr ? name : "other";
}

}  // namespace

void Stats::write(WriteKind kind, Bytes length, Time latency) {
    Writes& writes = writes_[static_cast<size_t>(kind)];
    writes.bytes += length.value();
    writes.latency.record(latency);
}

void Stats::batch(uint64_t ranges) {
    ++batches_;
    batch_ranges_ += ranges;
}

void Stats::read(Bytes length, Time latency) {
    reads_.bytes += length.value();
    reads_.latency.record(latency);
}

void Stats::group(uint64_t requests, Bytes record) {
    ++groups_;
    group_requests_ += requests;
    group_bytes_ += record.value();
    const auto power = static_cast<size_t>(std::bit_width(std::max<uint64_t>(requests, 1) - 1));
    ++group_sizes_[std::min(power, kGroupSizes - 1)];
}

void Stats::error(int code) {
    const bool apart =
        code > 0 && static_cast<size_t>(code) < kErrors && ::strerrorname_np(code) != nullptr;
    ++errors_[apart ? static_cast<size_t>(code) : 0];
}

LatencyHistogram Stats::all_writes() const {
    LatencyHistogram all;
    for (const Writes& writes : writes_) all.add(writes.latency);
    return all;
}

nlohmann::ordered_json Stats::to_json(const Snapshot& now) const {
    nlohmann::ordered_json json = {
        {"target", now.target},
        {"uuid", now.uuid},
        {"engine", now.engine},
        {"poisoned", now.poisoned},
        {"frozen", now.frozen},
        {"clients", now.clients},
        {"open_handles", now.open_handles},
        {"request_memory", now.request_memory.value()},
        {"files", {{"strict", now.files_strict}, {"exclusive", now.files_exclusive}}},
    };
    auto& writes = json["writes"];
    for (size_t kind = 0; kind < kKinds; ++kind) {
        writes[kKindNames[kind]] = {{"count", writes_[kind].latency.count()},
                                    {"bytes", writes_[kind].bytes},
                                    {"latency_us", latency_json(writes_[kind].latency)}};
    }
    const LatencyHistogram all = all_writes();
    uint64_t bytes = 0;
    for (const Writes& kind : writes_) bytes += kind.bytes;
    writes["all"] = {{"count", all.count()}, {"bytes", bytes}, {"latency_us", latency_json(all)}};
    json["acks"] = {{"strict", strict_}, {"exclusive", exclusive_}};
    json["batches"] = {{"count", batches_}, {"ranges", batch_ranges_}};
    json["reads"] = {{"count", reads_.latency.count()},
                     {"bytes", reads_.bytes},
                     {"latency_us", latency_json(reads_.latency)}};
    // How many groups had more than half as many requests, up to so many.
    auto sizes = nlohmann::ordered_json::object();
    for (size_t power = 0; power < kGroupSizes; ++power) {
        if (group_sizes_[power] > 0)
            sizes[fmt::format("{}", uint64_t{1} << power)] = group_sizes_[power];
    }
    json["groups"] = {{"count", groups_},
                      {"requests", group_requests_},
                      {"log_bytes", group_bytes_},
                      {"sizes", std::move(sizes)}};
    json["log"] = {{"used", now.log_used.value()},
                   {"capacity", now.log_capacity.value()},
                   {"live_records", now.live_records},
                   {"late_writes", now.late},
                   {"retired_records", retired_}};
    json["flushes"] = {{"count", flushes_.count()}, {"latency_us", latency_json(flushes_)}};
    json["rwf_atomic_submissions"] = rwf_atomic_;
    json["refused"] = refused_;
    auto& errors = json["errors"] = nlohmann::ordered_json::object();
    for (size_t code = 0; code < kErrors; ++code) {
        if (errors_[code] > 0) errors[error_name(code)] = errors_[code];
    }
    return json;
}

std::string Stats::to_prometheus(const Snapshot& now) const {
    PrometheusText out;
    const auto single = [&](const char* name, const char* type, const char* help, uint64_t value) {
        out.family(name, type, help);
        out.sample(value);
    };
    out.family("atomic4_info", "gauge", "The volume that this daemon serves; always 1.");
    out.sample(uint64_t{1}, {{"target", now.target},
                             {"uuid", now.uuid},
                             {"engine", now.engine},
                             {"version", ATOMIC4_VERSION}});

    out.family("atomic4_writes_total", "counter", "Acknowledged writes.");
    for (size_t kind = 0; kind < kKinds; ++kind)
        out.sample(writes_[kind].latency.count(), {{"engine", kKindNames[kind]}});
    out.family("atomic4_written_bytes_total", "counter", "Bytes of acknowledged writes.");
    for (size_t kind = 0; kind < kKinds; ++kind)
        out.sample(writes_[kind].bytes, {{"engine", kKindNames[kind]}});
    out.family("atomic4_write_latency_seconds", "histogram",
               "Time from a write's arrival to its acknowledgement.");
    for (size_t kind = 0; kind < kKinds; ++kind)
        latency_samples(out, writes_[kind].latency, kKindNames[kind]);
    const LatencyHistogram all = all_writes();
    out.family("atomic4_write_latency_quantile_seconds", "gauge",
               "Quantiles of the time of all writes since the start.");
    for (const Quantile& quantile : kQuantiles)
        out.sample(seconds(all.quantile(quantile.share)), {{"quantile", quantile.label}});
    out.family("atomic4_acks_total", "counter",
               "Acknowledged atomic writes by the mode of acknowledgement.");
    out.sample(strict_, {{"mode", "strict"}});
    out.sample(exclusive_, {{"mode", "exclusive"}});
    single("atomic4_batches_total", "counter", "Batches among the logged writes.", batches_);
    single("atomic4_batch_ranges_total", "counter", "Ranges of these batches.", batch_ranges_);
    single("atomic4_reads_total", "counter", "Reads.", reads_.latency.count());
    single("atomic4_read_bytes_total", "counter", "Bytes read.", reads_.bytes);
    single("atomic4_rwf_atomic_submissions_total", "counter",
           "Writes submitted to the kernel with RWF_ATOMIC.", rwf_atomic_);

    out.family("atomic4_group_requests", "histogram",
               "Requests that one write of the log made durable.");
    uint64_t groups = 0;
    for (size_t power = 0; power + 1 < kGroupSizes; ++power) {
        groups += group_sizes_[power];
        out.sample(groups, {{"le", fmt::format("{}", uint64_t{1} << power)}}, "_bucket");
    }
    out.sample(groups_, {{"le", "+Inf"}}, "_bucket");
    out.sample(group_requests_, {}, "_sum");
    out.sample(groups_, {}, "_count");
    single("atomic4_log_written_bytes_total", "counter", "Bytes of records written to the log.",
           group_bytes_);
    single("atomic4_log_used_bytes", "gauge", "Bytes of the log that are not free.",
           now.log_used.value());
    single("atomic4_log_capacity_bytes", "gauge", "Bytes of the log for records.",
           now.log_capacity.value());
    single("atomic4_log_live_records", "gauge", "Records that a replay would apply.",
           now.live_records);
    single("atomic4_log_retired_records_total", "counter", "Records retired.", retired_);
    single("atomic4_flushes_total", "counter", "Flushes of the device and of files.",
           flushes_.count());
    out.family("atomic4_flush_seconds_total", "counter", "Time that these flushes took.");
    out.sample(seconds(flushes_.sum()));

    out.family("atomic4_errors_total", "counter", "Requests answered with an error.");
    for (size_t code = 0; code < kErrors; ++code) {
        if (errors_[code] > 0) out.sample(errors_[code], {{"errno", error_name(code)}});
    }
    single("atomic4_refused_total", "counter", "Files that a client had no right to open.",
           refused_);
    single("atomic4_clients", "gauge", "Connected clients.", now.clients);
    single("atomic4_open_handles", "gauge", "Open handles.", now.open_handles);
    single("atomic4_request_memory_bytes", "gauge",
           "Memory taken by requests whose answers are not sent yet.", now.request_memory.value());
    out.family("atomic4_files", "gauge", "Open files by how their writes are acknowledged.");
    out.sample(now.files_strict, {{"mode", "strict"}});
    out.sample(now.files_exclusive, {{"mode", "exclusive"}});
    single("atomic4_late_writes", "gauge",
           "Logged writes that wait for a file which another process keeps locked.", now.late);
    single("atomic4_poisoned", "gauge",
           "1 if a write of the log or a flush failed: writes are refused until a restart.",
           now.poisoned ? 1 : 0);
    single("atomic4_frozen", "gauge", "1 while the volume is frozen by atomic4ctl freeze.",
           now.frozen ? 1 : 0);
    return out.text();
}

}  // namespace atomic4
