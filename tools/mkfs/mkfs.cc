#include "mkfs/mkfs.h"

#include <blkid/blkid.h>
#include <fcntl.h>
#include <spawn.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cctype>
#include <csignal>
#include <cstring>
#include <iterator>
#include <map>
#include <sstream>

#include "base/size_parse.h"
#include "common/fstab_note.h"
#include "common/open.h"
#include "common/progress.h"
#include "device/ownership.h"
#include "ext4/features.h"
#include "ext4/format.h"

namespace atomic4::tools {

namespace {

std::vector<std::string> words_of(std::string text) {
    for (char& c : text) c = c == ',' ? ' ' : static_cast<char>(std::tolower(c));
    std::istringstream stream(text);
    return {std::istream_iterator<std::string>(stream), {}};
}

// The -O words, in mke2fs's way: "none" clears all, ^ and - one.
Result<> check_feature_words(const std::string& features) {
    std::map<std::string, std::string> clearing{{"extent", ""}, {"ext_attr", ""}};
    std::optional<std::string> refused;
    for (const std::string& word : words_of(features)) {
        const bool clear = word[0] == '^' || word[0] == '-';
        std::string name = word.substr(clear || word[0] == '+' ? 1 : 0);
        if (name == "extents") name = "extent";
        if (word == "none") {
            for (auto& [feature, by] : clearing) by = word;
            refused.reset();
        } else if (const auto needed = clearing.find(name); needed != clearing.end()) {
            needed->second = clear ? word : "";
        } else if (clear && refused == name) {
            refused.reset();
        } else if (!clear && !refused && is_refused_feature(name)) {
            refused = name;
        }
    }
    if (refused) return fail(EOPNOTSUPP, "-O {}: atomic4 does not support it", *refused);
    for (const auto& [name, what] :
         {std::pair{"extent", "extents"}, std::pair{"ext_attr", "extended attributes"}}) {
        if (!clearing[name].empty())
            return fail(EOPNOTSUPP, "-O {}: atomic4 needs {}", clearing[name], what);
    }
    return {};
}

// mke2fs's other options.
Result<> check_option(const std::string& option, const std::string& value) {
    if (option == "-r") {
        char* end = nullptr;
        if (strtoul(value.c_str(), &end, 0) == 0 && end != value.c_str() && *end == '\0')
            return fail(EOPNOTSUPP, "-r {}: atomic4 needs revision 1", value);
    }
    for (const std::string& word : words_of(value)) {
        if (option == "-E" && word.starts_with("offset=")) {
            return fail(EOPNOTSUPP,
                        "-E {}: atomic4 works on a whole device or image: give the partition, or a "
                        "loop device with that offset",
                        word);
        }
        if (option == "-J" && word.starts_with("device="))
            return fail(EOPNOTSUPP, "-J {}: atomic4 needs the journal on the volume itself", word);
    }
    return {};
}

// What would make a volume which cannot be enabled: refused before formatting.
Result<> check_wishes(const MkfsCommand& command) {
    A4_CHECK(check_feature_words(command.features));
    const auto& options = command.mke2fs_options;
    for (size_t i = 0; i + 1 < options.size(); ++i)
        A4_CHECK(check_option(options[i], options[i + 1]));
    const uint64_t block_size = command.block_size.value_or(1024);
    const uint64_t unit = command.unit.value_or(Bytes(std::max(kUnitDefault, block_size))).value();
    if (!is_power_of_two(unit) || unit < block_size || unit > kUnitMax) {
        return fail(EINVAL, "-u {}: want a power of two from the block size to {}", unit,
                    format_size(Bytes(kUnitMax)));
    }
    return {};
}

Result<> refuse_known_signature(const std::string& device) {
    blkid_probe probe = blkid_new_probe_from_filename(device.c_str());
    if (probe == nullptr) return {};  // mke2fs will say what is wrong with it
    blkid_probe_enable_superblocks(probe, 1);
    blkid_probe_enable_partitions(probe, 1);
    std::string found;
    const char* value = nullptr;
    const int probed = blkid_do_safeprobe(probe);
    if (probed == -2) {
        found = "several signatures";
    } else if (probed == 0) {
        for (const char* name : {"TYPE", "PTTYPE"}) {
            if (found.empty() && blkid_probe_lookup_value(probe, name, &value, nullptr) == 0)
                found = value;
        }
    }
    blkid_free_probe(probe);
    if (found.empty()) return {};
    return fail(EEXIST, "{}: holds {} already: -F overwrites it", device, found);
}

// mke2fs runs with our terminal, so an interrupt reaches it too; we wait for what becomes of it.
enum class Run { First, Again };
Result<> run_mke2fs(const MkfsCommand& command, Run which) {
    std::vector<std::string> arguments{"mke2fs", "-t", "ext4"};
    arguments.insert(arguments.end(), command.mke2fs_options.begin(), command.mke2fs_options.end());
    if (which == Run::Again) arguments.emplace_back("-F");
    arguments.push_back(command.device);
    if (command.size) arguments.push_back(*command.size);
    std::vector<char*> argv;
    for (std::string& argument : arguments) argv.push_back(argument.data());
    argv.push_back(nullptr);

    struct sigaction ignore{};
    struct sigaction interrupt_before{};
    ignore.sa_handler = SIG_IGN;
    sigaction(SIGINT, &ignore, &interrupt_before);
    // Others who want to stop us wait as well: mke2fs finishes, and then nothing more is done.
    sigset_t stopping;
    sigset_t mask_before;
    sigemptyset(&stopping);
    for (const int signal : {SIGTERM, SIGHUP, SIGQUIT, SIGPIPE}) sigaddset(&stopping, signal);
    sigprocmask(SIG_BLOCK, &stopping, &mask_before);
    posix_spawnattr_t attributes;
    posix_spawnattr_init(&attributes);
    sigset_t defaults;
    sigemptyset(&defaults);
    sigaddset(&defaults, SIGINT);
    posix_spawnattr_setsigdefault(&attributes, &defaults);
    posix_spawnattr_setsigmask(&attributes, &mask_before);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSIGMASK);
    // Users' PATHs often lack the place where mke2fs is.
    const char* path_before = getenv("PATH");
    const std::string path =
        fmt::format("{}:/usr/sbin:/sbin", path_before != nullptr ? path_before : "/usr/bin:/bin");
    setenv("PATH", path.c_str(), 1);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    // Even with -q it tells that it creates an image.
    if (command.quiet || which == Run::Again)
        posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, "/dev/null", O_WRONLY, 0);
    pid_t pid = -1;
    const int error = posix_spawnp(&pid, "mke2fs", &actions, &attributes, argv.data(), environ);
    posix_spawn_file_actions_destroy(&actions);
    posix_spawnattr_destroy(&attributes);
    if (error != 0)
        return fail(
            Error::from_errno(error, "mke2fs cannot be run (it is in the package e2fsprogs)"));
    int status = 0;
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {
    }
    // From here to the end an interrupt would leave a half-enabled volume: it stays ignored, and
    // the others stay blocked.
    if (WIFSIGNALED(status)) {
        const char* name = sigabbrev_np(WTERMSIG(status));
        return fail(EINTR, "mke2fs was killed by SIG{}",
                    name != nullptr ? name : std::to_string(WTERMSIG(status)));
    }
    if (WEXITSTATUS(status) != 0)
        return fail(EIO, "mke2fs failed with exit status {}: atomic4 was not enabled",
                    WEXITSTATUS(status));
    sigset_t pending;
    sigpending(&pending);
    for (const int signal : {SIGTERM, SIGHUP, SIGQUIT}) {
        if (which == Run::First && sigismember(&pending, signal) == 1)
            return fail(EINTR, "stopped by signal {} ({}) after mke2fs: {} is a plain ext4", signal,
                        strsignal(signal), command.device);
    }
    return {};
}

}  // namespace

Result<EnablePlan> enable_new(const Context& context, const MkfsCommand& command,
                              const EnableOptions& options, bool& half_done) {
    Progress progress("enabling atomic4");
    const auto volume = A4_TRY(open_any_to_write(context, command.device));
    const auto enabled = enable(*volume, options);
    half_done = !volume->usable();
    progress.finish();
    const EnablePlan plan = A4_TRY(enabled);
    if (!command.quiet) {
        warn_about_device(context, volume->device(), plan.unit);
        warn_about_fstab(context, *volume);
    }
    return plan;
}

Result<int> run(const Context& context, const MkfsCommand& command) {
    A4_CHECK(check_wishes(command));
    struct stat info{};
    const bool exists = stat(command.device.c_str(), &info) == 0;
    if (!exists && (command.dry_run || !command.size)) {
        return fail(
            ENOENT, "{}: does not exist{}", command.device,
            command.dry_run ? " (-n creates nothing)" : ": to make an image, give its SIZE");
    }
    if (exists && !S_ISREG(info.st_mode) && !S_ISBLK(info.st_mode))
        return fail(EINVAL, "{}: neither a block device nor a regular file", command.device);
    // A SIZE has its own rules, which are mke2fs's: the volume's size is then known afterwards.
    std::optional<Bytes> volume_size;
    if (exists) {
        A4_CHECK(refuse_if_in_use(command.device));
        if (!command.force) A4_CHECK(refuse_known_signature(command.device));
        // Locked by another, not writable: better known before mke2fs has begun.
        const auto device = A4_TRY(context.open_device(
            command.device, command.dry_run ? Access::ReadOnly : Access::ReadWrite,
            Sharing::Exclusive));
        if (!command.size) volume_size = device->size();
        if (volume_size == Bytes(0))
            return fail(EINVAL, "{}: is empty: give the filesystem's SIZE", command.device);
    }
    EnableOptions options;
    options.unit = command.unit.value_or(Bytes(0));  // the default for the block size
    options.log_size = command.log_size;
    // What can be wrong with these is said before there is a volume without them.
    const EnablePlan plan = A4_TRY(plan_enable(Bytes(command.block_size.value_or(1024)),
                                               volume_size.value_or(Bytes(UINT64_MAX)), options));
    const std::string incomplete =
        fmt::format("{} may hold an incomplete filesystem: format it again", command.device);
    if (auto formatted = run_mke2fs(command, Run::First); !formatted) {
        Error error = formatted.error();
        if (error.code == EINTR && !command.dry_run) error.message += "; " + incomplete;
        return fail(std::move(error));
    }
    if (command.dry_run) {
        const bool log_known = volume_size || command.log_size;
        context.print(fmt::format(
            "{}: would then enable atomic4, unit {}, redo log {}; nothing was changed\n",
            command.device, format_size(plan.unit),
            log_known ? format_size(plan.log_size)
                      : std::string("1/64 of the volume, at most 256M")));
        return 0;
    }
    bool half_done = false;
    const auto enabled = enable_new(context, command, options, half_done);
    if (!enabled) {
        Error error = enabled.error();
        // The volume is new and empty: formatting it once more is the way back to a clean one.
        const auto restored = half_done ? run_mke2fs(command, Run::Again) : Result<>();
        error.message +=
            restored ? fmt::format("; {} holds a plain ext4 without atomic4", command.device)
                     : fmt::format("; then {}; {}", restored.error().message, incomplete);
        return fail(std::move(error));
    }
    if (!command.quiet) {
        context.print(fmt::format("{}: atomic4 enabled, unit {}, redo log {}\n", command.device,
                                  format_size(enabled->unit), format_size(enabled->log_size)));
    }
    return 0;
}

}  // namespace atomic4::tools
