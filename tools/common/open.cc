#include "common/open.h"

#include "base/text.h"
#include "common/progress.h"

namespace atomic4::tools {

void warn_of_repairs(const Context& context, const std::string& device,
                     const std::vector<std::string>& notices) {
    for (const std::string& notice : notices) context.warn(fmt::format("{}: {}", device, notice));
}

void warn_of_interruption(const Context& context, const std::string& device) {
    context.warn(
        fmt::format("{}: an earlier enable or disable had been interrupted: check the "
                    "volume with fsck.atomic4 -f before it is mounted",
                    device));
}

namespace {

Result<std::unique_ptr<Volume>> open_and_warn(const Context& context, const std::string& device,
                                              Access access, Sharing sharing,
                                              const VolumeOptions& options) {
    auto volume =
        A4_TRY(Volume::open(A4_TRY(context.open_device(device, access, sharing)), options));
    warn_of_repairs(context, device, volume->notices());
    return volume;
}

}  // namespace

Result<OpenVolume> open_to_write(const Context& context, const std::string& device) {
    const Progress progress("replaying the redo log");
    auto opened = A4_TRY(open_for_writing(
        A4_TRY(context.open_device(device, Access::ReadWrite, Sharing::Exclusive))));
    warn_of_repairs(context, device, opened.volume->notices());
    if (opened.replayed && opened.replayed->records > 0) {
        context.warn(fmt::format("{}: replayed {} ({} bytes) that a crash had left", device,
                                 counted(opened.replayed->records, "record"),
                                 opened.replayed->bytes));
    }
    return opened;
}

Result<std::unique_ptr<Volume>> open_to_look(const Context& context, const std::string& device) {
    return open_and_warn(context, device, Access::ReadOnly, Sharing::Exclusive, VolumeOptions{});
}

Result<std::unique_ptr<Volume>> open_to_inspect(const Context& context, const std::string& device) {
    VolumeOptions options;
    options.purpose = OpenFor::Inspect;
    options.require_atomic4 = false;
    return open_and_warn(context, device, Access::ReadOnly, Sharing::Shared, options);
}

Result<std::unique_ptr<Volume>> open_any_to_write(const Context& context,
                                                  const std::string& device) {
    VolumeOptions options;
    options.purpose = OpenFor::Write;
    options.require_atomic4 = false;
    options.every_copy = true;
    return open_and_warn(context, device, Access::ReadWrite, Sharing::Exclusive, options);
}

}  // namespace atomic4::tools
