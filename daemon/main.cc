// atomic4d: parses, keeps, serves (keeper.h, server.h).
#include <fcntl.h>
#include <grp.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/sinks/syslog_sink.h>
#include <spdlog/spdlog.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <iostream>

#include "base/program.h"
#include "client/default_socket.h"
#include "daemon/capabilities.h"
#include "daemon/detach.h"
#include "daemon/gate_openers.h"
#include "daemon/keeper.h"
#include "daemon/server.h"
#include "daemon/service_manager.h"
#include "daemon/socket.h"

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/lsan_interface.h>
#endif

namespace atomic4 {
namespace {

struct Options {
    std::string target;
    std::string socket;
    std::string socket_mode = "0660";
    std::string socket_group;
    std::string stats_file;
    std::string engine = "auto";
    std::string backend = "auto";
    std::string log_level = "info";
    std::string pid_file;
    uint64_t spin_us = 50;
    bool foreground = false;
    bool no_watch = false;
};

void set_up_log(const Options& options) {
    auto logger = options.foreground ? spdlog::stderr_logger_st("atomic4d")
                                     : spdlog::syslog_logger_st("atomic4d", "atomic4d", LOG_PID);
    // The journal and syslog have their own times.
    const bool journal = std::getenv("JOURNAL_STREAM") != nullptr || !options.foreground;
    logger->set_pattern(journal ? "%v" : "%Y-%m-%d %H:%M:%S.%e %n[%P] %l: %v");
    logger->set_level(spdlog::level::from_str(options.log_level));
    logger->flush_on(spdlog::level::info);
    spdlog::set_default_logger(logger);
}

EventLoop::Backend backend_of(const std::string& name) {
    return name == "uring"      ? EventLoop::Backend::Uring
           : name == "syscalls" ? EventLoop::Backend::Syscalls
                                : EventLoop::Backend::Auto;
}

UniqueFd signal_descriptor() {
    sigset_t signals;
    sigemptyset(&signals);
    for (const int signal : {SIGTERM, SIGINT, SIGHUP}) sigaddset(&signals, signal);
    sigprocmask(SIG_BLOCK, &signals, nullptr);
    return UniqueFd(::signalfd(-1, &signals, SFD_NONBLOCK | SFD_CLOEXEC));
}

// One life of the worker. Exit status: 0 stopped; 75 to be started again; 1 an error.
int serve(const Options& options, const UniqueFd& listener, WorkerStart start, Detached& detached) {
    const auto failed = [&](const Error& error) {
        spdlog::error("{}", error.message);
        detached.failed("atomic4d: " + error.message);
        return 1;
    };
    ::signal(SIGPIPE, SIG_IGN);
    UniqueFd signals = signal_descriptor();
    if (!signals) return failed(Error::from_errno(errno, "signalfd"));
    auto loop = EventLoop::create(backend_of(options.backend));
    if (!loop) return failed(loop.error());

    ServiceOptions service;
    service.target = options.target;
    service.guard_unbroken = start.restarts > 0;
    const auto opens = std::make_shared<GateClient>(std::move(start.opens));
    if (options.no_watch)
        service.why_no_openers = "switched off by --no-watch";
    else if (!opens->can_watch())
        service.why_no_openers = "the kernel gives no fanotify permission events here";
    else
        service.openers = std::make_unique<GateOpeners>(opens);
    auto volume = VolumeService::open(**loop, std::move(service),
                                      [](const std::string& line) { spdlog::info("{}", line); });
    if (!volume) return failed(volume.error());
    UniqueFd mine(::fcntl(listener.get(), F_DUPFD_CLOEXEC, 0));
    if (!mine || ::listen(mine.get(), SOMAXCONN) != 0)
        return failed(Error::from_errno(errno, "listening on the socket"));

    ServerOptions server;
    server.target_name = options.target;
    server.stats_file = options.stats_file;
    server.spin = std::chrono::microseconds(options.spin_us);
    server.engine = parse_engine(options.engine).value_or(Engine::Auto);
    server.info = [](const std::string& line) { spdlog::info("{}", line); };
    server.warn = [](const std::string& line) { spdlog::warn("{}", line); };
    Server it(**loop, **volume, std::move(mine), std::move(signals), std::move(server));
    if (auto told = opens->ready(); !told) return failed(told.error());
    spdlog::info("serving {} ({}) on {}, {}{}", options.target,
                 (*volume)->kind() == wire::TargetKind::Mounted ? "mounted" : "owned",
                 options.socket, (*loop)->name(),
                 start.restarts > 0 ? fmt::format(", restart {}", start.restarts) : "");
    // The keeper is the process to be signalled: it passes signals on.
    if (auto told = notify_ready("serving " + options.target); !told)
        spdlog::warn("{}", told.error().message);
    detached.ready();
    const auto ended = it.run();
    (void)notify_stopping("stopping").has_value();
    if (!ended) {
        spdlog::error("{}", ended.error().message);
        return it.stopping() ? 1 : kRestartStatus;
    }
    spdlog::info("stopped");
    return 0;
}

// An octal mode, as chmod(1) takes it.
std::optional<mode_t> parse_mode(const std::string& text) {
    if (text.empty() || text.size() > 4 || text.find_first_not_of("01234567") != std::string::npos)
        return std::nullopt;
    const unsigned long mode = std::stoul(text, nullptr, 8);
    return mode <= 0777 ? std::optional(static_cast<mode_t>(mode)) : std::nullopt;
}

Result<SocketAccess> socket_access(const Options& options) {
    SocketAccess access;
    access.mode = parse_mode(options.socket_mode).value_or(access.mode);
    if (options.socket_group.empty()) return access;
    const struct group* found = ::getgrnam(options.socket_group.c_str());
    if (found == nullptr)
        return fail(ENOENT, "--socket-group {}: there is no such group", options.socket_group);
    access.group = found->gr_gid;
    return access;
}

// Its file is ours to remove, unless the service manager made it.
struct Listener {
    UniqueFd socket;
    std::string own_file;
};

Result<Listener> listener_for(Options& options) {
    auto passed = A4_TRY(listen_socket());
    if (passed) {
        options.socket = "the service manager's socket";
        return Listener{std::move(*passed), {}};
    }
    if (options.socket.empty())
        options.socket = default_socket_path(A4_TRY(uuid_of_target(options.target)));
    return Listener{A4_TRY(bind_socket(options.socket, A4_TRY(socket_access(options)))),
                    options.socket};
}

int run(Options options) {
    // Many clients, each with a descriptor or two.
    rlimit files{};
    if (::getrlimit(RLIMIT_NOFILE, &files) == 0 && files.rlim_cur < files.rlim_max) {
        files.rlim_cur = files.rlim_max;
        ::setrlimit(RLIMIT_NOFILE, &files);
    }
    const auto complain = [](const Error& error) {
        std::cerr << "atomic4d: " << error.message << "\n";
        return 1;
    };
    // The background has another working directory.
    for (std::string* path :
         {&options.target, &options.socket, &options.stats_file, &options.pid_file}) {
        if (!path->empty() && !options.foreground) *path = std::filesystem::absolute(*path);
    }
    // Before any thread, and for the worker too.
    if (auto dropped = drop_client_capabilities(); !dropped) return complain(dropped.error());
    auto detached = options.foreground ? Result<Detached>(Detached()) : detach();
    if (!detached) return complain(detached.error());
    if (detached->parent()) return detached->wait();

    auto listener = listener_for(options);
    const auto failed = [&](const Error& error) {
        if (options.foreground) return complain(error);
        detached->failed("atomic4d: " + error.message);
        return 1;
    };
    if (!listener) return failed(listener.error());
    if (auto dropped = drop_start_capabilities(); !dropped) return failed(dropped.error());

    set_up_log(options);

    KeeperOptions keeper;
    if (!options.no_watch) {
        if (auto group = OpenWatch::new_group()) keeper.group = std::move(*group);
    }
    keeper.report = [](const std::string& line) { spdlog::warn("{}", line); };
    keeper.on_let_through = [&options](const WorkerEnd& end) {
        // From here on anybody may write newer bytes over what is live in the log.
        if (!end.was_ready || !is_mounted_target(options.target)) return;
        if (auto noted = note_unguarded(options.target); !noted)
            spdlog::error("openers go on unguarded, which can't be noted: {}",
                          noted.error().message);
    };
    if (!options.pid_file.empty()) {
        std::ofstream out(options.pid_file);
        out << ::getpid() << "\n";
        if (!out.flush())
            return failed(Error{EIO, options.pid_file + ": the process id can't be written"});
    }
    auto status = run_keeper(std::move(keeper), [&](WorkerStart start) {
        const int ended = serve(options, listener->socket, std::move(start), *detached);
#ifdef __SANITIZE_ADDRESS__
        // A worker ends without the exit functions, one of which would look.
        __lsan_do_leak_check();
#endif
        return ended;
    });
    if (!listener->own_file.empty()) ::unlink(listener->own_file.c_str());
    if (!options.pid_file.empty()) ::unlink(options.pid_file.c_str());
    if (!status) return failed(status.error());
    return *status;
}

int main_program(int argc, char** argv) {
    Options options;
    CLI::App app{
        "Carries out atomic direct writes for the clients of a mounted or owned ext4 volume.",
        "atomic4d"};
    app.set_version_flag("-V,--version", std::string("atomic4d ") + ATOMIC4_VERSION);
    app.add_option("TARGET", options.target,
                   "Mount point, mounted device, or unmounted device or image")
        ->required();
    app.add_option("--socket", options.socket, "Socket to listen on [/run/atomic4/UUID.sock]")
        ->type_name("PATH");
    app.add_option("--socket-mode", options.socket_mode, "Who may connect: the socket's mode")
        ->type_name("OCTAL")
        ->check([](const std::string& text) {
            return parse_mode(text) ? std::string() : "not an octal mode up to 0777: " + text;
        })
        ->capture_default_str();
    app.add_option("--socket-group", options.socket_group,
                   "Who may connect: the socket's group [the daemon's]")
        ->type_name("NAME");
    app.add_option("--engine", options.engine, "Engine of files that don't ask for one")
        ->check(CLI::IsMember({"auto", "native", "logged"}))
        ->capture_default_str();
    // The unit names one, which a user's options may replace.
    app.add_option("--stats", options.stats_file, "Write counters there as Prometheus text")
        ->type_name("FILE")
        ->take_last();
    app.add_option("--spin", options.spin_us,
                   "Microseconds to look for requests before sleeping; 0: sleep at once")
        ->check(CLI::Range(0, 10000))
        ->capture_default_str();
    app.add_option("--backend", options.backend, "How I/O is done")
        ->check(CLI::IsMember({"auto", "uring", "syscalls"}))
        ->capture_default_str();
    app.add_option("--log-level", options.log_level, "What is logged")
        ->check(CLI::IsMember({"debug", "info", "warn", "error"}))
        ->capture_default_str();
    app.add_option("--pid-file", options.pid_file, "Write the process id there")->type_name("FILE");
    app.add_flag("--foreground", options.foreground,
                 "Stay in the foreground and log to standard error");
    app.add_flag("--no-watch", options.no_watch,
                 "Don't watch who opens files: every file is strict");
    try {
        app.parse(argc, argv);
    } catch (const CLI::ParseError& error) {
        if (error.get_exit_code() == 0) return app.exit(error, std::cout, std::cerr);
        std::cerr << "atomic4d: " << error.what() << " (see atomic4d --help)\n";
        return 2;
    }
    return run(std::move(options));
}

}  // namespace
}  // namespace atomic4

int main(int argc, char** argv) {
    return atomic4::run_program("atomic4d", 1, atomic4::main_program, argc, argv);
}
