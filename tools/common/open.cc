#include "common/open.h"

#include "base/text.h"
#include "common/progress.h"

namespace atomic4::tools {

Result<OpenVolume> open_to_write(const Context& context, const std::string& device) {
    const Progress progress("replaying the redo log");
    auto opened = A4_TRY(open_for_writing(
        A4_TRY(context.open_device(device, Access::ReadWrite, Sharing::Exclusive))));
    if (opened.replayed && opened.replayed->records > 0) {
        context.warn(fmt::format("{}: replayed {} ({} bytes) that a crash had left", device,
                                 counted(opened.replayed->records, "record"),
                                 opened.replayed->bytes));
    }
    return opened;
}

Result<std::unique_ptr<Volume>> open_to_look(const Context& context, const std::string& device) {
    return Volume::open(A4_TRY(context.open_device(device, Access::ReadOnly, Sharing::Exclusive)),
                        VolumeOptions{});
}

Result<std::unique_ptr<Volume>> open_any_to_write(const Context& context,
                                                  const std::string& device) {
    VolumeOptions options;
    options.purpose = OpenFor::Write;
    options.require_atomic4 = false;
    return Volume::open(A4_TRY(context.open_device(device, Access::ReadWrite, Sharing::Exclusive)),
                        options);
}

}  // namespace atomic4::tools
