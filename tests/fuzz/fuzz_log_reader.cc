// The redo log's reader, on a log of 64 KiB that the input has changed. Its first byte chooses what
// the log was, and which checksums are made right again afterwards, so that the damage gets past
// them. Then patches: two bytes of position, in eights; one of length; the bytes.
//
// What the reader says must hold by itself: records ascend, lie in the ring, don't overlap, their
// ranges make up their payloads, which can be read. A log without live records takes a session, and
// then holds what was appended and nothing else.
//
// sources: redo/log_reader.cc redo/log_record.cc redo/log_superblock.cc redo/redo_log.cc
// sources: base/crc32c.cc base/random.cc base/result.cc device/device.cc device/memory_device.cc
// libraries: -lisal
#include <cstdint>
#include <cstring>
#include <set>

#include "base/crc32c.h"
#include "device/memory_device.h"
#include "redo/log_reader.h"
#include "redo/redo_log.h"

namespace atomic4 {
namespace {

constexpr uint64_t kSize = 64 << 10;
constexpr LogId kId{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16};
constexpr SessionStamp kStamp{1'700'000'000, 7};

using Image = std::vector<std::byte>;

void require(bool holds) {
    if (!holds) abort();
}
template <class T>
T must(Result<T> result) {
    require(result.has_value());
    if constexpr (!std::is_void_v<T>) return std::move(*result);
}

RangeRef range(uint32_t inode, uint64_t offset, uint64_t length, uint64_t new_size = 0) {
    return {inode, inode + 1000, ByteOffset(offset), Bytes(length), Bytes(new_size)};
}
uint64_t append(RedoLog& log, const std::vector<RangeRef>& ranges, unsigned value) {
    std::vector<Image> bytes;
    std::vector<std::span<const std::byte>> data;
    for (const RangeRef& one : ranges)
        bytes.emplace_back(one.length.value(), static_cast<std::byte>(value));
    for (const Image& one : bytes) data.emplace_back(one);
    return must(log.append(ranges, data)).sequence;
}
std::unique_ptr<RedoLog> begin(Device& device) {
    return must(RedoLog::begin(device, must(read_log(device, kId)), kStamp));
}

// Empty; three live records; the same after the ring went round.
Image make_log(unsigned which) {
    MemoryDevice device{Bytes(kSize)};
    must(RedoLog::format(device, kId, kStamp));
    if (which == 0) return device.contents();
    const auto log = begin(device);
    const int rounds = which == 1 ? 0 : 3;
    for (int i = 0; i < rounds; ++i) {
        log->note_retired(append(*log, {range(10, 0, 10000)}, 1));
        must(log->persist_retired());
    }
    append(*log, {range(11, 0, 4096)}, 10);
    append(*log, {range(12, 4096, 512), range(13, 65536, 5000, 70536)}, 20);
    append(*log, {range(11, 8192, 3000)}, 30);
    return device.contents();
}

void seal_superblocks(Image& image) {
    for (const ByteOffset position : kSuperblockPosition) {
        auto* super = reinterpret_cast<LogSuperblock*>(image.data() + position.value());
        super->checksum = 0;
        super->checksum = crc32c(~0u, std::span(image).subspan(position.value(), kLogBlock));
    }
}

// As a forger who knows the epoch.
void seal_records(Image& image) {
    for (uint64_t at = kFirstRecord.value(); at < kSize; at += kLogBlock) {
        auto* header = reinterpret_cast<RecordHeader*>(image.data() + at);
        if (header->magic != kRecordMagic) continue;
        const uint64_t head = header->header_length;
        const uint64_t total = header->total_length;
        const uint32_t seed = record_seed(header->epoch, header->sequence, ByteOffset(at));
        if (head > 0 && head <= total && total <= kSize - at && header->type == kRecordData)
            header->payload_crc = crc32c(seed, std::span(image).subspan(at + head, total - head));
        if (head >= sizeof *header && head <= kSize - at)
            header->header_crc = record_header_crc(std::span(image).subspan(at, head), seed);
    }
}

void hold_against_itself(const LogContents& contents, Device& device) {
    const LogState& log = contents.superblock;
    require(log.log_size.value() <= kSize && log.log_id == kId);
    require(contents.head >= kFirstRecord && contents.head < log.end());
    require(is_aligned(contents.head.value(), kLogBlock));
    require(contents.next_sequence > contents.retired);
    PayloadReader reader(device, contents.windows);
    std::set<uint64_t> blocks;
    uint64_t last = contents.retired;
    for (const LoggedRecord& record : contents.live) {
        require(record.sequence > last && record.sequence < contents.next_sequence);
        last = record.sequence;
        require(record.position >= kFirstRecord &&
                record.position + record.total_length <= log.end());
        for (uint64_t i = 0; i < record.total_length.value(); i += kLogBlock)
            require(blocks.insert(record.position.value() + i).second);
        require(!record.ranges.empty());
        Bytes sum;
        for (const RangeRef& one : record.ranges) {
            require(one.length.value() > 0);
            require(one.offset.value() + one.length.value() > one.offset.value());
            sum += one.length;
        }
        const Payload payload = must(reader.read(record));
        require(payload.bytes.size() == sum.value());
        const auto again = must(read_payload(device, record));
        require(std::ranges::equal(again, payload.bytes));
    }
}

}  // namespace
}  // namespace atomic4

using namespace atomic4;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    static const Image logs[] = {make_log(0), make_log(1), make_log(2)};
    if (size == 0) return 0;
    const uint8_t mode = *data++;
    --size;
    Image image = logs[(mode & 3) % std::size(logs)];
    while (size >= 4) {
        const uint64_t at = static_cast<uint64_t>(data[0] | data[1] << 8) * 8;
        const size_t length = std::min<size_t>({data[2], size - 3, at < kSize ? kSize - at : 0});
        if (length > 0) std::memcpy(image.data() + at, data + 3, length);
        data += 3 + length;
        size -= 3 + length;
    }
    if ((mode & 4) == 0) seal_superblocks(image);
    if ((mode & 8) == 0) seal_records(image);
    MemoryDevice device(image);
    const auto contents = read_log(device, kId);
    require(device.contents() == image);
    if (!contents) {
        const int code = contents.error().code;
        require(code == EUCLEAN || code == EOPNOTSUPP || code == EIO);
        require(!contents.error().message.empty());
        return 0;
    }
    hold_against_itself(*contents, device);
    auto log = RedoLog::begin(device, *contents, kStamp);
    if (!contents->live.empty() || contents->end == LogEnd::Corrupt) {
        require(!log && log.error().code == EBUSY && device.contents() == image);
        must(reset_log(device, *contents, kStamp));
        log = RedoLog::begin(device, must(read_log(device, kId)), kStamp);
    }
    require(log.has_value());
    const uint64_t sequence = append(**log, {range(7, 4096, 2000)}, 77);
    const LogContents now = must(read_log(device, kId));
    require(now.live.size() == 1 && now.live[0].sequence == sequence && now.end != LogEnd::Corrupt);
    hold_against_itself(now, device);
    return 0;
}
