// A peer: one way to make random writes durable, measured on the same loop device as the others.
//
// The driver has every peer prepare its file system afresh in each round, then run with so many
// writers and such a unit, then finish. A peer that can't run here says why from prepare(); other
// failures throw std::runtime_error.
//
// All write units at random, aligned offsets of a file of Site::file_size bytes, whose blocks are
// all written. Each writer has one write outstanding, and goes on when that is durable.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "bench/site.h"
#include "bench/writers.h"

namespace atomic4::bench {

class Peer {
  public:
    virtual ~Peer() = default;

    // "XFS RWF_ATOMIC|RWF_DSYNC"
    virtual std::string name() const = 0;
    // Formats, mounts and fills. The reason if this machine can't.
    virtual std::optional<std::string> prepare(Site& site) = 0;
    // The reason if this peer can't do that.
    virtual std::optional<std::string> refuses(const Load&) const { return std::nullopt; }
    virtual Figures run(const Load& load) = 0;
    // Leaves the device unused. Also after a prepare that gave a reason.
    virtual void finish() = 0;
    // Of the process that serves the writers; 0: there is none.
    virtual double peak_mib() const { return 0; }
};

// Where a peer keeps the file system under its file.
class MountedPeer : public Peer {
  public:
    void finish() override { mount_.reset(); }

  protected:
    std::optional<test::Mount> mount_;
    std::string path_;  // of the file
    uint64_t file_size_ = 0;
};

// The kernel's own ways, one system call or two for each write.
std::unique_ptr<Peer> make_xfs_atomic();
std::unique_ptr<Peer> make_ext4_data_journal();
std::unique_ptr<Peer> make_ext4_plain();
std::unique_ptr<Peer> make_btrfs();
// As InnoDB: a batch of pages to the doublewrite area, fdatasync, then in place, fdatasync. Each
// writer fills batches of its own; so many pages a batch, or as many as make 2 MiB if fewer.
// Batches come from a cache of dirty pages: all of a batch are outstanding at once, so they compare
// with as many writers.
std::unique_ptr<Peer> make_doublewrite(unsigned pages);
// The limit of our scheme: a group of as many writes as there are writers goes to a log in one
// write, then in place, in parallel, by io_uring, without a socket, checksums or retirement.
//   Lockstep: the next group begins when this one is in place, so there are `writers` writes
//   outstanding. That is what clients who wait for their answers can reach with such groups.
//   Overlapped: the next group's log write overlaps the placements: twice as many outstanding.
//   Halves: the same with groups of half the writers: `writers` writes outstanding.
enum class Pipelining { Lockstep, Overlapped, Halves };
std::unique_ptr<Peer> make_bare_loop(Pipelining pipelining);
// Ours, through the socket. Strict: another process holds the file open for writing.
enum class Others { None, HoldFileOpen };
std::unique_ptr<Peer> make_atomic4d(Others others);

}  // namespace atomic4::bench
