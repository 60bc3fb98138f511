#include "fsck/session.h"

#include "device/forwarding_device.h"
#include "fsck/volume_state.h"

namespace atomic4::tools {

Result<std::unique_ptr<Volume>> FsckSession::open(OpenFor purpose) {
    if (purpose == OpenFor::Write && writing())
        return Volume::open(lent(device), options_for(OpenFor::Write));
    return Volume::open(lent(looking_), options_for(OpenFor::Inspect));
}

Result<std::unique_ptr<Volume>> FsckSession::open_by_copy(SuperblockPlace& place) {
    std::vector<SuperblockPlace> places;
    std::optional<Error> unreadable;
    for (const FoundSuperblock& copy :
         A4_TRY(find_backup_superblocks(looking_, told_copy(command))))
        places.push_back(copy.place);
    // Where the primary says, if it can be read.
    if (const auto volume = open(OpenFor::Inspect); !volume) {
        if (volume.error().code == EIO) unreadable = volume.error();
    } else {
        ext2_filsys fs = (*volume)->fs();
        for (const BackupSuperblock& copy : (*volume)->backups()) {
            if (copy.valid)
                places.push_back(
                    {ext2fs_group_first_block2(fs, copy.group), (*volume)->block_size()});
        }
    }
    for (const SuperblockPlace& there : places) {
        VolumeOptions options = options_for(OpenFor::Inspect);
        options.superblock = there;
        auto volume = Volume::open(lent(looking_), options);
        if (volume) {
            place = there;
            return volume;
        }
        if (volume.error().code == EIO) unreadable = volume.error();
    }
    // What can't be read doesn't mean that there is none.
    if (unreadable) return fail(*std::move(unreadable));
    return nullptr;
}

void FsckSession::end(int status) {
    ended_status_ = ended_status() | status;
}

bool FsckSession::stop_if_told() {
    if (ended() || !signals.pending()) return ended();
    say_interrupted();
    end(kFsckCancelled);
    return true;
}

void FsckSession::say_interrupted() {
    talk.say("interrupted: what is left is done by the next run");
}

void FsckSession::stop_for_somebody() {
    talk.say("UNEXPECTED INCONSISTENCY; RUN fsck MANUALLY. (i.e., without -a or -p options)");
    end(kFsckUncorrected);
}

}  // namespace atomic4::tools
