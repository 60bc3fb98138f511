#include <nlohmann/json.hpp>

#include "atomic4ctl/commands.h"
#include "base/size_parse.h"
#include "base/text.h"
#include "common/json_report.h"
#include "common/open.h"
#include "common/progress.h"
#include "ext4/layout.h"

namespace atomic4::tools {

Result<int> run(const Context& context, const PreallocCommand& command) {
    Progress progress(fmt::format("allocating {}", printable(command.path)));
    OpenVolume opened = A4_TRY(open_to_write(context, command.device));
    Volume& volume = *opened.volume;
    NewFile file;
    file.size = command.size;
    file.unit = command.unit.value_or(volume.attr()->unit);
    file.mode = command.mode;
    file.uid = command.uid;
    file.gid = command.gid;
    const ext2_ino_t inode = A4_TRY(create_atomic_file(volume, command.path, file));
    progress.finish();
    const uint64_t units = (file.size.value() + file.unit.value() - 1) / file.unit.value();
    if (context.json) {
        const nlohmann::json json = {{"path", command.path},
                                     {"inode", inode},
                                     {"size", file.size.value()},
                                     {"unit", file.unit.value()},
                                     {"units", units}};
        print_json(context, json);
    } else {
        context.print(fmt::format("{}: {} in {} aligned units of {}, inode {}\n",
                                  printable(command.path), format_size(file.size), units,
                                  format_size(file.unit), inode));
    }
    return 0;
}

}  // namespace atomic4::tools
