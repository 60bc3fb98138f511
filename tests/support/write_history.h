// What was written to some files, by us and by others, and the judge of what is found in them after
// a power cut or a crash, and recovery.
//
// Every write has a number, in the order of submission, and fills its blocks with bytes that tell
// the number, the file and the block. So each block found says which write it is from, or that it
// is torn. From that follows which writes must have taken place: those acknowledged by then, and
// those of which any block is found. Of each of these, every block must be found, or a later one's.
// That is: acknowledged writes are there, others wholly or not at all, batches too.
//
// Others' writes promise nothing before they are synced, not even whole blocks; from then on they
// count like acknowledged ones.
//
// Files are found as long as the last block that was written, or as they were at first.
//
// Positions are numbers of disk events (fault_disk.h): a write that was acknowledged at position p
// must survive any cut at p or later.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace atomic4::test {

class WriteHistory {
  public:
    static constexpr uint64_t kBlock = 4096;
    static constexpr size_t kNever = ~size_t{0};

    // Blocks of a file.
    struct Part {
        size_t file;
        uint64_t first;
        uint64_t count;
        bool overlaps(const Part& other) const {
            return file == other.file && first < other.first + other.count &&
                   other.first < first + count;
        }
    };

    // Its bytes are zeros. Returns its number: 0, 1, …
    size_t add_file(const std::string& name, uint64_t size);
    const std::vector<std::string>& files() const { return names_; }

    // All or nothing. Returns its number: 1, 2, …
    uint64_t begin(std::vector<Part> parts, size_t position);
    uint64_t begin_by_others(Part part, size_t position);
    // Acknowledged, or synced.
    void done(uint64_t number, size_t position);
    std::vector<std::byte> bytes(uint64_t number, const Part& part) const;
    size_t count() const { return writes_.size(); }
    size_t count_done(size_t position) const;

    // What is wrong with the files' contents after a cut at this position; empty: nothing.
    std::string judge(const std::vector<std::vector<std::byte>>& found, size_t position) const;

  private:
    struct Write {
        std::vector<Part> parts;
        bool by_others;
        size_t begun;
        size_t done = kNever;
    };
    static void fill(uint64_t number, size_t file, uint64_t block, std::byte* into);
    // 0: as at first; kTorn: none.
    static constexpr uint64_t kTorn = ~uint64_t{0};
    uint64_t origin(size_t file, uint64_t block, const std::byte* bytes) const;
    std::string describe(uint64_t number) const;

    std::vector<std::string> names_;
    std::vector<uint64_t> sizes_;
    std::vector<Write> writes_;  // number n at n - 1
};

// Behind a file's name while others have renamed it.
inline constexpr const char* kMoved = ".moved";

// The whole file, as an open for reading sees it. Throws if it can't be read.
std::vector<std::byte> file_contents(const std::string& path);

}  // namespace atomic4::test
