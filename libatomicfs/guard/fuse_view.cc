#include "guard/fuse_view.h"

#define FUSE_USE_VERSION 314
#include <fcntl.h>
#include <fuse_lowlevel.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <algorithm>
#include <thread>
#include <vector>

namespace atomic4 {

namespace {

// As large as the kernel lets a request be (FUSE_MAX_MAX_PAGES).
constexpr unsigned kRequestMax = 1 << 20;

struct Served {
    Device* device = nullptr;
    std::function<void()> on_refusal;
    bool refused = false;  // for good
    std::vector<std::byte> buffer;
};

Served& served(fuse_req_t request) {
    return *static_cast<Served*>(fuse_req_userdata(request));
}

void fill_stat(const Device& device, struct stat& stat) {
    stat = {};
    stat.st_ino = FUSE_ROOT_ID;
    stat.st_mode = S_IFREG | (device.read_only() ? 0400 : 0600);
    stat.st_nlink = 1;
    stat.st_size = static_cast<off_t>(device.size().value());
    stat.st_blocks = stat.st_size / 512;
    stat.st_blksize = 4096;
}

void on_init(void*, fuse_conn_info* connection) {
    connection->max_write = kRequestMax;
    connection->max_readahead = kRequestMax;
}

void on_getattr(fuse_req_t request, fuse_ino_t, fuse_file_info*) {
    struct stat stat;
    fill_stat(*served(request).device, stat);
    fuse_reply_attr(request, &stat, 86400.0);
}

// resize2fs cuts an image to the size of its file system: the view stays as long as the device is,
// which does no harm. It doesn't grow.
void on_setattr(fuse_req_t request, fuse_ino_t, struct stat* wanted, int which, fuse_file_info*) {
    struct stat stat;
    fill_stat(*served(request).device, stat);
    if ((which & FUSE_SET_ATTR_SIZE) != 0 && wanted->st_size > stat.st_size) {
        fuse_reply_err(request, EPERM);
        return;
    }
    fuse_reply_attr(request, &stat, 86400.0);
}

void on_open(fuse_req_t request, fuse_ino_t, fuse_file_info* info) {
    if (served(request).device->read_only() && (info->flags & O_ACCMODE) != O_RDONLY) {
        fuse_reply_err(request, EROFS);
        return;
    }
    fuse_reply_open(request, info);
}

void on_read(fuse_req_t request, fuse_ino_t, size_t size, off_t offset, fuse_file_info*) {
    Served& it = served(request);
    const uint64_t end = it.device->size().value();
    const auto begin = std::min(static_cast<uint64_t>(offset), end);
    const uint64_t length = std::min<uint64_t>(size, end - begin);
    it.buffer.resize(std::max<size_t>(it.buffer.size(), length));
    const std::span<std::byte> into(it.buffer.data(), length);
    if (const auto done = it.device->read(ByteOffset(begin), into); !done) {
        fuse_reply_err(request, done.error().code);
        return;
    }
    fuse_reply_buf(request, reinterpret_cast<const char*>(into.data()), length);
}

void on_write(fuse_req_t request, fuse_ino_t, const char* bytes, size_t size, off_t offset,
              fuse_file_info*) {
    Served& it = served(request);
    if (it.refused) {
        fuse_reply_err(request, EPERM);
        return;
    }
    const auto done = it.device->write(ByteOffset(static_cast<uint64_t>(offset)),
                                       std::span(reinterpret_cast<const std::byte*>(bytes), size));
    if (done) {
        fuse_reply_write(request, size);
        return;
    }
    if (done.error().code == EPERM) {
        it.refused = true;
        it.on_refusal();
    }
    // A file's end is ENOSPC to those who write beyond it.
    fuse_reply_err(request, done.error().code == EINVAL ? ENOSPC : done.error().code);
}

void on_fsync(fuse_req_t request, fuse_ino_t, int, fuse_file_info*) {
    const auto done = served(request).device->flush();
    fuse_reply_err(request, done ? 0 : done.error().code);
}

const fuse_lowlevel_ops& operations() {
    static const fuse_lowlevel_ops ops = [] {
        fuse_lowlevel_ops made{};
        made.init = on_init;
        made.getattr = on_getattr;
        made.setattr = on_setattr;
        made.open = on_open;
        made.read = on_read;
        made.write = on_write;
        made.fsync = on_fsync;
        return made;
    }();
    return ops;
}

Result<> set_string(int fs, const char* key, const std::string& value) {
    if (::fsconfig(fs, FSCONFIG_SET_STRING, key, value.c_str(), 0) == 0) return {};
    return fail(Error::from_errno(errno, fmt::format("guarded view: mount option {}", key)));
}

// A mount of FUSE whose root is a file, served through the descriptor.
Result<UniqueFd> make_mount(int fuse) {
    UniqueFd fs(::fsopen("fuse", FSOPEN_CLOEXEC));
    if (!fs) return fail(Error::from_errno(errno, "guarded view: fsopen(fuse)"));
    // Not the device's name: tools that look for it among the mounts would take it for mounted.
    A4_CHECK(set_string(fs.get(), "source", "atomic4-guard"));
    A4_CHECK(set_string(fs.get(), "fd", std::to_string(fuse)));
    A4_CHECK(set_string(fs.get(), "rootmode", "100600"));
    A4_CHECK(set_string(fs.get(), "user_id", std::to_string(::getuid())));
    A4_CHECK(set_string(fs.get(), "group_id", std::to_string(::getgid())));
    if (::fsconfig(fs.get(), FSCONFIG_CMD_CREATE, nullptr, nullptr, 0) != 0)
        return fail(Error::from_errno(errno, "guarded view: can't make the mount"));
    UniqueFd mount(::fsmount(fs.get(), FSMOUNT_CLOEXEC, MOUNT_ATTR_NODEV | MOUNT_ATTR_NOSUID));
    if (!mount) return fail(Error::from_errno(errno, "guarded view: fsmount"));
    return mount;
}

}  // namespace

struct FuseView::Session {
    Served served;
    fuse_session* session = nullptr;
    std::thread thread;
};

FuseView::FuseView() : session_(std::make_unique<Session>()) {}

Result<> FuseView::available() {
    struct stat stat{};
    const UniqueFd fuse(::open("/dev/fuse", O_RDWR | O_CLOEXEC));
    if (!fuse) return fail(Error::from_errno(errno, "guarded view: /dev/fuse"));
    if (::fstat(fuse.get(), &stat) != 0 || stat.st_rdev != ::makedev(10, 229))
        return fail(ENODEV, "guarded view: /dev/fuse is not the FUSE device");
    return {};
}

Result<std::unique_ptr<FuseView>> FuseView::start(Device& device,
                                                  std::function<void()> on_refusal) {
    std::unique_ptr<FuseView> view(new FuseView);
    Session& session = *view->session_;
    UniqueFd fuse(::open("/dev/fuse", O_RDWR | O_CLOEXEC));
    if (!fuse) return fail(Error::from_errno(errno, "guarded view: /dev/fuse"));
    view->mount_ = A4_TRY(make_mount(fuse.get()));
    session.served.device = &device;
    session.served.on_refusal = std::move(on_refusal);

    char name[] = "atomic4-guard";
    char* arguments[] = {name, nullptr};
    fuse_args args = FUSE_ARGS_INIT(1, arguments);
    session.session =
        fuse_session_new(&args, &operations(), sizeof(fuse_lowlevel_ops), &session.served);
    fuse_opt_free_args(&args);
    if (session.session == nullptr) return fail(ENOMEM, "guarded view: no FUSE session");
    // The session takes the descriptor.
    const std::string place = fmt::format("/dev/fd/{}", fuse.get());
    if (fuse_session_mount(session.session, place.c_str()) != 0)
        return fail(EIO, "guarded view: the FUSE session can't use {}", place);
    (void)fuse.release();
    session.thread = std::thread([&session] { fuse_session_loop(session.session); });
    return view;
}

int FuseView::server_end() const {
    return fuse_session_fd(session_->session);
}

void FuseView::wait() {
    mount_.reset();
    if (session_->thread.joinable()) session_->thread.join();
}

FuseView::~FuseView() {
    wait();
    if (session_->session == nullptr) return;
    fuse_session_unmount(session_->session);
    fuse_session_destroy(session_->session);
}

}  // namespace atomic4
