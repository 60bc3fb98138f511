#include "bench/writers.h"

#include <unistd.h>

#include <array>
#include <atomic>
#include <barrier>
#include <exception>
#include <fstream>
#include <mutex>
#include <thread>

namespace atomic4::bench {

double busy_seconds() {
    std::ifstream stat("/proc/stat");
    std::string cpu;
    uint64_t user = 0, nice = 0, system = 0, idle = 0, waiting = 0, irq = 0, softirq = 0;
    stat >> cpu >> user >> nice >> system >> idle >> waiting >> irq >> softirq;
    return static_cast<double>(user + nice + system + irq + softirq) /
           static_cast<double>(sysconf(_SC_CLK_TCK));
}

Figures run_writers(const Load& load, const MakeWriter& make_writer) {
    constexpr int kWarmUps = 3;
    std::barrier ready(static_cast<std::ptrdiff_t>(load.writers) + 1);
    std::barrier started(static_cast<std::ptrdiff_t>(load.writers) + 1);
    std::atomic<uint64_t> writes = 0;
    std::atomic<bool> failed = false;
    std::exception_ptr error;
    std::mutex error_mutex;
    double end = 0;  // set between the two barriers

    const auto work = [&](unsigned index) {
        WriteOnce write;
        const auto guarded = [&](const auto& step) {
            try {
                step();
            } catch (...) {
                const std::lock_guard lock(error_mutex);
                error = std::current_exception();
                failed = true;
            }
        };
        guarded([&] {
            write = make_writer(index);
            for (int i = 0; i < kWarmUps; ++i) write();
        });
        ready.arrive_and_wait();
        started.arrive_and_wait();
        guarded([&] {
            uint64_t mine = 0;
            while (!failed && seconds() < end) mine += write();
            writes += mine;
        });
    };
    std::vector<std::jthread> threads;
    for (unsigned index = 0; index < load.writers; ++index) threads.emplace_back(work, index);
    ready.arrive_and_wait();
    const double busy = busy_seconds();
    const double begin = seconds();
    end = begin + load.seconds;
    started.arrive_and_wait();
    threads.clear();  // joins
    const double elapsed = seconds() - begin;
    const double spent = busy_seconds() - busy;
    if (error) std::rethrow_exception(error);
    const auto count = static_cast<double>(writes);
    return {count / elapsed, count > 0 ? spent * 1e6 / count : 0, {}};
}

}  // namespace atomic4::bench
