// Replies, as the client decodes them. The first byte of an input is the type that is expected, the
// rest the packet.
// sources: client/reply.cc client/message.cc base/result.cc
#include <cstdint>

#include "client/reply.h"
#include "support/wire_packets.h"

using namespace atomic4;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    if (size == 0) return 0;
    test::Packet packet(size - 1);
    if (size > 1) std::memcpy(packet.data(), data + 1, size - 1);
    ExpectedReply expected;
    expected.type = static_cast<wire::Type>(1 + data[0] % 13);
    expected.into = (data[0] & 0x80) == 0 ? wire::Source::Inline : wire::Source::Arena;
    expected.length = 100;
    if (packet.size() >= sizeof(wire::ReplyHeader)) {
        test::set_length(packet);
        const le16 type =
            static_cast<uint16_t>(static_cast<uint16_t>(expected.type) | wire::kReplyBit);
        std::memcpy(packet.data(), &type, sizeof type);
    }
    (void)reply_tag(packet);
    const auto reply = decode_reply(packet, expected);
    if (!reply) {
        if (reply.error().code != EPROTO) abort();
        return 0;
    }
    if (reply->code != 0 && !wire::is_wire_error(reply->code)) abort();
    if (const auto* read = std::get_if<Reply::ReadBytes>(&reply->body))
        if (read->length > expected.length ||
            (expected.into == wire::Source::Inline && read->bytes.size() != read->length))
            abort();
    return 0;
}
