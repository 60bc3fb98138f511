#include "guard/rehearsal_device.h"

#include <fcntl.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>

#include "ext4/handle_files.h"

namespace atomic4 {

Result<std::unique_ptr<RehearsalDevice>> RehearsalDevice::make(Device& below) {
    const char* directory = std::getenv("TMPDIR");
    if (directory == nullptr || *directory == '\0') directory = "/var/tmp";
    UniqueFd file(::open(directory, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));
    if (!file)
        return fail(Error::from_errno(errno, fmt::format("a rehearsal's file in {}", directory)));
    return std::unique_ptr<RehearsalDevice>(new RehearsalDevice(below, std::move(file)));
}

// What a block holds now.
Result<> RehearsalDevice::load(uint64_t block, std::span<std::byte> into) {
    const ByteOffset at(block * kBlock);
    if (!written_[block]) return below_.read(at, into);
    return read_all(file_.get(), into, at);
}

Result<> RehearsalDevice::read(ByteOffset offset, std::span<std::byte> into) {
    A4_CHECK(below_.read(offset, into));
    const uint64_t end = offset.value() + into.size();
    for (uint64_t at = offset.value(); at < end;) {
        const uint64_t next = std::min(end, round_down(at, kBlock) + kBlock);
        if (written_[at / kBlock]) {
            A4_CHECK(read_all(file_.get(), into.subspan(at - offset.value(), next - at),
                              ByteOffset(at)));
        }
        at = next;
    }
    return {};
}

Result<> RehearsalDevice::write(ByteOffset offset, std::span<const std::byte> from) {
    A4_CHECK(check_range(*this, "write", offset, Bytes(from.size())));
    const uint64_t end = offset.value() + from.size();
    std::array<std::byte, kBlock> whole;
    for (uint64_t at = offset.value(); at < end;) {
        const uint64_t block = at / kBlock;
        const uint64_t next = std::min(end, (block + 1) * kBlock);
        const uint64_t block_end = std::min(size().value(), (block + 1) * kBlock);
        const std::span<std::byte> bytes(whole.data(), block_end - block * kBlock);
        if (next - at < bytes.size()) A4_CHECK(load(block, bytes));
        std::memcpy(bytes.data() + at % kBlock, from.data() + (at - offset.value()), next - at);
        A4_CHECK(write_all(file_.get(), bytes, ByteOffset(block * kBlock)));
        written_[block] = true;
        at = next;
    }
    return {};
}

Result<> RehearsalDevice::write_atomic(ByteOffset, std::span<const std::byte>) {
    return fail(EOPNOTSUPP, "{}: {}", name(), none_.why_not);
}

Result<> RehearsalDevice::zero(ByteOffset offset, Bytes length) {
    const std::vector<std::byte> zeros(length.value());
    return write(offset, zeros);
}

}  // namespace atomic4
