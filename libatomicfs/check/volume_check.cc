#include "check/volume_check.h"

#include <algorithm>
#include <set>

#include "base/text.h"
#include "ext4/format.h"
#include "ext4/layout.h"
#include "ext4/path.h"
#include "redo/log_reader.h"
#include "redo/volume_log.h"

namespace atomic4 {

namespace {

struct FindingRow {
    FindingId id;
    Severity severity;
    const char* meaning;
};

constexpr FindingRow kFindings[] = {
#define A4_FINDING(number, name, severity, meaning) {FindingId::name, Severity::severity, meaning},
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

class Checker {
  public:
    Checker(Volume& volume, CheckReport& report) : volume_(volume), report_(report) {}

    void add(FindingId id, std::string where, std::string detail) {
        report_.findings.push_back({id, std::move(where), std::move(detail)});
    }

    Result<> check_gate() {
        A4_CHECK(volume_.read_every_copy());
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
        if (!volume_.attr()) {
            add(FindingId::AttributeDamaged, "/",
                volume_.attr_error() ? volume_.attr_error()->message : "it is missing");
            return;
        }
        auto log = open_log_device(volume_);
        if (!log) {
            add(FindingId::LogDamaged, "redo log", log.error().message);
            return;
        }
        const auto contents = read_log(**log, volume_.attr()->log_id);
        if (!contents) {
            add(FindingId::LogDamaged, "redo log", contents.error().message);
            return;
        }
        if (!contents->superblock_damage.empty())
            add(FindingId::LogDamaged, "redo log", contents->superblock_damage);
        if (contents->end == LogEnd::Corrupt)
            add(FindingId::LogDamaged, "redo log", contents->end_detail);
        if (!contents->live.empty()) {
            add(FindingId::LiveRecords, "redo log",
                fmt::format("{}: run atomic4ctl recover",
                            counted(contents->live.size(), "record")));
        } else if (volume_.needs_replay()) {
            add(FindingId::NeedsReplayWithoutRecords, "superblock", "run atomic4ctl recover");
        }
    }

    Result<> check_file(ext2_ino_t number, const std::string& where) {
        auto file = read_file(volume_, number);
        if (!file && file.error().code == EIO) return fail(std::move(file).error());
        if (!file) {
            add(FindingId::InodeDamaged, where, file.error().message);
            return {};
        }
        if (!file->atomic) {
            if (file->unit) add(FindingId::UnitWithoutFlag, where, fmt::format("inode {}", number));
            return {};
        }
        if (!is_log(number)) ++report_.files;
        if (file->generation == 0)
            add(FindingId::GenerationZero, where, fmt::format("inode {}", number));
        if (!file->unit) {
            add(FindingId::FlagWithoutUnit, where, fmt::format("inode {}", number));
            return {};
        }
        if (const auto unit = check_unit(volume_, *file->unit); !unit) {
            add(FindingId::BadUnit, where, unit.error().message);
            return {};
        }
        return check_mapping(*file, where);
    }

  private:
    bool is_log(ext2_ino_t number) const {
        return volume_.attr() && number == volume_.attr()->log_inode;
    }

    Result<> check_mapping(const FileState& file, const std::string& where) {
        auto layout = check_layout(volume_, file, *file.unit);
        if (!layout && layout.error().code == EIO) return fail(std::move(layout).error());
        if (!layout) {
            add(FindingId::InodeDamaged, where, layout.error().message);
            return {};
        }
        if (!is_log(file.number)) report_.units += layout->units_mapped;
        const uint64_t unit_blocks = file.unit->value() / volume_.block_size().value();
        for (const UnitProblem& problem : layout->first_problems) {
            add(finding_of(problem.fault), where,
                fmt::format("unit {} (block {})", problem.lblk.value() / unit_blocks,
                            problem.lblk));
        }
        if (layout->problems > layout->first_problems.size()) {
            add(finding_of(layout->first_problems.back().fault), where,
                fmt::format("and {} more units", layout->problems - layout->first_problems.size()));
        }
        auto in_use = check_in_use(file, where);
        if (in_use || in_use.error().code != EUCLEAN) return in_use;
        add(FindingId::BitmapDamaged, where, in_use.error().message);
        return {};
    }

    Result<> check_in_use(const FileState& file, const std::string& where) {
        uint64_t free_blocks = 0;
        std::optional<Pblk> first_free;
        for (const Mapping& mapping :
             A4_TRY(map_range(volume_, file.number, file.inode, Lblk(0), kWholeFile))) {
            if (mapping.state == MapState::Hole) continue;
            for (uint64_t i = 0; i < mapping.length.value(); ++i) {
                const uint64_t block = mapping.pblk.value() + i;
                const dgrp_t group = ext2fs_group_of_blk2(volume_.fs(), block);
                if (group != group_ || !bits_) {
                    bits_ = A4_TRY(volume_.block_bitmaps().get(group));
                    group_ = group;
                }
                const uint32_t bit = volume_.block_bitmaps().bit_of(block);
                if (((*bits_)[bit / 8] >> (bit % 8) & 1) != 0) continue;
                if (!first_free) first_free = Pblk(block);
                ++free_blocks;
            }
        }
        if (first_free) {
            add(FindingId::BlockFree, where,
                fmt::format("{} blocks, the first is {}", free_blocks, *first_free));
        }
        return {};
    }

    Volume& volume_;
    CheckReport& report_;
    dgrp_t group_ = 0;
    std::shared_ptr<const GroupBitmaps::Bits> bits_;
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

bool CheckReport::clean() const {
    return std::all_of(findings.begin(), findings.end(), [](const Finding& finding) {
        return severity_of(finding.id) == Severity::Information;
    });
}

Result<CheckReport> check_volume(Volume& volume) {
    CheckReport report;
    Checker checker(volume, report);
    A4_CHECK(checker.check_gate());
    checker.check_log();
    std::vector<ext2_ino_t> damaged;
    const auto inodes = A4_TRY(find_atomic_inodes(volume, &damaged));
    std::set<ext2_ino_t> named(inodes.begin(), inodes.end());
    named.insert(damaged.begin(), damaged.end());
    const auto paths = A4_TRY(paths_of(volume, std::move(named)));
    const auto where = [&](ext2_ino_t inode) {
        const auto path = paths.find(inode);
        return path == paths.end() ? fmt::format("inode {}", inode) : path->second;
    };
    for (const ext2_ino_t inode : damaged) {
        checker.add(FindingId::InodeUnreadable, where(inode),
                    fmt::format("inode {}: the volume needs e2fsck", inode));
    }
    for (const ext2_ino_t inode : inodes) A4_CHECK(checker.check_file(inode, where(inode)));
    return report;
}

Result<CheckReport> check_one_file(Volume& volume, const std::string& path) {
    CheckReport report;
    Checker checker(volume, report);
    const ext2_ino_t number = A4_TRY(lookup(volume, path));
    ext2_inode inode{};
    if (ext2fs_read_inode(volume.fs(), number, &inode) == 0 && LINUX_S_ISDIR(inode.i_mode))
        return fail(EISDIR, "{}: is a directory: check takes a file", path);
    A4_CHECK(checker.check_file(number, path));
    return report;
}

}  // namespace atomic4
