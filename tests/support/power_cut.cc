#include "support/power_cut.h"

#include <sys/stat.h>

#include <cstring>

#include "base/endian.h"
#include "support/loop.h"
#include "writer/open_volume.h"

namespace atomic4::test {
namespace {

template <class T>
T field(const Image& image, size_t at) {
    T value;
    std::memcpy(&value, image.data() + 1024 + at, sizeof value);
    return value;
}

// A file that the cut took whole is as it was made: empty.
std::vector<std::byte> contents_or_nothing(const std::string& path) {
    for (const std::string& name : {path, path + kMoved})
        if (::access(name.c_str(), F_OK) == 0) return file_contents(name);
    return {};
}

bool unmounted_cleanly(const Image& image) {
    constexpr uint32_t kNeedsRecovery = 0x4;
    return (field<le32>(image, 0x60) & kNeedsRecovery) == 0 && (field<le16>(image, 0x3a) & 1) != 0;
}

// The journal's replay, by e2fsck. It refuses the volume at last, since the journal brought the
// gate bit back.
std::string replay_journal(Image& image) {
    Image replayed;
    const Fsck journal = e2fsck(image, {"-p", "-E", "journal_only"}, &replayed);
    image = std::move(replayed);
    return unmounted_cleanly(image) ? "" : "e2fsck -E journal_only: " + journal.output;
}

// Of a volume whose journal was replayed. (Once more, and e2fsck would finish them.)
bool lists_orphans(const Image& replayed) {
    return field<le32>(replayed, 0xe8) != 0;
}

Image mounted_once(const Image& image, const std::string& dir) {
    const FaultDisk disk(image, FaultDisk::Memory::Forgets);
    Mount(disk.device(), dir, {"-t", "ext4"}).unmount();
    return disk.contents();
}

std::string recover_offline(Image& image, OnConflict policy) {
    const auto report = recover(std::make_unique<ImageDevice>(image), policy);
    if (!report) return "recover: " + report.error().message;
    for (const auto* lines : {&report->conflicts, &report->failed})
        if (!lines->empty() && policy == OnConflict::Keep) return "recover: " + lines->front();
    return report->log_emptied ? "" : "recover: the log was kept";
}

}  // namespace

bool has_orphans(const Image& image) {
    Image replayed = image;
    return replay_journal(replayed).empty() && lists_orphans(replayed);
}

const char* to_text(Recovery way) {
    switch (way) {
        case Recovery::PrivateMount:
            return "mount.atomic4";
        case Recovery::PlainMount:
            return "mount -t ext4 and the daemon";
        case Recovery::Offline:
            return "e2fsck's journal replay and atomic4ctl recover";
        case Recovery::OfflineAfterMount:
            return "mount, umount, and atomic4ctl recover";
    }
    return "";
}

SessionStamp stamp_of(const Image& image) {
    SessionStamp stamp;
    stamp.fs_mtime = field<le32>(image, 0x2c) | (uint64_t{field<uint8_t>(image, 0x275)} << 32);
    stamp.fs_mnt_count = field<le16>(image, 0x34);
    return stamp;
}

std::string judge_mounted(const std::string& dir, const WriteHistory& history, size_t position) {
    std::vector<std::vector<std::byte>> found;
    for (const std::string& name : history.files())
        found.push_back(contents_or_nothing(dir + "/" + name));
    return history.judge(found, position);
}

namespace {

// Mounts, recovers if that hasn't been done yet, judges.
void recover_mounted(const Image& image, Recovery way, const std::string& dir,
                     const WriteHistory& history, size_t position, FaultDisk::Memory memory,
                     Recovered& result) {
    MountHistory known;
    if (way == Recovery::PrivateMount) known.before_private_mount = stamp_of(image);
    FaultDisk disk(image, memory);
    Mount mount(disk.device(), dir, {"-t", "ext4"});
    if (way == Recovery::PrivateMount || way == Recovery::PlainMount) {
        auto volume = MountedVolume::open(dir);
        if (!volume) {
            result.complaint = volume.error().message;
            return;
        }
        const auto log = recover_mounted_log(**volume, known);
        if (!log) {
            result.complaint = log.error().message;
            return;
        }
        if (log->replayed) result.records = log->replayed->records;
    }
    result.complaint = judge_mounted(dir, history, position);
    mount.unmount();
    result.image = disk.contents();
    if (memory == FaultDisk::Memory::Records) result.trace = disk.recorded();
}

}  // namespace

Recovered recover_after_cut(const Image& image, Recovery way, const std::string& dir,
                            const WriteHistory& history, size_t position,
                            FaultDisk::Memory memory) {
    Recovered result;
    Image start = image;
    std::string& complaint = result.complaint;
    if (way == Recovery::Offline) {
        complaint = replay_journal(start);
        if (!complaint.empty()) return result;
        // It says so: the kernel has to finish them.
        if (lists_orphans(start)) way = Recovery::OfflineAfterMount;
    }
    if (way == Recovery::OfflineAfterMount) start = mounted_once(start, dir);
    const bool offline = way == Recovery::Offline || way == Recovery::OfflineAfterMount;
    if (offline) complaint = recover_offline(start, OnConflict::Keep);
    if (complaint.empty()) recover_mounted(start, way, dir, history, position, memory, result);
    if (complaint.find("was changed") != std::string::npos && way != Recovery::PrivateMount &&
        has_orphans(image)) {
        result.forced = true;
        start = mounted_once(image, dir);
        complaint = recover_offline(start, OnConflict::Force);
        if (complaint.empty())
            recover_mounted(start, Recovery::Offline, dir, history, position, memory, result);
    }
    if (!complaint.empty()) return result;
    if (const std::string words = fsck_complaints(result.image); !words.empty())
        complaint = "e2fsck: " + words;
    return result;
}

}  // namespace atomic4::test
