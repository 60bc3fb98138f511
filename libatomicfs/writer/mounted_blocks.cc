// Blocks for logged writes: no record is written whose placement has no space.
//
// Whether there is a hole is asked of lseek(2), which takes the inode's lock as fallocate(2) does:
// another process's write(2) of the file may hold it for seconds, so both are done by the helper
// threads, never by the loop's. Of a file that nobody else writes the answer is remembered. Else
// each write asks, but one question is under way for a file at a time, and the next carries
// everything that has come meanwhile.
#include <algorithm>
#include <ranges>

#include "writer/mounted_pending.h"

namespace atomic4 {
namespace {

// Ranges of one question: an opener has to wait for its answer.
constexpr size_t kMostAtOnce = 64;

}  // namespace

// What a logged write needs before its record: sizes known, blocks there. False: they aren't, or
// that isn't known.
Result<bool> MountedTarget::prepare(Pending& pending) {
    pending.new_sizes.clear();
    bool there = true;
    for (const WriteOp::Range& range : pending.op->ranges) {
        SharedFile& file = shared(range.file);
        const Bytes length(range.data.size());
        const Bytes end((range.offset + length).value());
        const Bytes size = A4_TRY(file.size());
        pending.new_sizes.push_back(end > size ? end : Bytes(0));
        there = there &&
                (pending.prepared || (end <= size && file.known_allocated(range.offset, length)));
    }
    return there;
}

bool MountedTarget::ask_blocks(std::unique_ptr<Pending>& pending) {
    const auto& ranges = pending->op->ranges;
    const bool later = std::ranges::any_of(ranges, [&](const WriteOp::Range& range) {
        const auto file = std::static_pointer_cast<SharedFile>(range.file);
        const auto asked = questions_.find(file);
        return file->asking || reserved_.contains(file.get()) ||
               (asked != questions_.end() && asked->second.size() >= kMostAtOnce);
    });
    if (later) {
        // Who needs several files at once doesn't wait until all happen to be free.
        if (ranges.size() > 1)
            for (const WriteOp::Range& range : ranges) reserved_.insert(&shared(range.file));
        return false;
    }
    order_.hold(pending->ranges, pending->use());
    ++running_;
    auto asking = std::make_shared<Asking>();
    asking->left = ranges.size();
    for (const WriteOp::Range& range : ranges) {
        questions_[std::static_pointer_cast<SharedFile>(range.file)].push_back(
            {asking, static_cast<off_t>(range.offset.value()),
             static_cast<off_t>(range.data.size())});
    }
    asking->pending = std::move(pending);
    return true;
}

void MountedTarget::send_questions() {
    for (auto& [file, asked] : questions_) {
        file->asking = true;
        file->access.use();
        auto questions = std::make_shared<std::vector<Question>>(std::move(asked));
        const FileLayout before = file->layout();
        helpers_->run(
            file->inode,
            [fd = file->access.direct(), questions] {
                for (Question& it : *questions) {
                    const off_t hole = ::lseek(fd, it.offset, SEEK_HOLE);
                    if (hole >= it.offset + it.length)
                        it.data_to = hole;
                    else if (::fallocate(fd, FALLOC_FL_KEEP_SIZE, it.offset, it.length) != 0)
                        it.error = errno;
                }
                return 0;
            },
            [this, file = file, questions, before](int) { answered(file, *questions, before); });
    }
    questions_.clear();
}

void MountedTarget::answered(const SharedRef& file, std::span<Question> questions,
                             const FileLayout& before) {
    file->asking = false;
    // Backwards, as each goes to the queue's front.
    for (Question& it : std::views::reverse(questions)) {
        if (it.data_to == 0)
            file->forget_data();
        else
            file->saw_data(static_cast<uint64_t>(it.offset), static_cast<uint64_t>(it.data_to),
                           before);
        if (it.error != 0)
            it.asking->result =
                fail(Error::from_errno(it.error, "allocating blocks for the write"));
        if (--it.asking->left == 0) answered(*it.asking);
    }
    file->access.unuse();
    schedule_pump();
}

void MountedTarget::answered(Asking& asking) {
    std::unique_ptr<Pending> pending = std::move(asking.pending);
    ended();
    order_.release(pending->ranges, pending->use());
    if (!asking.result) return pending->fail_with(asking.result.error());
    pending->prepared = true;
    queue_.push_front(std::move(pending));
}

}  // namespace atomic4
