// The C interface over Client: no exception, no C++ type crosses it.
#include <cstring>
#include <exception>
#include <map>
#include <type_traits>

#include "client/atomic4_client.h"
#include "client/client.h"

using atomic4::BatchPart;
using atomic4::ByteOffset;
using atomic4::Bytes;
using atomic4::Client;
using atomic4::Completion;
using atomic4::FileStatus;
using atomic4::Result;
namespace wire = atomic4::wire;

static_assert(A4_OPEN_READ == wire::kOpenRead && A4_OPEN_WRITE == wire::kOpenWrite);
static_assert(A4_OPEN_ATOMIC == wire::kOpenAtomic);
static_assert(A4_OPEN_COOPERATIVE == wire::kOpenCooperative);
static_assert(A4_ENGINE_LOGGED == static_cast<int>(wire::WireEngine::Logged));
static_assert(A4_ACK_STRICT == static_cast<int>(wire::AckMode::Strict));
static_assert(A4_STATS_PROMETHEUS == static_cast<int>(wire::StatsFormat::Prometheus));

struct a4_client {
    std::unique_ptr<Client> client;
    std::string reason;
    std::map<uint64_t, struct a4_statx*> statx;  // where submitted ones go
    std::vector<Completion> completions;         // whose reasons a4_reap gave out
};

namespace {

thread_local std::string connect_reason;

// Runs a call, and keeps the reason of its error. The client throws nothing itself; memory may run
// out.
template <class Call>
auto guarded(std::string& reason, const Call& call) noexcept ->
    typename std::invoke_result_t<Call>::value_type {
    try {
        auto result = call();
        if (result) return *result;
        const int code = result.error().code;
        reason = std::move(result).error().message;
        return -code;
    } catch (const std::exception&) {
        reason = "out of memory";  // short enough to need none
        return -ENOMEM;
    }
}

Result<int> done(Result<> result) {
    A4_CHECK(std::move(result));
    return 0;
}

Result<int64_t> signed_tag(Result<uint64_t> tag) {
    return static_cast<int64_t>(A4_TRY(std::move(tag)));
}

std::span<const std::byte> bytes_at(const void* data, size_t length) {
    return {static_cast<const std::byte*>(data), length};
}

std::vector<BatchPart> parts_of(const a4_range* ranges, size_t count) {
    std::vector<BatchPart> parts;
    parts.reserve(count);
    for (const a4_range& range : std::span(ranges, count))
        parts.push_back(
            {range.handle, ByteOffset(range.offset), bytes_at(range.data, range.length)});
    return parts;
}

void copy_text(const std::string& from, char* to, size_t size) {
    if (size == 0) return;
    const size_t length = std::min(from.size(), size - 1);
    std::memcpy(to, from.data(), length);
    to[length] = '\0';
}

void fill(const FileStatus& status, struct a4_statx& statx) {
    statx.size = status.size.value();
    statx.inode = status.inode;
    statx.generation = status.generation;
    statx.unit = status.unit.value();
    statx.unit_min = status.unit_min.value();
    statx.unit_max = status.unit_max.value();
    statx.unit_max_native = status.unit_max_native.value();
    statx.unit_max_logged = status.unit_max_logged.value();
    statx.segments_max = status.segments_max;
    statx.engine = static_cast<uint32_t>(status.engine);
    statx.ack_mode = static_cast<uint32_t>(status.ack_mode);
    statx.atomic = status.atomic ? 1 : 0;
    statx.writes_native = status.writes_native;
    statx.writes_logged = status.writes_logged;
    copy_text(status.why_not_native, statx.why_not_native, sizeof statx.why_not_native);
    copy_text(status.why_strict, statx.why_strict, sizeof statx.why_strict);
}

Result<int> fill_file(Result<atomic4::File> opened, a4_file* file) {
    const atomic4::File value = A4_TRY(std::move(opened));
    *file = {value.handle, value.inode, value.generation};
    return 0;
}

}  // namespace

int a4_connect(const char* socket_path, const a4_options* options, a4_client** client) {
    *client = nullptr;
    return guarded(connect_reason, [&]() -> Result<int> {
        atomic4::ClientOptions chosen;
        if (options != nullptr) {
            if (options->reserved != 0)
                return atomic4::fail(EINVAL, "a4_options: reserved is not 0");
            chosen.arena = Bytes(options->arena_size);
            chosen.spin_us = std::chrono::microseconds(options->spin_us);
        }
        auto made = std::make_unique<a4_client>();
        made->client = A4_TRY(Client::connect(socket_path, chosen));
        *client = made.release();
        return 0;
    });
}

void a4_disconnect(a4_client* client) {
    delete client;
}

const char* a4_reason(const a4_client* client) {
    return client != nullptr ? client->reason.c_str() : connect_reason.c_str();
}

const char* a4_strerror(int error) {
    const char* text = strerrordesc_np(error < 0 ? -error : error);
    return text != nullptr ? text : "Unknown error";
}

int a4_open_fd(a4_client* client, int fd, uint32_t flags, a4_engine engine, a4_file* file) {
    return guarded(client->reason, [&] {
        return fill_file(client->client->open(fd, flags, static_cast<wire::WireEngine>(engine)),
                         file);
    });
}

int a4_open_path(a4_client* client, const char* path, uint32_t flags, a4_engine engine,
                 a4_file* file) {
    return guarded(client->reason, [&] {
        return fill_file(client->client->open(std::string_view(path), flags,
                                              static_cast<wire::WireEngine>(engine)),
                         file);
    });
}

int a4_close(a4_client* client, uint64_t handle) {
    return guarded(client->reason, [&] { return done(client->client->close(handle)); });
}

ssize_t a4_pwrite(a4_client* client, uint64_t handle, const void* data, size_t length,
                  uint64_t offset) {
    return guarded(client->reason, [&]() -> Result<ssize_t> {
        A4_TRY(client->client->write(handle, ByteOffset(offset), bytes_at(data, length)));
        return static_cast<ssize_t>(length);
    });
}

ssize_t a4_pwrite_plain(a4_client* client, uint64_t handle, const void* data, size_t length,
                        uint64_t offset) {
    return guarded(client->reason, [&]() -> Result<ssize_t> {
        A4_CHECK(client->client->write_plain(handle, ByteOffset(offset), bytes_at(data, length)));
        return static_cast<ssize_t>(length);
    });
}

ssize_t a4_batch(a4_client* client, const a4_range* ranges, size_t count) {
    return guarded(client->reason, [&]() -> Result<ssize_t> {
        const auto parts = parts_of(ranges, count);
        A4_TRY(client->client->write_batch(parts));
        size_t total = 0;
        for (const BatchPart& part : parts) total += part.data.size();
        return static_cast<ssize_t>(total);
    });
}

ssize_t a4_pread(a4_client* client, uint64_t handle, void* data, size_t length, uint64_t offset) {
    return guarded(client->reason, [&]() -> Result<ssize_t> {
        const Bytes count = A4_TRY(client->client->read(handle, ByteOffset(offset),
                                                        {static_cast<std::byte*>(data), length}));
        return static_cast<ssize_t>(count.value());
    });
}

int a4_statx(a4_client* client, uint64_t handle, struct a4_statx* statx) {
    return guarded(client->reason, [&]() -> Result<int> {
        fill(A4_TRY(client->client->statx(handle)), *statx);
        return 0;
    });
}

int a4_flush(a4_client* client, uint64_t handle) {
    return guarded(client->reason, [&] { return done(client->client->flush(handle)); });
}

int a4_ping(a4_client* client) {
    return guarded(client->reason, [&] { return done(client->client->ping()); });
}

ssize_t a4_stats(a4_client* client, a4_stats_format format, char* text, size_t size) {
    return guarded(client->reason, [&]() -> Result<ssize_t> {
        const std::string stats =
            A4_TRY(client->client->stats(static_cast<wire::StatsFormat>(format)));
        copy_text(stats, text, size);
        return static_cast<ssize_t>(stats.size());
    });
}

int a4_freeze(a4_client* client) {
    return guarded(client->reason, [&] { return done(client->client->freeze()); });
}

int a4_thaw(a4_client* client) {
    return guarded(client->reason, [&] { return done(client->client->thaw()); });
}

int64_t a4_submit_pwrite(a4_client* client, uint64_t handle, const void* data, size_t length,
                         uint64_t offset) {
    return guarded(client->reason, [&] {
        return signed_tag(
            client->client->submit_write(handle, ByteOffset(offset), bytes_at(data, length)));
    });
}

int64_t a4_submit_pwrite_plain(a4_client* client, uint64_t handle, const void* data, size_t length,
                               uint64_t offset) {
    return guarded(client->reason, [&] {
        return signed_tag(
            client->client->submit_write_plain(handle, ByteOffset(offset), bytes_at(data, length)));
    });
}

int64_t a4_submit_batch(a4_client* client, const a4_range* ranges, size_t count) {
    return guarded(client->reason, [&] {
        return signed_tag(client->client->submit_batch(parts_of(ranges, count)));
    });
}

int64_t a4_submit_pread(a4_client* client, uint64_t handle, void* data, size_t length,
                        uint64_t offset) {
    return guarded(client->reason, [&] {
        return signed_tag(client->client->submit_read(handle, ByteOffset(offset),
                                                      {static_cast<std::byte*>(data), length}));
    });
}

int64_t a4_submit_statx(a4_client* client, uint64_t handle, struct a4_statx* statx) {
    return guarded(client->reason, [&]() -> Result<int64_t> {
        const uint64_t tag = A4_TRY(client->client->submit_statx(handle));
        client->statx.emplace(tag, statx);
        return static_cast<int64_t>(tag);
    });
}

int64_t a4_submit_flush(a4_client* client, uint64_t handle) {
    return guarded(client->reason,
                   [&] { return signed_tag(client->client->submit_flush(handle)); });
}

ssize_t a4_reap(a4_client* client, a4_completion* completions, size_t max, int timeout_ms) {
    return guarded(client->reason, [&]() -> Result<ssize_t> {
        client->completions = client->client->reap(max, std::chrono::milliseconds(timeout_ms));
        a4_completion* next = completions;
        for (const Completion& completion : client->completions) {
            a4_completion& out = *next++;
            out = {};
            out.tag = static_cast<int64_t>(completion.tag);
            out.error = -completion.code;
            out.engine = static_cast<uint32_t>(completion.written.engine);
            out.ack_mode = static_cast<uint32_t>(completion.written.ack_mode);
            out.length = completion.length.value();
            out.reason = completion.reason.c_str();
            const auto statx = client->statx.find(completion.tag);
            if (statx == client->statx.end()) continue;
            if (completion.status) fill(*completion.status, *statx->second);
            client->statx.erase(statx);
        }
        return next - completions;
    });
}

int a4_fd(const a4_client* client) {
    return client->client->fd();
}

void* a4_arena_alloc(a4_client* client, size_t length) {
    try {
        auto memory = client->client->arena_alloc(Bytes(length));
        if (memory) return memory->data();
        client->reason = std::move(memory).error().message;
    } catch (const std::exception&) {
        client->reason = "out of memory";
    }
    return nullptr;
}

void a4_arena_free(a4_client* client, void* memory) {
    if (memory != nullptr) client->client->arena_free(bytes_at(memory, 1));
}
