// Requests, as the daemon decodes them. The first byte of an input says what the connection has
// established and how many descriptors came; the rest is the packet. The header's length is set
// right for most, else hardly an input would get past it.
// sources: client/message.cc base/result.cc
#include <cstdint>

#include "support/wire_packets.h"

using namespace atomic4;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    if (size == 0) return 0;
    const uint8_t mode = data[0];
    test::Packet packet(size - 1);
    if (size > 1) std::memcpy(packet.data(), data + 1, size - 1);
    if ((mode & 0x80) == 0 && packet.size() >= sizeof(wire::RequestHeader))
        test::set_length(packet);
    wire::Connection connection;
    connection.greeted = (mode & 1) == 0;
    connection.target = (mode & 2) == 0 ? wire::TargetKind::Mounted : wire::TargetKind::Owned;
    connection.arena = Bytes((mode & 4) == 0 ? 1 << 20 : 0);
    const auto request = wire::decode(packet, (mode >> 3) & 3, connection);
    if (request) {
        if (!test::holds(*request, packet, connection)) abort();
    } else if (!wire::is_wire_error(request.error().code) || request.error().message.empty()) {
        abort();
    }
    return 0;
}
