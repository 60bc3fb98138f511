// Drives a Target from a test: submits, turns the loop until the answer is there.
#pragma once

#include <gtest/gtest.h>

#include <optional>

#include "support/bytes.h"
#include "writer/target.h"

namespace atomic4::test {

class TargetDriver {
  public:
    TargetDriver(EventLoop& loop, Target& target) : loop_(loop), target_(target) {}

    void run_until(const std::function<bool()>& condition) {
        while (!condition()) {
            const auto turned = loop_.run_once();
            if (!turned) throw std::runtime_error(turned.error().message);
        }
    }
    // What `begin` hands to its callback.
    template <class T>
    Result<T> wait(const std::function<void(std::function<void(Result<T>)>)>& begin) {
        auto result = std::make_shared<std::optional<Result<T>>>();
        begin([result](Result<T> done) { *result = std::move(done); });
        run_until([&] { return result->has_value(); });
        return std::move(**result);
    }

    std::shared_ptr<std::optional<Result<WriteDone>>> submit(WriteOp::Kind kind,
                                                             const FileRef& file, uint64_t offset,
                                                             std::span<const std::byte> data,
                                                             Engine engine = Engine::Auto) {
        auto op = std::make_unique<WriteOp>();
        op->kind = kind;
        op->engine = engine;
        op->ranges.push_back({file, ByteOffset(offset), data});
        return submit(std::move(op));
    }
    std::shared_ptr<std::optional<Result<WriteDone>>> submit(std::unique_ptr<WriteOp> op) {
        auto result = std::make_shared<std::optional<Result<WriteDone>>>();
        op->done = [result](Result<WriteDone> done) { *result = std::move(done); };
        target_.submit(std::move(op));
        return result;
    }
    Result<WriteDone> write(const FileRef& file, uint64_t offset, std::span<const std::byte> data,
                            Engine engine = Engine::Auto) {
        return finish(submit(WriteOp::Kind::Atomic, file, offset, data, engine));
    }
    Result<WriteDone> write_plain(const FileRef& file, uint64_t offset,
                                  std::span<const std::byte> data) {
        return finish(submit(WriteOp::Kind::Plain, file, offset, data));
    }
    Result<WriteDone> write_batch(std::vector<WriteOp::Range> ranges) {
        auto op = std::make_unique<WriteOp>();
        op->kind = WriteOp::Kind::Batch;
        op->ranges = std::move(ranges);
        return finish(submit(std::move(op)));
    }
    Result<WriteDone> finish(const std::shared_ptr<std::optional<Result<WriteDone>>>& result) {
        run_until([&] { return result->has_value(); });
        return std::move(**result);
    }
    Result<std::vector<std::byte>> read(const FileRef& file, uint64_t offset, uint64_t length) {
        std::vector<std::byte> into(length);
        const Bytes got = A4_TRY(wait<Bytes>(
            [&](auto done) { target_.read(file, ByteOffset(offset), into, std::move(done)); }));
        into.resize(got.value());
        return into;
    }
    Result<> flush(const FileRef& file) {
        return wait<void>([&](auto done) { target_.flush(file, std::move(done)); });
    }
    Result<> stop() {
        return wait<void>([&](auto done) { target_.stop(std::move(done)); });
    }

  private:
    EventLoop& loop_;
    Target& target_;
};

}  // namespace atomic4::test
