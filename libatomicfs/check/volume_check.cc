#include "check/volume_check.h"

#include <algorithm>
#include <cstring>
#include <set>

#include "base/text.h"
#include "ext4/block_claims.h"
#include "ext4/format.h"
#include "ext4/layout.h"
#include "ext4/orphans.h"
#include "ext4/path.h"
#include "redo/log_reader.h"
#include "redo/volume_log.h"
#include "writer/enable.h"

namespace atomic4 {

namespace {

struct FindingRow {
    FindingId id;
    Severity severity;
    Handling handling;
    const char* meaning;
    const char* question;
};

constexpr FindingRow kFindings[] = {
#define A4_FINDING(number, name, severity, handling, meaning, question) \
    {FindingId::name, Severity::severity, Handling::handling, meaning, question},
#include "check/findings.def"
#undef A4_FINDING
};

const FindingRow& row_of(FindingId id) {
    return *std::find_if(std::begin(kFindings), std::end(kFindings),
                         [&](const FindingRow& row) { return row.id == id; });
}

FindingId finding_of(UnitFault fault) {
    switch (fault) {
        case UnitFault::Misaligned:
            return FindingId::MisalignedUnit;
        case UnitFault::Broken:
            return FindingId::BrokenUnit;
        case UnitFault::PartMapped:
            return FindingId::PartMappedUnit;
        case UnitFault::UnwrittenInFile:
            return FindingId::UnwrittenBeforeEof;
        case UnitFault::WrittenBeyondEof:
            return FindingId::WrittenBeyondEof;
    }
    return FindingId::InodeDamaged;
}

bool is_atomic(const ext2_inode& inode) {
    return inode.i_links_count != 0 && LINUX_S_ISREG(inode.i_mode) &&
           (inode.i_flags & kInodeFlagAtomic) != 0;
}

bool is_ordinary(const ext2_inode& inode) {
    return inode.i_links_count != 0 && LINUX_S_ISREG(inode.i_mode) &&
           (inode.i_flags & kInodeFlagAtomic) == 0;
}

// Lets the directories come into the cache, if there is one: e2fsck, and who looks for names, read
// them next, one block after the other.
class DirectoriesAhead {
  public:
    explicit DirectoriesAhead(Volume& volume) : volume_(volume) {}
    void add(const ClaimingInode& inode) {
        if (!LINUX_S_ISDIR(inode.inode.i_mode)) return;
        const Bytes block = volume_.block_size();
        for (const BlockClaim& claim : inode.claims) {
            const Bytes length(claim.run.length.value() * block.value());
            if (length > left_) return;
            left_ -= length;
            volume_.device().will_read(ByteOffset(claim.run.start.value() * block.value()), length);
        }
    }

  private:
    Volume& volume_;
    Bytes left_{uint64_t{256} << 20};  // what a small machine's cache may still hold
};

class Checker {
  public:
    Checker(Volume& volume, CheckReport& report) : volume_(volume), report_(report) {}

    void add(FindingId id, std::string where, std::string detail) {
        report_.findings.push_back({id, std::move(where), std::move(detail)});
    }
    // Of an inode whose path is looked up when all is done.
    void add(FindingId id, ext2_ino_t inode, std::string detail) {
        report_.findings.push_back({id, {}, std::move(detail), inode});
    }

    Result<> check_gate() {
        A4_CHECK(volume_.read_every_copy());
        const bool anywhere =
            volume_.gate_in_primary() ||
            std::ranges::any_of(volume_.backups(), [](const auto& backup) { return backup.gate; });
        if (!anywhere) {
            add(FindingId::GateMissingEverywhere, "superblock", "all copies");
            return {};
        }
        if (!volume_.gate_in_primary()) add(FindingId::GateMissing, "superblock", "the primary");
        for (const BackupSuperblock& backup : volume_.backups()) {
            if (!backup.gate) {
                add(FindingId::GateMissing, "superblock",
                    fmt::format("the {}copy in group {}", backup.valid ? "" : "damaged ",
                                backup.group));
            }
        }
        return {};
    }

    void check_log() {
        const auto damaged = [&](const Error& error) {
            add(error.code == EOPNOTSUPP ? FindingId::LogUnknown : FindingId::LogDamaged,
                "redo log", error.message);
        };
        if (!volume_.attr()) {
            const bool unknown = volume_.attr_error() && volume_.attr_error()->code == EOPNOTSUPP;
            add(unknown ? FindingId::LogUnknown : FindingId::AttributeDamaged, "/",
                volume_.attr_error() ? volume_.attr_error()->message : "it is missing");
            return;
        }
        auto log = open_log_device(volume_);
        if (!log) {
            damaged(log.error());
            return;
        }
        const auto contents = read_log(**log, volume_.attr()->log_id);
        if (!contents) {
            damaged(contents.error());
            return;
        }
        log_in_order_ = true;
        const auto named = parts_are_named(volume_);
        if (named && !*named)
            add(FindingId::PartsUnnamed, "redo log", "neither a mount nor a daemon finds it");
        if (!contents->superblock_damage.empty())
            add(FindingId::LogSuperblock, "redo log", contents->superblock_damage);
        if (contents->end == LogEnd::Corrupt)
            add(FindingId::LogCorrupt, "redo log", contents->end_detail);
        if (!contents->live.empty()) {
            add(FindingId::LiveRecords, "redo log", counted(contents->live.size(), "record"));
        } else if (volume_.needs_replay()) {
            add(FindingId::NeedsReplayWithoutRecords, "superblock", "nothing waits for it");
        }
    }

    // True: it is an atomic one, and intact.
    Result<bool> check_file(ext2_ino_t number) {
        const size_t before = report_.findings.size();
        auto file = read_file(volume_, number);
        if (!file && file.error().code == EIO) return fail(std::move(file).error());
        if (!file) {
            add(FindingId::InodeDamaged, number, file.error().message);
            return false;
        }
        if (!file->atomic) {
            if (file->unit)
                add(FindingId::UnitWithoutFlag, number, fmt::format("inode {}", number));
            return false;
        }
        if (!is_log(number)) ++report_.files;
        if (file->generation == 0)
            add(FindingId::GenerationZero, number, fmt::format("inode {}", number));
        if (!file->unit) {
            add(FindingId::FlagWithoutUnit, number, fmt::format("inode {}", number));
            return false;
        }
        if (const auto unit = check_unit(volume_, *file->unit); !unit) {
            add(FindingId::BadUnit, number, unit.error().message);
            return false;
        }
        A4_CHECK(check_mapping(*file));
        // What the bitmaps say is nothing that the file has to suffer for.
        return std::ranges::all_of(report_.findings.begin() + static_cast<std::ptrdiff_t>(before),
                                   report_.findings.end(), [](const Finding& finding) {
                                       return finding.id == FindingId::BlockFree ||
                                              finding.id == FindingId::BitmapDamaged;
                                   });
    }

    // The whole volume's: whom the blocks of atomic files belong to besides.
    Result<> check_sharing(InodeClaims& claims, const std::set<ext2_ino_t>& broken) {
        SharingReport sharing =
            A4_TRY(find_shared_blocks(volume_, claims, report_.intact, broken, orphans_));
        for (const SharedBlocks& shared : sharing.shared) {
            const FindingId id = shared.own      ? FindingId::BlocksAreMetadata
                                 : shared.atomic ? FindingId::AtomicGivesWay
                                                 : FindingId::BlocksShared;
            const std::string more = shared.count > Blocks(1)
                                         ? fmt::format(" and {} more", shared.count - Blocks(1))
                                         : std::string();
            add(id, shared.gives_way,
                fmt::format("inode {}: block {}{} of {}inode {}", shared.gives_way, shared.first,
                            more, shared.atomic ? "" : "atomic ", shared.stays));
        }
        for (const ext2_ino_t number : sharing.wrong_type) {
            const bool was =
                sharing.were_atomic.contains(number) || A4_TRY(was_an_atomic_file(number));
            add(was ? FindingId::WrongType : FindingId::MisplacedFlag, number,
                fmt::format("inode {}", number));
        }
        for (const ext2_ino_t number : sharing.no_links)
            add(FindingId::NoLinks, number, fmt::format("inode {}", number));
        report_.shared = std::move(sharing.shared);
        return {};
    }

    Result<> read_orphans() {
        orphans_ = A4_TRY(atomic4::read_orphans(volume_));
        return {};
    }

    // One that the kernel was cutting shorter isn't what it will be.
    Result<> copy_intact(ext2_ino_t number) {
        if (orphans_.contains(number)) return {};
        auto copy = copy_file(volume_, number, {});
        if (!copy && copy.error().code != EUCLEAN) return fail(std::move(copy).error());
        if (!copy || claims_twice(*copy)) {
            add(FindingId::InodeDamaged, number,
                copy ? "it claims a block twice" : copy.error().message);
            return {};
        }
        report_.intact.push_back(std::move(*copy));
        return {};
    }

    // Only of those that something is said about: it may take a walk through all directories.
    Result<> name_files() {
        std::set<ext2_ino_t> named;
        for (const Finding& finding : report_.findings) {
            if (finding.inode != 0) named.insert(finding.inode);
        }
        const auto paths = A4_TRY(paths_of(volume_, std::move(named)));
        for (Finding& finding : report_.findings) {
            if (finding.inode == 0) continue;
            const auto path = paths.find(finding.inode);
            finding.where =
                path == paths.end() ? fmt::format("inode {}", finding.inode) : path->second;
        }
        return {};
    }

    // Not even the log, whatever names lead to it, or somebody's atomic file.
    Result<bool> is_without_unit(ext2_ino_t number) {
        const auto file = read_file(volume_, number);
        if (!file && file.error().code == EIO) return fail(Error(file.error()));
        return file && !file->unit;
    }

    bool is_log_in_order() const { return log_in_order_; }

  private:
    // Among its data, its tree's nodes and its block of xattrs.
    bool claims_twice(const ProtectedFile& file) {
        std::vector<std::pair<Pblk, Blocks>> runs;
        for (const Mapping& mapping : file.mappings)
            runs.emplace_back(mapping.pblk, mapping.length);
        for (const ProtectedFile::Node& node : file.nodes) runs.emplace_back(node.block, Blocks(1));
        ext2_inode inode{};
        std::memcpy(&inode, file.inode.data(), std::min(sizeof inode, file.inode.size()));
        if (const uint64_t xattrs = ext2fs_file_acl_block(volume_.fs(), &inode); xattrs != 0)
            runs.emplace_back(Pblk(xattrs), Blocks(1));
        std::ranges::sort(runs);
        for (size_t i = 1; i < runs.size(); ++i) {
            if (runs[i].first < runs[i - 1].first + runs[i - 1].second) return true;
        }
        return false;
    }

    // By all but its mode: with a unit that its layout keeps, and no directory's contents.
    Result<bool> was_an_atomic_file(ext2_ino_t number) {
        if (number == EXT2_ROOT_INO || is_volumes_own(volume_.fs(), number)) return false;
        const auto file = read_file(volume_, number);
        if (!file && file.error().code == EIO) return fail(Error(file.error()));
        if (!file || !file->unit || !file->extent_mapped() || !check_unit(volume_, *file->unit))
            return false;
        const auto layout = check_layout(volume_, *file, *file->unit);
        if (!layout && layout.error().code == EIO) return fail(Error(layout.error()));
        return layout && layout->problems == 0 && !A4_TRY(begins_like_a_directory(*file));
    }

    Result<bool> begins_like_a_directory(const FileState& file) {
        const auto first =
            A4_TRY(map_range(volume_, file.number, file.inode, Lblk(0), Blocks(1))).front();
        if (first.state != MapState::Written) return false;
        std::vector<std::byte> block(volume_.block_size().value());
        A4_CHECK(volume_.device().read(ByteOffset(first.pblk.value() * block.size()), block));
        ext2_dir_entry entry{};
        std::memcpy(&entry, block.data(), 12);
        return entry.inode == file.number && ext2fs_dirent_name_len(&entry) == 1 &&
               entry.name[0] == '.';
    }

    bool is_log(ext2_ino_t number) const {
        return volume_.attr() && number == volume_.attr()->log_inode;
    }

    Result<> check_mapping(const FileState& file) {
        auto layout = check_layout(volume_, file, *file.unit);
        if (!layout && layout.error().code == EIO) return fail(std::move(layout).error());
        if (!layout) {
            const auto claims = claims_of(volume_, file.number);
            const auto own = std::ranges::find_if(claims, [&](const BlockClaim& claim) {
                return volume_.fixed_blocks().overlap(claim.run.start.value(),
                                                      claim.run.length.value());
            });
            if (own == claims.end()) {
                add(FindingId::InodeDamaged, file.number, layout.error().message);
            } else {
                add(FindingId::BlocksAreMetadata, file.number,
                    fmt::format("among {} from {} on", counted(own->run.length.value(), "block"),
                                own->run.start));
            }
            return {};
        }
        if (!is_log(file.number)) report_.units += layout->units_mapped;
        const uint64_t unit_blocks = file.unit->value() / volume_.block_size().value();
        for (const UnitProblem& problem : layout->first_problems) {
            add(finding_of(problem.fault), file.number,
                fmt::format("unit {} (block {})", problem.lblk.value() / unit_blocks,
                            problem.lblk));
        }
        if (layout->problems > layout->first_problems.size()) {
            add(finding_of(layout->first_problems.back().fault), file.number,
                fmt::format("and {} more units", layout->problems - layout->first_problems.size()));
        }
        auto in_use = check_in_use(file);
        if (in_use || in_use.error().code != EUCLEAN) return in_use;
        add(FindingId::BitmapDamaged, file.number, in_use.error().message);
        return {};
    }

    Result<> check_in_use(const FileState& file) {
        uint64_t free_blocks = 0;
        std::optional<Pblk> first_free;
        ext2_filsys fs = volume_.fs();
        for (const Mapping& mapping :
             A4_TRY(map_range(volume_, file.number, file.inode, Lblk(0), kWholeFile))) {
            if (mapping.state == MapState::Hole) continue;
            const uint64_t end = (mapping.pblk + mapping.length).value();
            for (uint64_t block = mapping.pblk.value(); block < end;) {
                const dgrp_t group = ext2fs_group_of_blk2(fs, block);
                const uint64_t last =
                    std::min<uint64_t>(end - 1, ext2fs_group_last_block2(fs, group));
                const auto bits = A4_TRY(volume_.block_bitmaps().get(group));
                const uint32_t stop = volume_.block_bitmaps().bit_of(last) + 1;
                for (uint32_t bit = volume_.block_bitmaps().bit_of(block); bit < stop;) {
                    if (bit % 8 == 0 && (*bits)[bit / 8] == 0xff) {
                        bit += 8;
                        continue;
                    }
                    if (((*bits)[bit / 8] >> (bit % 8) & 1) == 0) {
                        const Pblk at(
                            std::max(volume_.block_bitmaps().block_of(group, bit), block));
                        if (!first_free) first_free = at;
                        free_blocks += static_cast<uint64_t>(EXT2FS_CLUSTER_RATIO(fs));
                    }
                    ++bit;
                }
                block = last + 1;
            }
        }
        if (first_free) {
            add(FindingId::BlockFree, file.number,
                fmt::format("{} blocks, the first is {}", free_blocks, *first_free));
        }
        return {};
    }

    Volume& volume_;
    CheckReport& report_;
    std::set<ext2_ino_t> orphans_;
    bool log_in_order_ = false;  // it can be read
};

}  // namespace

int number_of(FindingId id) {
    return static_cast<int>(id);
}
Severity severity_of(FindingId id) {
    return row_of(id).severity;
}
const char* meaning_of(FindingId id) {
    return row_of(id).meaning;
}
Handling handling_of(FindingId id) {
    return row_of(id).handling;
}
const char* question_of(FindingId id) {
    return row_of(id).question;
}

bool CheckReport::clean() const {
    return std::all_of(findings.begin(), findings.end(), [](const Finding& finding) {
        return severity_of(finding.id) == Severity::Information;
    });
}

ProtectedSet CheckReport::take_protected_set(Bytes block_size) {
    std::set<ext2_ino_t> without;
    for (const SharedBlocks& sharing : shared) {
        if (sharing.atomic) without.insert(sharing.gives_way);
    }
    std::erase_if(intact, [&](const ProtectedFile& file) { return without.contains(file.number); });
    return {std::exchange(intact, {}), block_size};
}

Result<CheckReport> check_volume(Volume& volume, const OnGroup& progress) {
    CheckReport report;
    Checker checker(volume, report);
    A4_CHECK(checker.check_gate());
    checker.check_log();
    std::vector<ext2_ino_t> damaged;
    std::vector<ext2_ino_t> inodes;
    std::vector<ext2_ino_t> ordinary;  // with a unit
    InodeClaims claims(volume);
    DirectoriesAhead ahead(volume);
    A4_CHECK(claims.for_each(
        [&](const ClaimingInode& inode) {
            ahead.add(inode);
            if (!inode.checksum_ok && inode.inode.i_links_count != 0)
                damaged.push_back(inode.number);
            else if (inode.checksum_ok && is_atomic(inode.inode))
                inodes.push_back(inode.number);
            else if (inode.unit && is_ordinary(inode.inode))
                ordinary.push_back(inode.number);
        },
        progress));
    for (const ext2_ino_t inode : damaged) {
        checker.add(FindingId::InodeUnreadable, inode,
                    fmt::format("inode {}: the volume needs e2fsck", inode));
    }
    for (const ext2_ino_t inode : ordinary) A4_CHECK(checker.check_file(inode));
    A4_CHECK(checker.read_orphans());
    std::set<ext2_ino_t> broken;
    const auto lock = volume.attr() ? volume.lock_inode() : Result<ext2_ino_t>(0);
    for (const ext2_ino_t inode : inodes) {
        if (is_volumes_own(volume.fs(), inode)) continue;  // a misplaced flag
        if (lock && inode == *lock && A4_TRY(checker.is_without_unit(inode))) {
            checker.add(FindingId::MisplacedFlag, inode, fmt::format("inode {}", inode));
            continue;
        }
        const bool log = volume.attr() && inode == volume.attr()->log_inode;
        const size_t before = report.intact.size();
        if (A4_TRY(checker.check_file(inode)) && (!log || checker.is_log_in_order()))
            A4_CHECK(checker.copy_intact(inode));
        if (report.intact.size() == before) broken.insert(inode);
    }
    A4_CHECK(checker.check_sharing(claims, broken));
    A4_CHECK(checker.name_files());
    return report;
}

CheckReport check_log(Volume& volume) {
    CheckReport report;
    Checker(volume, report).check_log();
    return report;
}

Result<CheckReport> check_one_file(Volume& volume, const std::string& path) {
    CheckReport report;
    Checker checker(volume, report);
    const ext2_ino_t number = A4_TRY(lookup(volume, path));
    ext2_inode inode{};
    if (ext2fs_read_inode(volume.fs(), number, &inode) == 0 && LINUX_S_ISDIR(inode.i_mode))
        return fail(EISDIR, "{}: is a directory: check takes a file", path);
    A4_CHECK(checker.check_file(number));
    for (Finding& finding : report.findings) finding.where = path;
    return report;
}

}  // namespace atomic4
