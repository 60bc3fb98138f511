#include "support/crash_scenario.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <stdexcept>

#include "ext4/errcode.h"
#include "ext4/path.h"
#include "ext4/transaction.h"
#include "support/bytes.h"

namespace atomic4::test {

namespace {

template <class T>
T value_of(Result<T> result, const std::string& what) {
    if (!result) throw std::runtime_error(what + ": " + result.error().message);
    if constexpr (!std::is_void_v<T>) return std::move(*result);
}

using Kind = ScenarioStep::Kind;

// Empty if the file shows this model, except where the model is unsure.
std::string compare(const FileModel& model, const std::vector<std::byte>& found) {
    if (found.size() != model.bytes.size())
        return fmt::format("{}: size {}, expected {}", model.path, found.size(),
                           model.bytes.size());
    for (uint64_t at = 0; at < found.size(); at += kSector) {
        const uint64_t n = std::min<uint64_t>(kSector, found.size() - at);
        if (std::memcmp(found.data() + at, model.bytes.data() + at, n) == 0) continue;
        if (model.unsure[at / kSector]) continue;
        return fmt::format("{}: differs in the sector at {}", model.path, at);
    }
    return {};
}

// Where the blocks of a file under construction are put: cluster by cluster, as ext4 does it; a
// cluster is a block without bigalloc.
class ClusterMap {
  public:
    explicit ClusterMap(Volume& volume)
        : volume_(volume), cluster_(uint64_t{1} << volume.allocator().cluster_order()) {}

    std::vector<PblkRun> place(const Piece& piece) {
        const uint64_t end = (piece.lblk + piece.length + cluster_ - 1) / cluster_;
        std::vector<uint64_t> missing;
        for (uint64_t at = piece.lblk / cluster_; at < end; ++at) {
            if (!place_.contains(at)) missing.push_back(at);
        }
        auto next = missing.begin();
        for (const PblkRun& run :
             value_of(volume_.allocator().allocate_units(0, missing.size(), Pblk(64)), "place")) {
            for (uint64_t at = 0; at < run.length.value(); at += cluster_)
                place_[*next++] = run.start + Blocks(at);
        }
        std::vector<PblkRun> runs;
        for (uint64_t lblk = piece.lblk; lblk < piece.lblk + piece.length; ++lblk) {
            const Pblk pblk = place_[lblk / cluster_] + Blocks(lblk % cluster_);
            if (!runs.empty() && runs.back().start + runs.back().length == pblk)
                runs.back().length += Blocks(1);
            else
                runs.push_back({pblk, Blocks(1)});
        }
        return runs;
    }

    size_t clusters() const { return place_.size(); }

  private:
    Volume& volume_;
    uint64_t cluster_;
    std::map<uint64_t, Pblk> place_;  // by number of the cluster in the file
};

Result<std::vector<std::byte>> stored_bytes(Volume& volume, const FileState& file) {
    const uint64_t block = volume.block_size().value();
    const size_t size = file.size.value();
    std::vector<std::byte> bytes(std::max<uint64_t>(round_up(size, block), block));
    if ((file.inode.i_flags & EXT4_INLINE_DATA_FL) != 0) {
        ext2_inode inode = file.inode;
        size_t length = 0;
        A4_CHECK(check_errcode(
            ext2fs_inline_data_get(volume.fs(), file.number, &inode, bytes.data(), &length),
            "inline data"));
        if (length < size) return fail(EUCLEAN, "{} bytes of {} in the inode", length, size);
    } else {
        for (const Mapping& m : A4_TRY(map_range(volume, file.number, file.inode, Lblk(0),
                                                 Blocks(round_up(size, block) / block)))) {
            if (m.state != MapState::Written) continue;
            A4_CHECK(volume.device().read(
                ByteOffset(m.pblk.value() * block),
                std::span(bytes).subspan(m.lblk.value() * block, m.length.value() * block)));
        }
    }
    bytes.resize(size);
    return bytes;
}

}  // namespace

void FileModel::write(uint64_t offset, std::span<const std::byte> data) {
    if (offset + data.size() > bytes.size()) bytes.resize(offset + data.size());
    unsure.resize((bytes.size() + kSector - 1) / kSector);
    std::copy(data.begin(), data.end(), bytes.begin() + static_cast<std::ptrdiff_t>(offset));
    // A sector that is covered only in part stays as unsure as it was.
    for (uint64_t s = (offset + kSector - 1) / kSector; (s + 1) * kSector <= offset + data.size();
         ++s)
        unsure[s] = false;
}

void FileModel::mark_unsure(uint64_t offset, uint64_t length) {
    for (uint64_t s = offset / kSector; s * kSector < offset + length && s < unsure.size(); ++s)
        unsure[s] = true;
}

FileModel make_file(Volume& volume, const std::string& path, uint64_t size,
                    const std::vector<Piece>& pieces, std::mt19937_64& random) {
    const uint64_t block = volume.block_size().value();
    const NewName where = value_of(lookup_new(volume, path), path);
    Transaction transaction(volume);
    NewFile file;
    file.unit = volume.block_size();
    const StagedFile staged = value_of(stage_file(volume, where.directory, file, false), path);
    value_of(link_name(volume, where, staged.number, EXT2_FT_REG_FILE), path);
    FileModel model{path, staged.number, staged.generation, {}, {}};
    model.bytes.resize(size);
    model.unsure.resize((size + kSector - 1) / kSector);
    ext2_inode inode{};
    value_of(check_errcode(ext2fs_read_inode(volume.fs(), staged.number, &inode), path), path);
    ClusterMap clusters(volume);
    for (const Piece& piece : pieces) {
        uint64_t lblk = piece.lblk;
        for (const PblkRun& run : clusters.place(piece)) {
            value_of(set_mapping(volume, staged.number, &inode, Lblk(lblk), run, piece.state),
                     path);
            // Unwritten blocks hold rubbish that must never show.
            auto data = random_bytes(run.length.value() * block, random);
            value_of(volume.device().write(ByteOffset(run.start.value() * block), data), path);
            if (piece.state == MapState::Written && lblk * block < size) {
                data.resize(std::min<uint64_t>(data.size(), size - lblk * block));
                std::copy(data.begin(), data.end(),
                          model.bytes.begin() + static_cast<std::ptrdiff_t>(lblk * block));
            }
            lblk += run.length.value();
        }
    }
    value_of(check_errcode(ext2fs_iblk_add_blocks(volume.fs(), &inode, clusters.clusters()), path),
             path);
    value_of(check_errcode(
                 ext2fs_inode_size_set(volume.fs(), &inode, static_cast<ext2_off64_t>(size)), path),
             path);
    value_of(check_errcode(ext2fs_write_inode(volume.fs(), staged.number, &inode), path), path);
    value_of(transaction.commit(), path);
    return model;
}

std::string same_bytes(Volume& volume, const FileModel& model) {
    const auto file = read_file(volume, model.inode, model.generation);
    if (!file) return model.path + ": " + file.error().message;
    if (file->size != Bytes(model.bytes.size())) return model.path + ": its size has changed";
    const auto bytes = stored_bytes(volume, *file);
    if (!bytes) return model.path + ": " + bytes.error().message;
    return *bytes == model.bytes ? std::string() : model.path + ": its bytes have changed";
}

Scenario::Scenario(Image image, std::vector<FileModel> files)
    : device_(std::move(image)), files_(std::move(files)), initial_(files_) {
    open();
    block_size_ = volume().block_size().value();
}

void Scenario::open() {
    writer_ =
        value_of(AtomicWriter::open(value_of(open_for_writing(borrowed(device_)), "open")), "open");
}

bool Scenario::changes_metadata(const ModelRange& range) {
    const FileState state = value_of(read_file(volume(), files_[range.file].inode), "read_file");
    const RangeShape shape =
        value_of(range_shape(volume(), state, ByteOffset(range.offset), Bytes(range.data.size())),
                 "range_shape");
    return shape.holes || shape.unwritten || shape.beyond_eof;
}

void Scenario::begin(ScenarioStep step) {
    for (const ModelRange& range : step.ranges) step.metadata |= changes_metadata(range);
    step.begin = device_.events();
    steps_.push_back(std::move(step));
}

void Scenario::end() {
    ScenarioStep& step = steps_.back();
    step.end = device_.events();
    apply(steps_.back(), files_);
}

void Scenario::apply(const ScenarioStep& step, std::vector<FileModel>& files) {
    for (const ModelRange& range : step.ranges) {
        FileModel& file = files[range.file];
        file.write(range.offset, range.data);
        if (step.kind == Kind::Plain) file.mark_unsure(range.offset, range.data.size());
    }
    files.insert(files.end(), step.created.begin(), step.created.end());
    if (step.kind == Kind::Settle) {
        for (FileModel& file : files) file.unsure.assign(file.unsure.size(), false);
    }
}

void Scenario::write(size_t file, uint64_t offset, std::vector<std::byte> data) {
    const FileModel model = files_[file];
    ScenarioStep step{Kind::Atomic, fmt::format("write of {} bytes at {} of {}", data.size(),
                                                offset, model.path)};
    step.ranges.push_back({file, offset, data});
    begin(std::move(step));
    const WriteRange range{model.inode, model.generation, ByteOffset(offset), data};
    value_of(writer_->write(range, Engine::Logged), steps_.back().what);
    end();
}

void Scenario::batch(std::vector<ModelRange> ranges) {
    ScenarioStep step{Kind::Atomic, "batch of"};
    std::vector<WriteRange> request;
    for (const ModelRange& range : ranges) {
        step.what +=
            fmt::format(" {}+{} of {},", range.offset, range.data.size(), files_[range.file].path);
        request.push_back({files_[range.file].inode, files_[range.file].generation,
                           ByteOffset(range.offset), range.data});
    }
    step.ranges = ranges;
    begin(std::move(step));
    value_of(writer_->write_batch(request), steps_.back().what);
    end();
}

void Scenario::plain(size_t file, uint64_t offset, std::vector<std::byte> data) {
    ScenarioStep step{Kind::Plain, fmt::format("plain write of {} bytes at {} of {}", data.size(),
                                               offset, files_[file].path)};
    step.ranges.push_back({file, offset, data});
    const WriteRange range{files_[file].inode, files_[file].generation, ByteOffset(offset), data};
    begin(std::move(step));
    value_of(writer_->write_plain(range), steps_.back().what);
    end();
}

void Scenario::flush() {
    begin({Kind::Settle, "flush"});
    value_of(writer_->flush(), "flush");
    end();
}

void Scenario::close_and_reopen() {
    begin({Kind::Settle, "close and reopen"});
    value_of(writer_->close(), "close");
    writer_.reset();
    open();
    end();
}

void Scenario::drop_and_reopen() {
    begin({Kind::Reopen, "reopen without close"});
    writer_.reset();
    open();
    end();
}

size_t Scenario::create(const std::string& path, uint64_t size, uint64_t unit) {
    close_and_reopen();
    begin({Kind::Create, "create " + path});
    steps_.back().metadata = true;
    const ext2_ino_t inode =
        value_of(create_atomic_file(volume(), path, {Bytes(size), Bytes(unit)}), path);
    FileModel model{path, inode, value_of(read_file(volume(), inode), path).generation, {}, {}};
    model.bytes.resize(size);
    model.unsure.resize((size + kSector - 1) / kSector);
    steps_.back().created.push_back(model);
    end();
    return files_.size() - 1;
}

void Scenario::close() {
    begin({Kind::Settle, "close"});
    value_of(writer_->close(), "close");
    writer_.reset();
    end();
}

const Scenario::Expected& Scenario::expected_at(size_t events_done) {
    // The step in flight: the first that isn't acknowledged by what was done.
    const auto step = std::partition_point(
        steps_.begin(), steps_.end(), [&](const ScenarioStep& s) { return s.end <= events_done; });
    const auto index = static_cast<size_t>(step - steps_.begin());
    if (index == expected_step_) return expected_;
    if (expected_step_ > index) {
        expected_.before = initial_;
        expected_step_ = 0;
    }
    for (; expected_step_ < index; ++expected_step_)
        apply(steps_[expected_step_], expected_.before);
    expected_.in_flight = step == steps_.end() ? nullptr : &*step;
    expected_.after = expected_.before;
    if (expected_.in_flight != nullptr) {
        apply(*step, expected_.after);
        if (step->kind == Kind::Plain) {
            for (const ModelRange& range : step->ranges)
                expected_.before[range.file].mark_unsure(range.offset, range.data.size());
        }
        // At any moment of it the cache may have been flushed or not.
        if (step->kind == Kind::Settle) expected_.after = expected_.before;
        // A file in the making is nobody's yet.
        if (step->kind == Kind::Create) expected_.after = expected_.before;
    }
    return expected_;
}

Result<std::vector<std::byte>> read_whole(AtomicWriter& reader, const FileModel& file) {
    const FileState state = A4_TRY(reader.file(file.inode, file.generation));
    std::vector<std::byte> bytes(state.size.value());
    A4_CHECK(reader.read(file.inode, ByteOffset(0), bytes));
    return bytes;
}

std::string compare_files(Image& recovered, const Scenario::Expected& expected) {
    ImageDevice device(recovered);
    auto opened = open_for_reading(borrowed(device));
    if (!opened) return "reading: " + opened.error().message;
    auto reader = AtomicWriter::open(std::move(*opened));
    if (!reader) return "reading: " + reader.error().message;
    std::string not_before;
    std::string not_after;
    for (size_t i = 0; i < expected.before.size(); ++i) {
        const auto found = read_whole(**reader, expected.before[i]);
        if (!found) return expected.before[i].path + ": " + found.error().message;
        if (not_before.empty()) not_before = compare(expected.before[i], *found);
        if (not_after.empty()) not_after = compare(expected.after[i], *found);
    }
    if (not_before.empty() || not_after.empty()) return {};
    return fmt::format("neither before nor after [{}]: not before: {}; not after: {}",
                       expected.in_flight == nullptr ? "end" : expected.in_flight->what, not_before,
                       not_after);
}

}  // namespace atomic4::test
