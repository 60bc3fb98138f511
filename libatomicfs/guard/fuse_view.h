// A Device as a file that other programs can open: a FUSE filesystem that consists of that file.
//
// Its mount is detached (fsmount(2)): nobody sees it until somebody moves it over a path of his own
// mount namespace, where it takes the place of the file or block device there; messages then name
// the device, and nothing stays behind when the last process in that namespace is gone, even after
// kill -9 of all of them (F20).
//
// Requests are served by one thread, one after the other. What the kernel keeps of the file's pages
// it drops at the next open, so nobody reads bytes that a write changed on its way down for longer
// than his own descriptor.
//
// Once the device has refused a write (EPERM) no other one goes through: a tool that goes on, or
// the children that it leaves, work with what they couldn't write.
//
// Threads: the Device belongs to the view from start() to wait().
#pragma once

#include <functional>
#include <memory>

#include "base/unique_fd.h"
#include "device/device.h"

namespace atomic4 {

class FuseView {
  public:
    // Whether there is a /dev/fuse: for those who change something before they need a view.
    static Result<> available();
    // on_refusal: called in the view's thread when the device has refused a write (EPERM), before
    // whoever wrote is told: what it kills then never runs on. ENOENT, EACCES, EPERM …: no
    // /dev/fuse, or not allowed to mount.
    static Result<std::unique_ptr<FuseView>> start(Device& device,
                                                   std::function<void()> on_refusal);
    ~FuseView();
    FuseView(const FuseView&) = delete;
    FuseView& operator=(const FuseView&) = delete;

    // The detached mount, to be moved once (move_mount(2), MOVE_MOUNT_F_EMPTY_PATH).
    int mount() const { return mount_.get(); }
    // The server's end. A forked process has to close it before it touches the view: while it is
    // open anywhere the kernel waits for an answer, also when this process was killed, and nothing
    // ends who waits.
    int server_end() const;
    // Gives up our own hold on the mount, and waits until nobody else has it: the view is served to
    // its end.
    void wait();

  private:
    struct Session;
    FuseView();
    UniqueFd mount_;
    std::unique_ptr<Session> session_;
};

}  // namespace atomic4
