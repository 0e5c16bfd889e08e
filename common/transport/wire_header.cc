// SPDX-License-Identifier: Apache-2.0
#include "common/transport/wire_header.h"

#include <cstring>

#include "common/check.h"
#include "common/limits.h"
#include "common/status_macros.h"
#include "common/version.h"

namespace conclave::transport {
namespace {

constexpr uint32_t kMagic = 0x45434e43;  // "CNCE"

}  // namespace

absl::StatusOr<Header> ReadHeader(std::span<const std::byte> frame) {
  if (frame.size() < sizeof(Header)) {
    return Bad("too short, ", frame.size(), " bytes");
  }
  Header header;
  std::memcpy(&header, frame.data(), sizeof(header));
  if (header.magic != kMagic) return Bad("wrong magic number");
  if (header.version != kProtocolVersion) {
    return Bad("protocol version ",
               header.version,
               ", this program speaks ",
               kProtocolVersion,
               "; run the same version on both sides");
  }
  if (header.frame_bytes != frame.size()) {
    return Bad(
        "header says ", header.frame_bytes, " bytes, there are ", frame.size());
  }
  if (frame.size() > limits::kFrameBytesMax) {
    return Bad(frame.size(), " bytes, the limit is ", limits::kFrameBytesMax);
  }
  if (header.layer < 0 || header.layer >= limits::kLayersMax) {
    return Bad("layer ", header.layer, " is out of bounds");
  }
  return header;
}

absl::StatusOr<Header> ReadHeader(std::span<const std::byte> frame,
                                  FrameKind kind) {
  ASSIGN_OR_RETURN(Header header, ReadHeader(frame));
  if (header.kind != static_cast<uint8_t>(kind)) {
    return Bad("kind ",
               header.kind,
               " where ",
               static_cast<int>(kind),
               " was expected");
  }
  if (reinterpret_cast<uintptr_t>(frame.data()) % kAlign != 0) {
    return Bad("memory is not aligned to 8 bytes");
  }
  return header;
}

Header MakeHeader(FrameKind kind, const FrameTag& tag, size_t bytes) {
  Header header{};
  header.magic = kMagic;
  header.version = static_cast<uint16_t>(kProtocolVersion);
  header.kind = static_cast<uint8_t>(kind);
  header.frame_bytes = bytes;
  header.generation = tag.generation;
  header.step = tag.step;
  header.layer = Index(tag.layer);
  return header;
}

FrameTag TagOf(const Header& header) {
  return {.generation = header.generation,
          .step = header.step,
          .layer = static_cast<LayerId>(header.layer)};
}

uint64_t ProbeBytesMax() { return limits::kFrameBytesMax - sizeof(Header); }

Buffer EncodeProbe(const ProbeFrame& probe) {
  CONCLAVE_CHECK_LE(probe.payload_bytes, ProbeBytesMax());
  CONCLAVE_CHECK_LE(probe.reply_bytes, ProbeBytesMax());
  Buffer frame(sizeof(Header) + Padded(probe.payload_bytes));
  Header header = MakeHeader(FrameKind::kProbe, probe.tag, frame.size());
  header.rows = static_cast<int32_t>(probe.reply_bytes);
  std::memcpy(frame.data(), &header, sizeof(header));
  std::memset(frame.data() + sizeof(header), 0, frame.size() - sizeof(header));
  return frame;
}

absl::StatusOr<ProbeFrame> DecodeProbe(std::span<const std::byte> frame) {
  ASSIGN_OR_RETURN(const Header header, ReadHeader(frame, FrameKind::kProbe));
  if (header.rows < 0 || static_cast<uint64_t>(header.rows) > ProbeBytesMax()) {
    return Bad("a probe asks for ", header.rows, " bytes");
  }
  return ProbeFrame{.tag = TagOf(header),
                    .payload_bytes = frame.size() - sizeof(Header),
                    .reply_bytes = static_cast<uint64_t>(header.rows)};
}

Buffer EncodeStep(const StepFrame& step) {
  Buffer frame(sizeof(Header) + sizeof(step.link));
  Header header = MakeHeader(FrameKind::kStep, step.tag, frame.size());
  header.shards = step.record ? 1 : 0;
  header.rows = step.rows;
  std::memcpy(frame.data(), &header, sizeof(header));
  std::memcpy(frame.data() + sizeof(header), &step.link, sizeof(step.link));
  return frame;
}

absl::StatusOr<StepFrame> DecodeStep(std::span<const std::byte> frame) {
  ASSIGN_OR_RETURN(const Header header, ReadHeader(frame, FrameKind::kStep));
  StepFrame step{
      .tag = TagOf(header), .rows = header.rows, .record = header.shards != 0};
  if (frame.size() != sizeof(header) + sizeof(step.link)) {
    return Bad("a step of ", frame.size(), " bytes");
  }
  if (header.rows < 1 || header.rows > limits::kLinkRowsMax) {
    return Bad(header.rows, " rows are out of bounds");
  }
  std::memcpy(&step.link, frame.data() + sizeof(header), sizeof(step.link));
  return step;
}

}  // namespace conclave::transport
