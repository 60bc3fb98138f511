// Text in Prometheus's exposition format, version 0.0.4: families of metrics, each with its HELP
// and TYPE lines before its samples.
// Threads: one for each object.
#pragma once

#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>

#include "base/result.h"

namespace atomic4 {

class PrometheusText {
  public:
    using Labels = std::initializer_list<std::pair<std::string_view, std::string_view>>;

    // Begins a family. name: the whole name of the metric; a counter's ends in _total.
    void family(std::string_view name, std::string_view type, std::string_view help);
    // A sample of it. suffix: "_bucket", "_sum", "_count" of a histogram.
    void sample(double value, Labels labels = {}, std::string_view suffix = "");
    void sample(uint64_t value, Labels labels = {}, std::string_view suffix = "");

    const std::string& text() const { return text_; }

  private:
    void add(std::string_view value, Labels labels, std::string_view suffix);
    std::string name_;
    std::string text_;
};

// Replaces a file by a new one with this text, so that a reader sees the old text or the new one:
// path + ".new" is written and renamed. Not durable, and it may wait for a disk. EACCES, ENOSPC, …
// with the path.
Result<> write_text_file(const std::string& path, std::string_view text);

}  // namespace atomic4
