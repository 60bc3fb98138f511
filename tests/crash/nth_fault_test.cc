// Every library operation behind a command, with a fault at each of its I/Os (fault_driver.h).
#include <gtest/gtest.h>

#include <map>

#include "ext4/path.h"
#include "ext4/transaction.h"
#include "support/bytes.h"
#include "support/crash_scenario.h"
#include "support/fault_driver.h"
#include "support/fault_files.h"
#include "support/results.h"

namespace atomic4::test {
namespace {

constexpr uint64_t kBlock = kFaultBlock;
constexpr uint64_t kUnit = kFaultUnit;

// --- The volume -------------------------------------------------------------------------------

FaultOperation enabling() {
    const FaultFiles files = make_fault_files(false);
    FaultOperation operation;
    operation.name = "enable";
    operation.image = files.image;
    operation.run = [](Device& device) -> Result<> {
        const auto volume = A4_TRY(open_any(device, OpenFor::Write));
        A4_TRY(enable(*volume, {}));
        return {};
    };
    operation.intact = [models = files.models](Image& image) { return files_hold(image, models); };
    operation.right = [models = files.models](Image& image) {
        const auto wrong = is_enabled(image);
        return wrong.empty() ? files_hold(image, models) : wrong;
    };
    operation.unchanged = is_plain;
    return operation;
}

FaultOperation disabling(bool force) {
    FaultFiles files = make_fault_files(true);
    if (!force) {
        ImageDevice device(files.image);
        const auto volume = must(open_any(device, OpenFor::Write));
        for (const size_t i : {kAtomic, kSparse})
            must(release_file(*volume, files.models[i].inode));
    }
    FaultOperation operation;
    operation.name = force ? "disable --force" : "disable";
    operation.image = files.image;
    operation.run = [force](Device& device) -> Result<> {
        const auto volume = A4_TRY(open_any(device, OpenFor::Write));
        A4_TRY(disable(*volume, force));
        return {};
    };
    operation.intact = [models = files.models](Image& image) { return files_hold(image, models); };
    operation.right = [models = files.models](Image& image) {
        const auto wrong = is_plain(image);
        return wrong.empty() ? files_hold(image, models) : wrong;
    };
    return operation;
}

// --- Files ------------------------------------------------------------------------------------

// Leaves only separate units and a little more free, so that a new file has many extents; twice as
// many as it needs, since what an error left in doubt may stay in lost+found.
FaultFiles make_fragmented() {
    FaultFiles files = make_fault_files(true);
    std::mt19937_64 random(43);
    ImageDevice device(files.image);
    const auto volume = must(open_any(device, OpenFor::Write));
    std::vector<ext2_ino_t> holes;
    for (int i = 0; i < 40; ++i) {
        const auto path = fmt::format("/piece{}", i);
        const ext2_ino_t inode =
            must(create_atomic_file(*volume, path, {Bytes(kUnit), Bytes(kUnit)}));
        if (i % 2 == 0) holes.push_back(inode);
    }
    const uint64_t rest = volume->allocator().available() - 40;
    files.models.push_back(make_file(*volume, "/rest", rest * kBlock, {{0, rest}}, random));
    for (const ext2_ino_t inode : holes) {
        Transaction transaction(*volume);
        const auto path = must(paths_of(*volume, {inode})).at(inode);
        must(unlink_name(*volume, {EXT2_ROOT_INO, path.substr(1)}, inode));
        must(stage_delete(*volume, inode));
        must(transaction.commit(Transaction::Order::Freeing));
    }
    return files;
}

FaultOperation creating(const std::string& name, const FaultFiles& files, uint64_t units) {
    FaultOperation operation;
    operation.name = "create " + name;
    operation.image = files.image;
    operation.run = [units](Device& device) -> Result<> {
        const OpenVolume opened = A4_TRY(open_for_writing(borrowed(device)));
        A4_TRY(create_atomic_file(*opened.volume, "/new", {Bytes(units * kUnit), Bytes(kUnit)}));
        return {};
    };
    operation.right = [units, models = files.models](Image& image) -> std::string {
        ImageDevice device(image);
        const auto opened = open_for_reading(borrowed(device));
        if (!opened) return opened.error().message;
        const auto inode = lookup(*opened->volume, "/new");
        if (!inode) return inode.error().message;
        const auto file = read_file(*opened->volume, *inode);
        if (!file) return file.error().message;
        const auto layout = check_layout(*opened->volume, *file, Bytes(kUnit));
        if (!layout) return layout.error().message;
        if (!file->atomic || file->unit != Bytes(kUnit) || layout->problems != 0 ||
            layout->units_mapped != units)
            return "the file is not what was asked for";
        FileModel model{"/new", *inode, file->generation, {}, {}};
        model.bytes.resize(units * kUnit);
        auto all = models;
        all.push_back(model);
        return files_hold(image, all);
    };
    operation.intact = [models = files.models](Image& image) { return files_hold(image, models); };
    operation.unchanged = [](Image& image) -> std::string {
        ImageDevice device(image);
        const auto volume = open_any(device, OpenFor::Read);
        if (!volume) return volume.error().message;
        return lookup(**volume, "/new") ? "/new is there" : "";
    };
    return operation;
}

FaultOperation releasing() {
    const FaultFiles files = make_fault_files(true);
    FaultOperation operation;
    operation.name = "release";
    operation.image = files.image;
    operation.run = [inode = files.models[kAtomic].inode](Device& device) -> Result<> {
        const OpenVolume opened = A4_TRY(open_for_writing(borrowed(device)));
        return release_file(*opened.volume, inode);
    };
    operation.intact = [models = files.models](Image& image) { return files_hold(image, models); };
    operation.right = [models = files.models](Image& image) -> std::string {
        ImageDevice device(image);
        const auto volume = open_any(device, OpenFor::Read);
        if (!volume) return volume.error().message;
        const auto file = read_file(**volume, models[kAtomic].inode);
        if (!file) return file.error().message;
        if (file->atomic || file->unit) return "the file is not released";
        return files_hold(image, models);
    };
    return operation;
}

// --- Writes -----------------------------------------------------------------------------------

// What a session acknowledged, and what it was about to do.
struct Session {
    std::vector<FileModel> acknowledged;
    std::vector<FileModel> intended;  // with the write in flight
    size_t done = 0;
};

struct Write {
    enum class Kind { Logged, Native, Plain, Batch } kind;
    std::vector<ModelRange> ranges;
};

// open, these writes one after the other, close.
FaultOperation writing(const std::string& name, const FaultFiles& files,
                       std::vector<Write> writes) {
    FaultOperation operation;
    operation.name = name;
    operation.image = files.image;
    const auto session = std::make_shared<Session>();
    const auto apply = [](std::vector<FileModel>& models, const Write& write) {
        for (const ModelRange& range : write.ranges) {
            models[range.file].write(range.offset, range.data);
            if (write.kind == Write::Kind::Plain)
                models[range.file].mark_unsure(range.offset, range.data.size());
        }
    };
    std::vector<FileModel> final_models = files.models;
    for (const Write& write : writes) apply(final_models, write);
    for (FileModel& model : final_models) model.unsure.assign(model.unsure.size(), false);

    operation.run = [=, start = files.models](Device& device) -> Result<> {
        session->acknowledged = session->intended = start;
        const auto writer = A4_TRY(AtomicWriter::open(A4_TRY(open_for_writing(borrowed(device)))));
        for (const Write& write : writes) {
            apply(session->intended, write);
            if (write.kind == Write::Kind::Plain) {
                // From here on its sectors may be anything, also if it is never acknowledged.
                for (const ModelRange& range : write.ranges)
                    session->acknowledged[range.file].mark_unsure(range.offset, range.data.size());
            }
            std::vector<WriteRange> ranges;
            for (const ModelRange& range : write.ranges)
                ranges.push_back({start[range.file].inode, start[range.file].generation,
                                  ByteOffset(range.offset), range.data});
            switch (write.kind) {
                case Write::Kind::Batch:
                    A4_CHECK(writer->write_batch(ranges));
                    break;
                case Write::Kind::Plain:
                    A4_CHECK(writer->write_plain(ranges[0]));
                    break;
                default:
                    A4_TRY(writer->write(ranges[0], write.kind == Write::Kind::Native
                                                        ? Engine::Native
                                                        : Engine::Logged));
            }
            session->acknowledged = session->intended;
        }
        return writer->close();
    };
    operation.right = [=](Image& image) { return files_hold(image, final_models); };
    operation.intact = [session](Image& image) {
        const Scenario::Expected expected{nullptr, session->acknowledged, session->intended};
        return compare_files(image, expected);
    };
    return operation;
}

std::vector<FaultOperation> write_operations() {
    using Kind = Write::Kind;
    std::mt19937_64 random(44);
    const FaultFiles files = make_fault_files(true);
    const auto data = [&](uint64_t size) { return random_bytes(size, random); };
    std::vector<FaultOperation> operations;
    operations.push_back(writing("logged writes over mapped blocks", files,
                                 {{Kind::Logged, {{kAtomic, 0, data(kUnit)}}},
                                  {Kind::Logged, {{kAtomic, kUnit, data(4096)}}},
                                  {Kind::Logged, {{kTree, 0, data(2048)}}}}));
    operations.push_back(writing("logged writes over holes and unwritten blocks", files,
                                 {{Kind::Logged, {{kMixed, 8192, data(8192)}}},
                                  {Kind::Logged, {{kMixed, 16384, data(8192)}}},
                                  {Kind::Logged, {{kTree, 2048, data(2048)}}}}));
    operations.push_back(writing("logged writes beyond EOF", files,
                                 {{Kind::Logged, {{kSparse, 0, data(kUnit)}}},
                                  {Kind::Logged, {{kSparse, 3 * kUnit, data(4096)}}},
                                  {Kind::Logged, {{kTree, 32768, data(4096)}}}}));
    operations.push_back(writing("plain writes", files,
                                 {{Kind::Plain, {{kAtomic, 100, data(5000)}}},
                                  {Kind::Plain, {{kMixed, 15000, data(6000)}}},
                                  {Kind::Plain, {{kSparse, 20000, data(3000)}}}}));
    operations.push_back(writing(
        "a batch", files,
        {{Kind::Batch,
          {{kAtomic, 0, data(4096)}, {kMixed, 16384, data(4096)}, {kSparse, 0, data(8192)}}},
         {Kind::Logged, {{kAtomic, 0, data(4096)}}}}));
    operations.push_back(writing("native after logged writes", files,
                                 {{Kind::Logged, {{kAtomic, 0, data(kUnit)}}},
                                  {Kind::Native, {{kAtomic, 0, data(kUnit)}}},
                                  {Kind::Native, {{kAtomic, kUnit, data(4096)}}}}));
    operations.back().atomic_limits.unit_min = Bytes(1024);
    operations.back().atomic_limits.unit_max = Bytes(65536);
    // More than the log holds: space is reused.
    std::vector<Write> many;
    for (uint64_t i = 0; i < 20; ++i)
        many.push_back({Kind::Logged, {{kAtomic, i % 4 * kUnit, data(kUnit)}}});
    operations.push_back(writing("logged writes round the log", files, std::move(many)));
    return operations;
}

// --- Recovery and reading ---------------------------------------------------------------------

FaultOperation recovering() {
    std::mt19937_64 random(45);
    FaultFiles files = make_fault_files(true);
    Scenario scenario(files.image, files.models);
    log_three_writes(scenario, random);
    // The last one was cut before the file grew.
    const size_t step = scenario.steps().size();
    scenario.write(kSparse, 4 * kUnit, random_bytes(kUnit, random));
    size_t event = scenario.steps()[step].begin;
    while (event < scenario.device().events() &&
           scenario.device().describe(event).find("durable") == std::string::npos)
        ++event;
    FaultOperation operation;
    operation.name = "recover";
    operation.image = scenario.device().image_after(event + 1, 0);
    operation.run = [](Device& device) -> Result<> {
        const ReplayReport report = A4_TRY(recover(borrowed(device), OnConflict::Keep));
        // Told, and the log kept.
        if (!report.failed.empty()) return fail(EIO, "{}", report.failed.front());
        return {};
    };
    operation.right = [models = scenario.files()](Image& image) {
        return raw_super(image).needs_replay ? "needs-replay is set" : files_hold(image, models);
    };
    operation.intact = operation.right;
    return operation;
}

// Reading changes nothing, and what it returns is right.
FaultOperation inspecting() {
    const FaultFiles files = make_fault_files(true);
    struct Seen {
        std::vector<ext2_ino_t> atomic;
        std::map<ext2_ino_t, std::string> paths;
        std::vector<LayoutReport> layouts;
        std::vector<std::vector<std::byte>> bytes;
    };
    const auto seen = std::make_shared<Seen>();
    FaultOperation operation;
    operation.name = "read, check, find, name";
    operation.image = files.image;
    operation.run = [=, models = files.models](Device& device) -> Result<> {
        *seen = Seen{};
        OpenVolume opened = A4_TRY(open_for_reading(borrowed(device)));
        Volume& volume = *opened.volume;
        seen->atomic = A4_TRY(find_atomic_inodes(volume));
        seen->paths = A4_TRY(paths_of(volume, {seen->atomic.begin(), seen->atomic.end()}));
        for (const FileModel& model : models) {
            const FileState file = A4_TRY(read_file(volume, model.inode, model.generation));
            seen->layouts.push_back(A4_TRY(check_layout(volume, file, Bytes(kBlock))));
        }
        const auto reader = A4_TRY(AtomicWriter::open(std::move(opened)));
        for (const FileModel& model : models)
            seen->bytes.push_back(A4_TRY(read_whole(*reader, model)));
        return {};
    };
    operation.right = [=, image_before = files.image, models = files.models](Image& image) {
        if (image != image_before) return std::string("reading changed something");
        if (seen->atomic.size() != 3) return std::string("not all atomic files were found");
        if (seen->paths.size() != 3 || seen->paths[models[kAtomic].inode] != "/atomic")
            return std::string("not all paths were found");
        const uint64_t mapped[] = {64, 0, 16, 12};
        for (size_t i = 0; i < models.size(); ++i) {
            if (seen->bytes.at(i) != models[i].bytes) return models[i].path + ": wrong bytes";
            if (seen->layouts.at(i).units_mapped != mapped[i])
                return models[i].path + ": wrong layout";
        }
        return std::string();
    };
    operation.intact = [image_before = files.image](Image& image) {
        return image == image_before ? "" : "reading changed something";
    };
    return operation;
}

// ----------------------------------------------------------------------------------------------

TEST(NthFault, Enable) {
    run_with_every_fault(enabling());
}

TEST(NthFault, Disable) {
    run_with_every_fault(disabling(false));
}

TEST(NthFault, DisableForce) {
    run_with_every_fault(disabling(true));
}

TEST(NthFault, CreateEmpty) {
    run_with_every_fault(creating("an empty file", make_fault_files(true), 0));
}

TEST(NthFault, CreateSmall) {
    run_with_every_fault(creating("a small file", make_fault_files(true), 3));
}

TEST(NthFault, CreateFragmented) {
    run_with_every_fault(creating("a file of many extents", make_fragmented(), 9));
}

TEST(NthFault, Release) {
    run_with_every_fault(releasing());
}

TEST(NthFault, Write) {
    for (const FaultOperation& operation : write_operations()) run_with_every_fault(operation);
}

TEST(NthFault, Recover) {
    run_with_every_fault(recovering());
}

TEST(NthFault, Read) {
    run_with_every_fault(inspecting());
}

}  // namespace
}  // namespace atomic4::test
