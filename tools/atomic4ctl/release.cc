#include <nlohmann/json.hpp>

#include "atomic4ctl/commands.h"
#include "base/text.h"
#include "common/json_report.h"
#include "common/open.h"
#include "common/progress.h"
#include "ext4/path.h"
#include "writer/adopt.h"

namespace atomic4::tools {

Result<int> run(const Context& context, const ReleaseCommand& command) {
    Progress progress(fmt::format("releasing {}", printable(command.path)));
    const OpenVolume opened = A4_TRY(open_to_write(context, command.device));
    Volume& volume = *opened.volume;
    const ext2_ino_t inode = A4_TRY(lookup(volume, command.path));
    const bool changed = A4_TRY(release_if_atomic(volume, inode).context(command.path));
    progress.finish();
    if (context.json) {
        const nlohmann::json json = {
            {"path", command.path}, {"inode", inode}, {"changed", changed}};
        print_json(context, json);
    } else if (changed) {
        context.print(
            fmt::format("{}: released: nothing promises its layout any more; its data stays\n",
                        printable(command.path)));
    } else {
        context.print(fmt::format("{}: no atomic file: nothing to do\n", printable(command.path)));
    }
    return 0;
}

}  // namespace atomic4::tools
