#include <nlohmann/json.hpp>

#include "atomic4ctl/commands.h"
#include "base/size_parse.h"
#include "base/text.h"
#include "common/json_report.h"
#include "common/open.h"
#include "common/progress.h"
#include "ext4/atomic_file.h"
#include "ext4/path.h"

namespace atomic4::tools {

Result<int> run(const Context& context, const LsCommand& command) {
    Progress progress("looking for atomic files");
    const auto volume = A4_TRY(open_to_look(context, command.device));
    const auto inodes = A4_TRY(find_atomic_inodes(*volume));
    const auto paths = A4_TRY(paths_of(*volume, {inodes.begin(), inodes.end()}));
    nlohmann::json files = nlohmann::json::array();
    std::string text;
    for (const ext2_ino_t inode : inodes) {
        if (inode == volume->attr()->log_inode) continue;
        const FileState file = A4_TRY(read_file(*volume, inode));
        const auto path = paths.find(inode);
        const std::string name =
            path == paths.end() ? fmt::format("(inode {}, no name)", inode) : path->second;
        files.push_back(
            {{"path", path == paths.end() ? nlohmann::json(nullptr) : nlohmann::json(path->second)},
             {"inode", inode},
             {"size", file.size.value()},
             {"unit", file.unit.value_or(Bytes(0)).value()}});
        text += fmt::format("{:>6} {:>14} {}\n",
                            file.unit ? format_size(*file.unit) : std::string("none"), file.size,
                            printable(name));
    }
    progress.finish();
    if (context.json)
        print_json(context, files);
    else if (!text.empty())
        context.print(fmt::format("{:>6} {:>14} {}\n", "unit", "size", "path") + text);
    return 0;
}

}  // namespace atomic4::tools
