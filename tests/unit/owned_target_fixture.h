// What the tests of an owned volume for many clients share: a target on a volume in memory, with a
// loop whose native writes end when the test lets them.
#pragma once

#include <fcntl.h>

#include <algorithm>

#include "support/fake_loop.h"
#include "support/fault_device.h"
#include "unit/writer_fixture.h"
#include "writer/owned_target.h"

namespace atomic4::test {

inline constexpr uint64_t kUnit = 16384;

// Offers a descriptor for native writes, which the fake loop never uses as one.
class PortDevice final : public ForwardingDevice {
  public:
    using ForwardingDevice::ForwardingDevice;
    Result<AsyncPort> open_port() const override {
        return AsyncPort{UniqueFd(::open("/dev/null", O_RDWR | O_CLOEXEC)), Bytes(512), false};
    }
};

// How one operation ended.
struct Ended {
    bool ended = false;
    int code = 0;
    std::string message;
    WriteDone done;
};

class OwnedTargetTest : public WriterTest {
  protected:
    void SetUp() override {
        loop.write_now = [this](const FakeLoop::Write& write) {
            if (!results.empty()) {
                const int result = results.front();
                results.erase(results.begin());
                if (result != 0) return result;
            }
            must(memory->write(write.offset, write.from));
            return static_cast<int>(write.from.size());
        };
    }
    void TearDown() override {
        file.reset();
        target.reset();
        WriterTest::TearDown();
    }

    // A volume with a file of 16 units, all written, and a target on it.
    void serve(uint64_t log_size = 1 << 20, std::optional<AtomicLimits> limits = {}) {
        start_default("4096", log_size);
        if (limits) memory->set_atomic_limits(*limits);
        open();
        number = create("/f", 16 * kUnit, kUnit);
        close();
        serve_again();
    }
    void serve_again() {
        port = std::make_unique<PortDevice>(*recorder);
        faults = std::make_unique<FaultDevice>(*recorder);
        Device& below = with_port ? static_cast<Device&>(*port) : *faults;
        target = must(OwnedTarget::open(loop, must(open_for_writing(borrowed(below)))));
        target->on_group = [this](size_t size, Bytes) { groups.push_back(size); };
        file = must(target->open_file(number));
        recorder->events.clear();
    }
    std::shared_ptr<Ended> submit(std::unique_ptr<WriteOp> op) {
        auto ended = std::make_shared<Ended>();
        op->done = [this, ended](Result<WriteDone> result) {
            EXPECT_FALSE(ended->ended);
            EXPECT_FALSE(submitting) << "completions come from the loop";
            ended->ended = true;
            ended->code = code_of(result);
            ended->message = message_of(result);
            if (result) ended->done = *result;
            order.push_back(ended.get());
        };
        submitting = true;
        target->submit(std::move(op));
        submitting = false;
        return ended;
    }
    std::shared_ptr<Ended> write(uint64_t offset, std::span<const std::byte> data,
                                 Engine engine = Engine::Auto,
                                 WriteOp::Kind kind = WriteOp::Kind::Atomic) {
        auto op = std::make_unique<WriteOp>();
        op->kind = kind;
        op->engine = engine;
        op->ranges.push_back({file, ByteOffset(offset), data});
        return submit(std::move(op));
    }
    std::shared_ptr<Ended> batch(std::vector<WriteOp::Range> ranges) {
        auto op = std::make_unique<WriteOp>();
        op->kind = WriteOp::Kind::Batch;
        op->ranges = std::move(ranges);
        return submit(std::move(op));
    }
    WriteOp::Range at(uint64_t offset, std::span<const std::byte> data) {
        return {file, ByteOffset(offset), data};
    }
    Image read(uint64_t offset, uint64_t length) {
        Image bytes(length);
        std::optional<uint64_t> got;
        target->read(file, ByteOffset(offset), bytes,
                     [&](Result<Bytes> n) { got = must(std::move(n)).value(); });
        loop.run();
        EXPECT_TRUE(got.has_value());
        bytes.resize(got.value_or(0));
        return bytes;
    }
    int stop() {
        std::optional<int> code;
        target->stop([&](Result<> result) { code = code_of(result); });
        loop.run();
        return code.value_or(-1);
    }
    size_t count(Kind kind) const {
        return static_cast<size_t>(
            std::ranges::count(recorder->events, kind, &RecordingDevice::Event::kind));
    }
    // The process dies and a later one finds this.
    Image content_after_crash() {
        file.reset();
        target.reset();
        open();
        Image found = content(number);
        writer.reset();
        return found;
    }

    FakeLoop loop;
    std::unique_ptr<PortDevice> port;
    std::unique_ptr<FaultDevice> faults;
    std::unique_ptr<OwnedTarget> target;
    bool with_port = false;
    bool submitting = false;
    ext2_ino_t number = 0;
    FileRef file;
    std::vector<size_t> groups;
    std::vector<const Ended*> order;
    std::vector<int> results;  // of the next native writes; 0: done
};

}  // namespace atomic4::test
